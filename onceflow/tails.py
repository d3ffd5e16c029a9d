"""How far a join has come, as its own topic tells it: read from the newest messages of each partition."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from featurestore.errors import UnavailableError
from featurestore.joined import Joined
from onceflow.ends import TIMEOUT_SECONDS, asking
from streams.joins import HEADER, Ends, ends_of

NEWEST = 1_000
"""Messages of a partition that are looked at first; where a join sent none of them, ten times as many."""

_WAIT_SECONDS = 0.1


def sent_upto(kafka: str, source: Joined, partitions: Sequence[int]) -> dict[int, Ends]:
    """By partition the offsets of both logs up to which all pairs have been delivered, where the topic says so.

    StateError: the topic holds pairs of another definition. UnavailableError: Kafka does not answer.
    """
    consumer = asking(kafka)
    try:
        places = {p: TopicPartition(source.name, p) for p in partitions}
        listed = {p: consumer.get_watermark_offsets(at, timeout=TIMEOUT_SECONDS) for p, at in places.items()}
        found: dict[int, Ends] = {}
        count, waiting = NEWEST, list(partitions)
        while waiting:
            begins = {p: max(listed[p][0], listed[p][1] - count) for p in waiting}
            for partition, headers in _headers(consumer, source.name, begins).items():
                if (ends := ends_of(source, partition, headers)) is not None:
                    found[partition] = ends
            waiting = [p for p in waiting if p not in found and begins[p] > listed[p][0]]
            count *= 10
    except KafkaException as error:
        why = error.args[0].str()
        raise UnavailableError(f"Kafka at {kafka} does not show the end of {source.name}: {why}") from error
    finally:
        consumer.close()
    return found


def _headers(consumer: Consumer, topic: str, begins: Mapping[int, int]) -> dict[int, list[bytes]]:
    """The headers `join` of the messages of partitions from these offsets to their ends, in order."""
    found: dict[int, list[bytes]] = {partition: [] for partition in begins}
    consumer.assign([TopicPartition(topic, partition, begin) for partition, begin in begins.items()])
    reading, deadline = set(begins), time.monotonic() + TIMEOUT_SECONDS
    while reading:
        if time.monotonic() > deadline:
            raise UnavailableError(f"{topic}: Kafka shows no end of partitions {sorted(reading)}; is a broker away?")
        for message in consumer.consume(NEWEST, _WAIT_SECONDS):
            error, partition = message.error(), message.partition() or 0
            if error is None:
                found[partition] += [value for name, value in message.headers() or [] if name == HEADER]
                deadline = time.monotonic() + TIMEOUT_SECONDS
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - how the client names it
                reading.discard(partition)
    return found
