"""Killing workers at random moments, and comparing what is left with a run that nothing disturbed."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import redis

from learner import snapshot
from learner.loop import ServiceLoop
from tests.faults.child import start
from tests.streams.shop import TAG, history, produce, shop, with_erasures, with_repeats
from tests.streams.working import messages, own_servers, settings_of, stored, table, work

LIMIT_SECONDS = 60
AFTER = 1.0  # the share of the work that is done when only files are left to be written


@dataclass
class Case:
    """A fixed input, and how workers take it: chunks so small that a kill hits every stage."""

    tag: str
    orders: int
    chunk: int = 600
    grid: int = 2_000
    seed: int = 0
    erasing: bool = False
    records: list = field(init=False)

    def __post_init__(self):
        self.definitions = shop(self.tag)
        self.records = with_repeats(history(self.tag, self.orders, seed=self.seed))
        if self.erasing:
            self.records = with_erasures(self.tag, self.records, seed=self.seed)

    def settings(self, pair, data):
        return settings_of(pair, self.tag, data, chunk=self.chunk, grid=self.grid)


def undisturbed(case, data):
    """What one worker leaves that nobody disturbs."""
    with own_servers() as pair:
        produce(pair.kafka, case.tag, case.records)
        work(case.definitions, case.settings(pair, data))
        return outcome(case, pair, data)


def outcome(case, pair, data):
    """All that a run leaves, by store and name, in a form that can be compared."""
    out = {"states": stored(pair.redis_url, case.tag)}
    out["archive"] = {
        str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (data / "events").rglob("*.parquet")
    }
    folders = [f"features/{name}" for name in case.definitions.views]
    folders += [f"predictions/{name}" for name in case.definitions.services]
    out["mirror"] = {name: table(data / name).write_ipc(None).getvalue() for name in folders}
    out["predictions"] = {
        f"{name} {read.key}": read.value
        for name in case.definitions.services
        for read in reversed(messages(pair.kafka, f"predictions.{name}"))
    }
    out["repeated predictions"] = {
        f"{name} {read.key}": ...
        for name in case.definitions.services
        for read in messages(pair.kafka, f"predictions.{name}")
        if read.value != out["predictions"][f"{name} {read.key}"]
    }
    out["learner"] = {
        f"{name} {key}": value
        for name, service in case.definitions.services.items()
        for key, value in _learnt(service, data / "snapshots" / f"{name}.snapshot").items()
    }
    return out


def _learnt(service, path):
    kept = snapshot.read(path)
    return {**ServiceLoop.load(service, kept).summary(), "positions": kept["positions"]}


def differences(one, other):
    """By store, how many of its items differ."""
    out = {}
    for name, items in one.items():
        keys = items.keys() | other[name].keys()
        out[name] = sum(items.get(key) != other[name].get(key) for key in keys)
    return out


@dataclass
class Killer:
    """Runs workers of a case on a pair of servers, kills each one, and lets the last run to the end."""

    case: Case
    pair: object
    data: Path
    moments: Counter = field(default_factory=Counter)  # of the kills, by what the worker was doing
    module: str = "tests.faults.definitions"
    ends: bool = True  # whether workers stop at the end of the topics

    def run(self, kills, seed):
        """Kill `kills` workers at moments that the seed tells, then let one finish."""
        rng = random.Random(seed)
        shares = sorted(rng.random() for _ in range(kills - 1))
        for share in [*shares, AFTER]:
            process = self.start()
            doing = self._moment(process, share, rng)
            if process.exitcode is None:
                process.kill()
                self.moments[doing] += 1
            self.ended(process)
        self.finish()

    def finish(self):
        """Run workers until one comes to the end; a worker may stop with an error, but not time after time."""
        while self.ended(self.start()) != 0:
            self.moments["failed"] += 1
            assert self.moments["failed"] < 10, self.log()

    def start(self):
        """Start a worker."""
        self.data.mkdir(parents=True, exist_ok=True)
        settings = self.case.settings(self.pair, self.data)
        names = ("kafka", "redis", "data", "group", "mode", "grid", "chunk", "session_timeout_ms")
        environment = {f"ONCEFLOW_{name.upper()}": str(getattr(settings, name)) for name in names}
        arguments = ["worker", "-m", self.module, *["--until-end"] * self.ends]
        return start(arguments, self.data / "worker.log", {**environment, TAG: self.case.tag})

    def ended(self, process):
        """Wait for a worker's end; returns its exit code."""
        process.join(LIMIT_SECONDS)
        assert process.exitcode is not None, f"no end after {LIMIT_SECONDS} s: {self.log()}"
        return process.exitcode

    def log(self):
        """What the workers said."""
        return (self.data / "worker.log").read_text()[-4_000:]

    def until(self, process, share):
        """Wait until a share of the work is done, or the worker has ended."""
        with redis.Redis.from_url(self.pair.redis_url) as client:
            while process.is_alive() and self._done(client) < share:
                time.sleep(0.002)

    def _moment(self, process, share, rng):
        """Wait for the moment to kill; returns what the worker is doing then.

        Some workers do not get beyond their start.
        """
        if share != AFTER and rng.random() < 0.2:
            process.join(rng.random())
            return "starting"
        self.until(process, share)
        process.join(rng.random() * 0.05)
        return "ending" if share == AFTER else "working"

    def _done(self, client):
        """How much of the input has been processed and stored, from 0 to 1."""
        asked = sum(record.topic.startswith(("orders", "returns")) for record in self.case.records)
        keys = list(client.scan_iter(match=f"*{self.case.tag}*predict.*:next", count=10_000))
        return sum(int(client.hget(key, "next") or 0) for key in keys) / (asked * len(self.case.definitions.services))


@dataclass
class RedisKiller(Killer):
    """Kills Redis under workers, and takes some of the last writes away from its log before it is back."""

    server: object = None

    def run(self, kills, seed):
        """Kill Redis `kills` times at moments that the seed tells, then let a worker finish."""
        rng = random.Random(seed)
        process = self.start()
        for share in sorted(rng.random() for _ in range(kills)):
            while self._until_ended(process, share):
                self.moments["stopped"] += 1  # by the refusal of a batch that does not follow what is stored
                process = self.start()
            self.server.kill()
            log = self.server.directory / "appendonly.aof"
            os.truncate(log, int(log.stat().st_size * rng.uniform(0.5, 1)))
            self.server.start()
            self.moments["rolled back"] += 1
        self.ended(process)
        self.finish()

    def _until_ended(self, process, share):
        """Wait for the moment to kill; whether the worker has ended before, and not because all is done."""
        self.until(process, share)
        return process.exitcode is not None and process.exitcode != 0
