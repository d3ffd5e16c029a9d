"""Workers of one group that come and go while events flow, over a Redis Cluster."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import time

import pytest

from featurestore.online import connect
from tests.faults.child import start
from tests.featurestore.redis_cluster import RedisCluster
from tests.streams.shop import TAG, history, logs, produce, shop
from tests.streams.working import in_memory

PARTITIONS, LIMIT_SECONDS = 12, 90


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with RedisCluster("bundled", tmp_path_factory.mktemp("cluster")) as running:
        yield running


class Group:
    """Workers in processes of their own."""

    def __init__(self, kafka, redis_url, tag, folder):
        self.folder, self.workers = folder, []
        names = {"kafka": kafka, "redis": redis_url, "group": f"g-{tag}", "mode": "live", "chunk": "500"}
        names |= {"mirror": "false", "archive": "false", "session_timeout_ms": "1500"}
        self.environment = {f"ONCEFLOW_{name.upper()}": value for name, value in names.items()} | {TAG: tag}

    def join(self):
        place = self.folder / f"worker{len(self.workers)}"
        place.mkdir()
        environment = self.environment | {"ONCEFLOW_DATA": str(place / "data")}
        self.workers.append(start(["worker", "-m", "tests.faults.definitions"], place / "log", environment))

    def leave(self, number, how):
        os.kill(self.workers[number].pid, how)
        self.workers[number].join(LIMIT_SECONDS)
        return self.workers[number].exitcode

    def said(self):
        return "\n".join(path.read_text()[-2_000:] for path in self.folder.glob("worker*/log"))


def until(condition, group):
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, group.said()
        time.sleep(0.1)


async def stored(url, views):
    """By view and partition: the position, and every state."""
    store = connect(url)
    out = {}
    for view in views:
        positions = await store.positions(view.key, view.source.name, PARTITIONS)
        for partition, position in enumerate(positions):
            states = {e: b async for e, b in store.scan(view.key, view.source.name, partition)}
            out[view.key, partition] = position and position.next, states
    await store.close()
    return out


def reached(url, views):
    async def main():
        store = connect(url)
        found = [await store.positions(view.key, view.source.name, PARTITIONS) for view in views]
        await store.close()
        return {
            (view.key, partition): position.next if position else 0
            for view, positions in zip(views, found, strict=True)
            for partition, position in enumerate(positions)
        }

    return asyncio.run(main())


def wanted(definitions, records):
    _, ends = logs(definitions, records, partitions=PARTITIONS)
    return {
        (view.key, partition): ends[view.source.name, partition]
        for view in definitions.views.values()
        for partition in range(PARTITIONS)
        if ends[view.source.name, partition]
    }


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_three_workers_that_come_and_go_over_a_cluster_leave_what_one_replay_gives(pair, cluster, tmp_path):
    tag, rng = secrets.token_hex(4), random.Random(3)
    definitions, records = shop(tag), history(tag, 1_500, partitions=PARTITIONS)
    views, group = list(definitions.views.values()), Group(pair.kafka, cluster.url, tag, tmp_path)
    produce(pair.kafka, tag, records[:100], partitions=PARTITIONS)
    for _ in range(3):
        group.join()
    third = len(records) // 3
    produce(pair.kafka, tag, records[100:third], partitions=PARTITIONS)
    ends = wanted(definitions, records[:third])
    until(lambda: all(reached(cluster.url, views)[at] >= end for at, end in ends.items()), group)
    group.join()
    produce(pair.kafka, tag, records[third : 2 * third], partitions=PARTITIONS)
    time.sleep(rng.random())
    assert group.leave(0, signal.SIGTERM) == 0, group.said()
    group.leave(1, signal.SIGKILL)
    group.join()
    produce(pair.kafka, tag, records[2 * third :], partitions=PARTITIONS)
    ends = wanted(definitions, records)
    until(lambda: all(reached(cluster.url, views)[at] >= end for at, end in ends.items()), group)
    codes = [group.leave(number, signal.SIGTERM) for number in (2, 3, 4)]
    assert codes == [0, 0, 0], group.said()
    flow, _, _ = in_memory(definitions, logs(definitions, records, partitions=PARTITIONS)[0], partitions=PARTITIONS)
    found = asyncio.run(stored(cluster.url, views))
    for view in views:
        for partition in range(PARTITIONS):
            position, states = found[view.key, partition]
            assert (position or 0) == ends.get((view.key, partition), 0)
            assert states == flow.states[view.key].blobs(partition)
