"""Running a worker over the shop, and what it leaves behind."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple

import polars as pl
import redis
from confluent_kafka import Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient

from batch.logged import Logged
from batch.verify import verify
from featurestore.align import merged
from featurestore.flow import Flow
from featurestore.keys import key_prefix
from featurestore.offline import read_table
from featurestore.online import connect
from onceflow import embedded
from onceflow.runtime import build_worker, run_worker
from onceflow.settings import Settings
from serving.predictor import reads_of
from tests.streams.shop import PARTITIONS


@contextmanager
def own_servers():
    """A broker and a Redis for one run only."""
    with embedded.kafka() as broker, embedded.redis() as store:
        yield SimpleNamespace(kafka=broker.address, redis_url=f"redis://{store.address}/0")


def settings_of(pair, tag, data, **changes):
    """Settings of a worker that a test may start and stop; small files, so that some are complete."""
    base = {"mode": "replay", "grid": 256, "chunk": 300, "group": f"g-{tag}", "session_timeout_ms": 1_500}
    return Settings(kafka=pair.kafka, redis=pair.redis_url, data=data, **base | changes)


def work(definitions, settings):
    """Run a worker to the end of its topics, and return it."""
    worker = build_worker(definitions, settings, until_end=True)
    run_worker(worker, settings)
    return worker


class Died(Exception):  # noqa: N818 - it stands for no error
    """What a worker was doing when it died."""


def dies_in_turn(number, worker, partly):
    """Let a worker die in the turn of that number, when its messages are sent and `partly(turn)` is done."""
    store, left = worker._store, [number]

    async def cut(made):
        left[0] -= 1
        if left[0]:
            await store(made)
            return
        await asyncio.to_thread(worker.publisher.send, made.messages)
        await worker.publisher.flush()
        await partly(made)
        raise Died

    worker._store = cut


def in_memory(definitions, logs, *, partitions=PARTITIONS):
    """The same views and reads over whole logs at once, in memory: the flow, and its outputs by view."""
    services = list(definitions.services.values())
    reads = list(dict.fromkeys(read for service in services for read in reads_of(service).values()))
    views, predicted = definitions.views.values(), {service.on.name for service in services}
    flow = Flow(list(views), reads, dict.fromkeys(definitions.sources, partitions))
    for view in views:
        for partition in range(partitions):
            flow.begin(view.key, (view.source.name, partition), None)
    chunk = merged({topic: int(topic in predicted) for topic in definitions.sources}, logs)
    assert flow.lookups(chunk, {(topic, p): 0 for topic in predicted for p in range(partitions)}) == {}
    return flow, flow.run(chunk), chunk


def stored(redis_url, tag):
    """Everything under a tag in Redis but owners and expiry: states as bytes, positions as dicts."""
    client = redis.Redis.from_url(redis_url)
    keys = list(client.scan_iter(match=f"*{tag}*", count=5_000))
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.hmget(key, "format", "next", "clock") if key.endswith(b":next") else pipe.get(key)
    found = dict(zip(keys, pipe.execute(), strict=True))
    client.close()
    return found


def report_of(definitions, settings, *, merged=True):
    """What verification says of all that lies in Redis and in the files; not `merged`: the mirror may lag."""

    async def run():
        store = connect(settings.redis)
        logged = [Logged(each.name, each.feature_set, each.before) for each in definitions.services.values()]
        partitions = dict.fromkeys(definitions.sources, PARTITIONS)
        try:
            views = list(definitions.views.values())
            return await verify(views, logged, store, settings.data, partitions, merged=merged)
        finally:
            await store.close()

    return asyncio.run(run())


def same(one, other):
    """Whether two frames have the same rows, in any order, with every bit of every number."""
    order = ["_partition", "_offset"]
    return repr(one.sort(order).rows()) == repr(other.select(one.columns).sort(order).rows())


def blobs(found, view, partition):
    """The states of a view on a partition, by entity, among those found in Redis."""
    prefix = key_prefix(view.source.name, partition, view.key)
    mine = {key.removeprefix(prefix): blob for key, blob in found.items() if key.startswith(prefix)}
    mine.pop(b"next", None)
    return mine


class Read(NamedTuple):
    """A message of a topic."""

    partition: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


def messages(kafka, topic):
    """Every message of a topic, partition by partition."""
    options = {"group.id": "reader", "enable.partition.eof": True, "fetch.wait.max.ms": 10}
    consumer = Consumer({"bootstrap.servers": kafka, "enable.auto.commit": False, **options})
    waiting = set(AdminClient({"bootstrap.servers": kafka}).list_topics(topic, timeout=10).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, partition, 0) for partition in waiting])
    out = []
    while waiting:
        message = consumer.poll(20)
        assert message is not None, f"{topic}: no end of partitions {waiting}"
        if message.error() is None:
            headers = dict(message.headers() or [])
            out.append(Read(message.partition(), message.key(), message.value(), headers))
        else:
            assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
            waiting.discard(message.partition())
    consumer.close()
    return sorted(out, key=lambda read: read.partition)


def table(directory):
    """All rows of a folder of the offline store, in order of partition and offset."""
    frame = pl.DataFrame(read_table(directory))
    return frame.sort("_partition", "_offset", maintain_order=True)
