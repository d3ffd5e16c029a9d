"""Workers of one consumer group in processes of their own, and what they leave."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import polars as pl
from confluent_kafka.admin import AdminClient

from featurestore.online import connect
from tests.faults.child import FAULTS, start
from tests.streams.shop import TAG, logs
from tests.streams.working import in_memory, same, table

PARTITIONS, LIMIT_SECONDS = 12, 90


class Group:
    """Workers in processes of their own, worker n with a folder `worker<n>`; with `files` these share one for data."""

    def __init__(self, kafka, redis_url, tag, folder, *, module="tests.faults.definitions", chunk=500, files=False):
        self.folder, self.workers, self.module = folder, [], module
        names = {"kafka": kafka, "redis": redis_url, "group": f"g-{tag}", "mode": "live", "chunk": str(chunk)}
        names |= {"mirror": str(files), "archive": str(files), "grid": "64", "session_timeout_ms": "1500"}
        self.data = folder / "data" if files else None
        self.environment = {f"ONCEFLOW_{name.upper()}": value for name, value in names.items()} | {TAG: tag}

    def join(self):
        place = self.place(len(self.workers))
        place.mkdir()
        environment = self.environment | {"ONCEFLOW_DATA": str(self.data or place / "data"), FAULTS: str(place)}
        self.workers.append(start(["worker", "-m", self.module], place / "log", environment))

    def place(self, number):
        return self.folder / f"worker{number}"

    def memory(self, number):
        """What a worker holds in memory, in MB."""
        pages = Path(f"/proc/{self.workers[number].pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") >> 20

    def leave(self, number, how):
        if self.workers[number].exitcode is None:
            os.kill(self.workers[number].pid, how)
        self.workers[number].join(LIMIT_SECONDS)
        return self.workers[number].exitcode

    def replace(self, number, how):
        """Have a worker leave; returns when its successor is the group's member in its place."""
        self.leave(number, how)
        until(lambda: self._members() == len(self.alive), self)
        self.join()
        until(lambda: self._members() == len(self.alive), self)

    def _members(self):
        name = self.environment["ONCEFLOW_GROUP"]
        admin = AdminClient({"bootstrap.servers": self.environment["ONCEFLOW_KAFKA"]})
        return len(admin.describe_consumer_groups([name])[name].result(20).members)

    @property
    def alive(self):
        return [number for number, worker in enumerate(self.workers) if worker.is_alive()]

    def stop(self):
        """Tell all to stop, and whether each did so in order."""
        alive = self.alive
        for number in alive:
            os.kill(self.workers[number].pid, signal.SIGCONT)
        return [self.leave(number, signal.SIGTERM) for number in alive]

    def end(self):
        """Kill those that are left."""
        for number in self.alive:
            self.leave(number, signal.SIGKILL)

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


def differences(definitions, records, url):
    """How many positions and states differ from those of one replay of the records, of how many."""
    flow, _, _ = in_memory(definitions, logs(definitions, records, partitions=PARTITIONS)[0], partitions=PARTITIONS)
    ends = wanted(definitions, records)
    found = asyncio.run(stored(url, list(definitions.views.values())))
    wrong = compared = 0
    for (key, partition), (position, states) in found.items():
        expected = flow.states[key].blobs(partition)
        wrong += (position or 0) != ends.get((key, partition), 0)
        wrong += sum(states.get(entity) != expected.get(entity) for entity in states.keys() | expected.keys())
        compared += 1 + len(expected)
    return wrong, compared


def different_files(definitions, records, data):
    """The archives, and the mirrors of views keyed as their topics, that differ from those of one replay."""
    good, _ = logs(definitions, records, partitions=PARTITIONS)
    _, outputs, _ = in_memory(definitions, good, partitions=PARTITIONS)
    views = definitions.views.values()
    wanted = {f"features/{view.name}": outputs[view.key].events for view in views if view.keyed}
    for source in {view.source.name: view.source for view in views}.values():
        frame = pl.concat([frame for (topic, _), frame in good.items() if topic == source.name])
        wanted[f"events/{source.name}"] = frame.select("_partition", "_offset", "_timestamp", *source.schema)
    return [name for name, rows in wanted.items() if not (data / name).exists() or not same(rows, table(data / name))]
