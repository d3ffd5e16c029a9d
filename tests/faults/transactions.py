"""Histories that lie in transactional, compacted topics: aborted records, markers, and holes between offsets."""

from __future__ import annotations

import json
import random
import secrets
import time

import polars as pl
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from featurestore.expressions import TYPES
from featurestore.frames import META, with_derived
from tests.streams.shop import PARTITIONS, history, shop
from tests.streams.working import blobs, in_memory, settings_of, stored, work

A_TRANSACTION, KEYS = 25, 40
TRANSACTIONS = {
    "aborted": "events in transactions that were aborted",
    "compacted": "events that compaction took before they were read",
}
_COMPACTED = {
    "cleanup.policy": "compact",
    "retention.ms": "-1",
    "segment.ms": "60000",  # of event time
    "min.cleanable.dirty.ratio": "0.01",
    "delete.retention.ms": "0",
}


def transacted(pair, folder, seed, orders, **changes):
    """Fold a history that was written in transactions and compacted half-way: what was done, and what differs."""
    tag, rng = secrets.token_hex(4), random.Random(seed)
    definitions, records = shop(tag), history(tag, orders, seed=seed)
    topics, settings = Topics(pair.kafka, definitions), settings_of(pair, tag, folder, **changes)
    half = len(records) // 2
    aborted = topics.write(records[:half], rng)
    topics.compact(half - aborted)
    work(definitions, settings)
    aborted += topics.write(records[half:], rng)
    work(definitions, settings)
    good = topics.read()
    wrong = _differences(definitions, good, topics.ends(), stored(pair.redis_url, tag))
    return {"aborted": aborted, "compacted": len(records) - aborted - sum(map(len, good.values()))}, wrong


def _differences(definitions, good, ends, found):
    """How many states differ from those of the good events, and positions from the ends of the logs."""
    flow, _, _ = in_memory(definitions, good)
    wrong = 0
    for view in definitions.views.values():
        for partition in range(PARTITIONS):
            mine, expected = blobs(found, view, partition), flow.states[view.key].blobs(partition)
            wrong += sum(mine.get(entity) != expected.get(entity) for entity in mine.keys() | expected.keys())
    for (topic, partition), end in ends.items():
        place = b"{%s:%d}" % (topic.encode(), partition)
        positions = [int(state[1]) for key, state in found.items() if key.startswith(place) and key.endswith(b":next")]
        wrong += sum(position != end for position in positions) if positions else 1
    return wrong


class Topics:
    """The shop's topics, compacted while histories are written to them."""

    def __init__(self, kafka, definitions):
        self.kafka, self.names = kafka, list(definitions.sources)
        self._definitions, self._admin = definitions, AdminClient({"bootstrap.servers": kafka})
        made = [NewTopic(name, PARTITIONS, 1, config=_COMPACTED) for name in self.names]
        for created in self._admin.create_topics(made).values():
            created.result(20)
        for broker in self._admin.list_topics(timeout=20).brokers:
            self._set(ConfigResource(ResourceType.BROKER, str(broker)), "log.cleaner.backoff.ms", "100")

    def write(self, records, rng, share=0.3):
        """Produce records in transactions, of which a share is aborted, and one more at the end. Returns how many."""
        options = {"transactional.id": f"{self.names[0]}-writer", "linger.ms": 5, "log_level": 0}
        producer = Producer({"bootstrap.servers": self.kafka, **options})
        producer.init_transactions(30)
        aborted = 0
        for at in range(0, len(records), A_TRANSACTION):
            some = records[at : at + A_TRANSACTION]
            producer.begin_transaction()
            for record in some:
                key = b"k%d" % rng.randrange(KEYS)
                producer.produce(record.topic, record.value, key, partition=record.partition, timestamp=record.time)
            if rng.random() < share or at + A_TRANSACTION >= len(records):
                producer.flush(30)  # or what is aborted never reaches the log
                producer.abort_transaction(30)
                aborted += len(some)
            else:
                producer.commit_transaction(30)
        return aborted

    def compact(self, committed):
        """Wait until compaction has taken some of what was committed, then let it take no more."""
        deadline = time.monotonic() + 60
        while sum(map(len, self.read().values())) == committed:
            assert time.monotonic() < deadline, "nothing was compacted"
            time.sleep(0.2)
        for name in self.names:
            self._set(ConfigResource(ResourceType.TOPIC, name), "cleanup.policy", "delete")

    def ends(self):
        """Where each partition ends, by topic and partition."""
        reader = self._reader()
        places = [TopicPartition(name, partition) for name in self.names for partition in range(PARTITIONS)]
        ends = {(at.topic, at.partition): reader.get_watermark_offsets(at, 20)[1] for at in places}
        reader.close()
        return ends

    def read(self):
        """The event frame of each partition, as any reader of what was committed sees it."""
        rows, waiting, reader = {at: [] for at in self.ends()}, set(self.ends()), self._reader()
        reader.assign([TopicPartition(*at, 0) for at in waiting])
        while waiting:
            message = reader.poll(20)
            at = message.topic(), message.partition()
            if message.error() is None:
                event = json.loads(message.value())
                meta = {"_partition": at[1], "_offset": message.offset(), "_timestamp": message.timestamp()[1]}
                rows[at].append(event | meta | {"_time": event["at"]})
            else:
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                waiting.discard(at)
        reader.close()
        return {at: self._frame(at[0], events) for at, events in rows.items()}

    def _frame(self, topic, events):
        source = self._definitions.sources[topic]
        kinds = {name: TYPES[kind] for name, kind in source.schema.items()}
        return with_derived(source, pl.DataFrame(events, schema={**kinds, **META}))

    def _reader(self):
        options = {"group.id": "reader", "enable.partition.eof": True, "isolation.level": "read_committed"}
        return Consumer({"bootstrap.servers": self.kafka, "enable.auto.commit": False, **options})

    def _set(self, resource, name, value):
        resource.add_incremental_config(ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET))
        for changed in self._admin.incremental_alter_configs([resource]).values():
            changed.result(20)
