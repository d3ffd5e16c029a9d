"""Topics, records and apps for the tests of the transport."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager, suppress

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from streams.app import build_app, run_app
from streams.transport import TP

SESSION_MS = 1_500  # Tansu lets the first member of a group wait for half of it


def make_topic(kafka, name, partitions):
    admin = AdminClient({"bootstrap.servers": kafka})
    for made in admin.create_topics([NewTopic(name, partitions, 1)]).values():
        made.result(20)
    return name


def produce(kafka, topic, partition, values, **options):
    settings = {"linger.ms": 1, "enable.idempotence": True}  # a batch that is sent again stays in order
    producer = Producer({"bootstrap.servers": kafka, **settings, **options})
    for value in values:
        producer.produce(topic, value, b"k" + value, partition=partition, timestamp=1_000 + int(value))
    producer.flush(20)


def numbered(start, stop):
    return [b"%d" % number for number in range(start, stop)]


def committed(kafka, group, topic, partitions):
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": group})
    found = consumer.committed([TopicPartition(topic, at) for at in range(partitions)], timeout=20)
    consumer.close()
    return [place.offset for place in found]


class Received:
    """Keeps what arrived, and refuses a batch that does not follow the one before."""

    def __init__(self):
        self.values = defaultdict(list)
        self.batches = defaultdict(list)
        self.changed = asyncio.Event()

    async def __call__(self, batch):
        tp = TP(batch.topic, batch.partition)
        assert all(batch.start <= offset < batch.next for offset in batch.offsets)
        if self.batches[tp]:
            assert self.batches[tp][-1].next == batch.start
        self.batches[tp].append(batch)
        self.values[tp] += batch.values
        self.changed.set()

    def next(self, tp):
        return self.batches[tp][-1].next if self.batches[tp] else 0

    def count(self):
        return sum(map(len, self.values.values()))

    async def until(self, condition, seconds=30):
        async with asyncio.timeout(seconds):
            while not condition():
                self.changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), 0.05)


@asynccontextmanager
async def running(kafka, group, topics, received, **options):
    """Run an app for the length of the block, and stop it cleanly; what it fails with is raised."""
    app = build_app(group, kafka, topics, received, **{"session_timeout_ms": SESSION_MS, **options})
    task = asyncio.ensure_future(run_app(app))
    try:
        yield app
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
