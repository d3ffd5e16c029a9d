"""Faults one after another, drawn by a seed, while workers fold what is produced."""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections import Counter

import redis

from tests.faults.child import FAILING, STUCK
from tests.faults.group import PARTITIONS, Group, differences, different_files, reached, until, wanted
from tests.faults.proxy import Proxy
from tests.featurestore.redis_server import RedisServer
from tests.streams.shop import history, produce, shop, with_repeats

FEWEST, MOST = 2, 6  # workers
SESSION_SECONDS = 1.5  # as Group sets it
FAULTS = {
    "killed": "workers killed",
    "restarted": "workers told to stop, and others started",
    "zombie": "workers frozen for longer than their session, then let go on",
    "cut": "connections to Redis cut",
    "uncertain": "commits to Redis cut off from their worker, before or after they were done",
    "slow": "Redis silent for up to a second",
    "delayed": "replies of Redis 50 ms late for a while",
    "script": "scripts forgotten by Redis",
    "joined": "workers that joined in the middle of a rebalance",
    "failed": "workers in which a prediction failed",
    "stuck": "workers whose models were stuck for a while",
}
OF_THE_BROKER = {
    "broker": "Kafka killed and started again",
    "outage": "... after some time without it",
}
ENDED = {"ended": "workers in storms that ended by themselves, though no prediction failed"}


class Storm:
    """A group of workers over one topic set, a Redis of its own, and a sequence of faults.

    `kinds` are those that it is made of; those of the broker need a `broker`. `outage` is how long (seconds) that one
    is away then, at most. With `files` all workers write to one folder.
    """

    def __init__(
        self, kafka, folder, seed, orders=1_200, *, kinds=tuple(FAULTS), broker=None, outage=5.0, chunk=500, files=False
    ):
        self.rng, self.kafka, self.broker, self.outage = random.Random(seed), kafka, broker, outage
        self.kinds = [*kinds, *(OF_THE_BROKER if broker is not None else ())]
        self.tag = secrets.token_hex(4)
        self.definitions = shop(self.tag)
        self.records = with_repeats(history(self.tag, orders, seed=seed, partitions=PARTITIONS))
        self.done = Counter()
        (folder / "redis").mkdir(parents=True)
        (folder / "group").mkdir()
        self.server = RedisServer("bundled", folder / "redis")
        self.proxy = Proxy(self.server.port, seed)
        self.group = Group(kafka, "", self.tag, folder / "group", chunk=chunk, files=files)

    def __enter__(self):
        self.server.start()
        self.proxy.__enter__()
        self.group.environment["ONCEFLOW_REDIS"] = self.proxy.url
        return self

    def __exit__(self, *_):
        self.group.end()
        self.proxy.__exit__()
        self.server.kill()

    def run(self, faults):
        """Do as many faults as told, every kind in turn in an order of its own, then wait until all has been folded."""
        self.begin()
        cut = [100 + (len(self.records) - 100) * i // faults for i in range(faults + 1)]
        kinds = []
        for number in range(faults):
            kinds = kinds or self.rng.sample(self.kinds, len(self.kinds))
            half = (cut[number] + cut[number + 1]) // 2
            self.produce(self.records[cut[number] : half])
            time.sleep(self.rng.random())
            self._do(kinds.pop(), self.records[half : cut[number + 1]])
        self._enough()
        self.settle()
        spared = self.group.folder.glob(f"*/{FAILING}")  # workers that had nothing left to predict
        self.done["failed"] -= len(list(spared))
        self.done["uncertain"] = self.proxy.cuts.total()
        ended = sum(worker.exitcode == 1 for worker in self.group.workers)
        self.done["ended"] = ended - self.done["failed"]

    def begin(self, workers=3):
        """Start workers, with some records to begin with."""
        self.produce(self.records[:100])
        for _ in range(workers):
            self.group.join()

    def produce(self, records):
        produce(self.kafka, self.tag, records, partitions=PARTITIONS)

    def settle(self):
        """Wait until all has been folded, and files have followed; then stop the workers: did each stop in order?"""
        self.until_folded(self.records)
        if self.group.data is not None:
            until(lambda: not self.different_files(), self.group)
        return self.group.stop()

    def until_folded(self, records):
        """Wait until these records, the first ones, have been folded."""
        views, ends = list(self.definitions.views.values()), wanted(self.definitions, records)
        until(lambda: all(reached(self.server.url, views)[at] >= end for at, end in ends.items()), self.group)

    def differences(self):
        """What differs from a replay, of how much."""
        return differences(self.definitions, self.records, self.server.url)

    def different_files(self):
        """Which files differ from those of a replay."""
        return different_files(self.definitions, self.records, self.group.data)

    def _enough(self):
        """A worker may stop with an error, as those that were fenced or met a gap should; others take its place."""
        while len(self.group.alive) < FEWEST:
            self.group.join()

    def _do(self, kind, records):
        """Do a fault, and produce records while its effects last."""
        self._enough()
        worker = self.rng.choice(self.group.alive)
        if kind in OF_THE_BROKER:
            self.broker.kill()
            time.sleep(self.rng.uniform(0.5, 1) * self.outage if kind == "outage" else 0)
            self.broker.start()
        elif kind in ("failed", "stuck"):
            self._hold_up(worker, FAILING if kind == "failed" else STUCK)
        elif kind in ("uncertain", "delayed"):
            self.proxy.share, self.proxy.delay = (0.7, 0.0) if kind == "uncertain" else (0.0, 0.05)
        elif kind in ("cut", "slow", "script"):
            with self.server.admin() as admin:
                self._disturb(admin, kind)
        else:
            self._signal(worker, kind)
        cuts = self.proxy.cuts.total()
        self.produce(records)
        if self.proxy.share:
            until(lambda: self.proxy.cuts.total() > cuts, self.group)
        if self.proxy.share or self.proxy.delay:
            time.sleep(1 + self.rng.random())
            self.proxy.share = self.proxy.delay = 0.0
        self.done[kind] += 1

    def _signal(self, worker, kind):
        if kind == "killed":
            self.group.leave(worker, signal.SIGKILL)
        elif kind == "restarted":
            self.group.leave(worker, signal.SIGTERM)
            self.group.join()
        elif kind == "zombie":
            os.kill(self.group.workers[worker].pid, signal.SIGSTOP)
            time.sleep(SESSION_SECONDS * self.rng.uniform(1.5, 3))
            os.kill(self.group.workers[worker].pid, signal.SIGCONT)
        else:
            if len(self.group.alive) < MOST:
                self.group.join()
            time.sleep(self.rng.random())
            self.group.leave(worker, signal.SIGKILL)

    def _hold_up(self, worker, how):
        """Models get stuck for a while; a prediction fails when there is one to make, now or later."""
        (self.group.place(worker) / how).touch()
        if how == STUCK:
            time.sleep(2 * self.rng.random())
            (self.group.place(worker) / how).unlink()

    def _disturb(self, admin, kind):
        for _ in range(self.rng.randrange(1, 5)):
            if kind == "cut":
                for client in admin.client_list():
                    if client["id"] != str(admin.client_id()):
                        try:
                            admin.client_kill_filter(_id=client["id"])
                        except redis.ResponseError:
                            continue  # it has gone by itself
            elif kind == "slow":
                admin.execute_command("DEBUG", "SLEEP", self.rng.random())
            else:
                admin.script_flush()
            time.sleep(self.rng.random() / 10)
