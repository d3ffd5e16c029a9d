"""Faults one after another, drawn by a seed, while workers fold what is produced."""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections import Counter

import redis

from tests.faults.group import PARTITIONS, Group, differences, reached, until, wanted
from tests.featurestore.redis_server import RedisServer
from tests.streams.shop import history, produce, shop, with_repeats

FEWEST, MOST = 2, 6  # workers
SESSION_SECONDS = 1.5  # as Group sets it
FAULTS = {
    "killed": "workers killed",
    "restarted": "workers told to stop, and others started",
    "zombie": "workers frozen for longer than their session, then let go on",
    "cut": "connections to Redis cut",
    "slow": "Redis silent for up to a second",
    "script": "scripts forgotten by Redis",
    "joined": "workers that joined in the middle of a rebalance",
}


class Storm:
    """A group of workers over one topic set, a Redis of its own, and a sequence of faults."""

    def __init__(self, kafka, folder, seed, orders=1_200):
        self.rng, self.kafka = random.Random(seed), kafka
        self.tag = secrets.token_hex(4)
        self.definitions = shop(self.tag)
        self.records = with_repeats(history(self.tag, orders, seed=seed, partitions=PARTITIONS))
        self.done = Counter()
        (folder / "redis").mkdir(parents=True)
        (folder / "group").mkdir()
        self.server = RedisServer("bundled", folder / "redis")
        self.group = Group(kafka, self.server.url, self.tag, folder / "group")

    def run(self, faults):
        """Do as many faults as told, every kind in turn in an order of its own, then wait until all has been folded."""
        self.server.start()
        produce(self.kafka, self.tag, self.records[:100], partitions=PARTITIONS)
        for _ in range(3):
            self.group.join()
        cut = [100 + (len(self.records) - 100) * i // faults for i in range(faults + 1)]
        kinds = []
        for number in range(faults):
            kinds = kinds or self.rng.sample(list(FAULTS), len(FAULTS))
            produce(self.kafka, self.tag, self.records[cut[number] : cut[number + 1]], partitions=PARTITIONS)
            time.sleep(self.rng.random())
            self._do(kinds.pop())
        views, ends = list(self.definitions.views.values()), wanted(self.definitions, self.records)
        self._enough()
        until(lambda: all(reached(self.server.url, views)[at] >= end for at, end in ends.items()), self.group)
        self.group.stop()

    def differences(self):
        """What differs from a replay, of how much; the Redis is gone afterwards."""
        try:
            return differences(self.definitions, self.records, self.server.url)
        finally:
            self.server.kill()

    def _enough(self):
        """A worker may stop with an error, as those that were fenced or met a gap should; others take its place."""
        while len(self.group.alive) < FEWEST:
            self.group.join()

    def _do(self, kind):
        self._enough()
        worker = self.rng.choice(self.group.alive)
        if kind == "killed":
            self.group.leave(worker, signal.SIGKILL)
        elif kind == "restarted":
            self.group.leave(worker, signal.SIGTERM)
            self.group.join()
        elif kind == "zombie":
            os.kill(self.group.workers[worker].pid, signal.SIGSTOP)
            time.sleep(SESSION_SECONDS * self.rng.uniform(1.5, 3))
            os.kill(self.group.workers[worker].pid, signal.SIGCONT)
        elif kind == "joined":
            if len(self.group.alive) < MOST:
                self.group.join()
            time.sleep(self.rng.random())
            self.group.leave(worker, signal.SIGKILL)
        else:
            with self.server.admin() as admin:
                self._disturb(admin, kind)
        self.done[kind] += 1

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
