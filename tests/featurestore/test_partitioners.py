from __future__ import annotations

import polars as pl
import pytest
from aiokafka.partitioner import murmur2 as kafkas_murmur2
from confluent_kafka import Consumer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from featurestore.partitioners import key_text, murmur2, partition_of
from onceflow.produce import produce_frame

PARTITIONS = 7


@given(st.binary(max_size=40))
def test_murmur2_is_kafkas(key):
    assert murmur2(key) == kafkas_murmur2(key) & 0xFFFFFFFF


@given(st.binary(max_size=40), st.integers(1, 1000), st.sampled_from(["murmur2", "crc32"]))
def test_a_key_leads_to_one_partition_of_those_there_are(key, partitions, partitioner):
    place = partition_of(partitioner, key, partitions)
    assert place is None or 0 <= place < partitions
    assert (place is None) == (partitioner == "crc32" and not key)


@pytest.mark.parametrize("partitioner", ["murmur2", "crc32"])
def test_records_lie_where_their_keys_lead(partitioner, kafka, prefix):
    topic = f"{prefix}placed"
    keys = [(f"card {i} é", i, i % 2 == 0) for i in range(60)]
    frame = pl.DataFrame(keys, schema=["k", "g", "b"], orient="row")
    produce_frame(kafka, topic, frame, ["k", "g", "b"], PARTITIONS, partitioner=partitioner)
    placed = places(kafka, topic, len(keys))
    assert placed == {text: partition_of(partitioner, text, PARTITIONS) for text in map(key_text, keys)}
    assert len(set(placed.values())) == PARTITIONS


def places(kafka, topic, count):
    """The partition of each key."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "unused", "log_level": 0})
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
        return {message.key(): message.partition() for message in consumer.consume(count, timeout=30)}
    finally:
        consumer.close()
