"""Killing workers at random moments, and comparing what is left with a run that nothing disturbed."""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import redis

from learner import snapshot
from onceflow import embedded
from tests.faults.child import start
from tests.streams.shop import TAG, history, produce, shop
from tests.streams.working import messages, settings_of, stored, table, work

LIMIT_SECONDS = 60


@dataclass
class Case:
    """A fixed input, and how workers take it: chunks so small that a kill hits every stage."""

    tag: str
    orders: int
    chunk: int = 300
    grid: int = 2_000
    seed: int = 0
    records: list = field(init=False)

    def __post_init__(self):
        self.definitions = shop(self.tag)
        self.records = history(self.tag, self.orders, seed=self.seed)

    def settings(self, pair, data):
        return settings_of(pair, self.tag, data, chunk=self.chunk, grid=self.grid)


@contextmanager
def embedded_servers(redis_url=None):
    """A broker, and a Redis unless one is given, for one run only."""
    with embedded.kafka() as broker, embedded.redis() as store:
        yield SimpleNamespace(kafka=broker.address, redis_url=redis_url or f"redis://{store.address}/0")


def undisturbed(case, data):
    """What one worker leaves that nobody disturbs."""
    with embedded_servers() as pair:
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
    from learner.loop import ServiceLoop

    kept = snapshot.read(path)
    return {**ServiceLoop.load(service, kept).summary(), "positions": kept["positions"]}


def differences(one, other):
    """By store, how many of its items differ."""
    return {
        name: sum(one[name].get(key, None) != other[name].get(key, None) for key in one[name].keys() | other[name].keys())
        for name in one
    }


@dataclass
class Killer:
    """Runs workers of a case on a pair of servers, kills each one, and lets the last run to the end."""

    case: Case
    pair: object
    data: Path
    moments: Counter = field(default_factory=Counter)  # of the kills, by what the worker was doing

    def run(self, kills, seed):
        """Kill `kills` workers at moments that the seed tells, then let one finish."""
        rng = random.Random(seed)
        shares = sorted(rng.random() * 1.1 for _ in range(kills))
        for share in shares:
            self._run(lambda process, s=share: self._moment(process, s, rng))
        while self._run(lambda _: None) != 0:
            self.moments["failed"] += 1
            assert self.moments["failed"] < 5, self.log()

    def log(self):
        """What the workers said."""
        return (self.data / "worker.log").read_text()[-4_000:]

    def _run(self, moment):
        self.data.mkdir(parents=True, exist_ok=True)
        settings = self.case.settings(self.pair, self.data)
        names = ("kafka", "redis", "data", "group", "mode", "grid", "chunk")
        environment = {f"ONCEFLOW_{name.upper()}": str(getattr(settings, name)) for name in names}
        arguments = ["worker", "-m", "tests.faults.definitions", "--until-end"]
        process = start(arguments, self.data / "worker.log", {**environment, TAG: self.case.tag})
        doing = moment(process)
        if doing is not None:
            process.kill()
            self.moments[doing] += 1
        process.join(LIMIT_SECONDS)
        assert process.exitcode is not None, f"no end after {LIMIT_SECONDS} s: {self.log()}"
        return process.exitcode

    def _moment(self, process, share, rng):
        """Wait until a share of the work is done, and a little; what the worker is doing then, None if it has ended.

        A share above one is for the time after all is stored, and some workers do not get beyond their start.
        """
        if rng.random() < 0.2:
            process.join(rng.random())
            return None if process.exitcode is not None else "starting"
        with redis.Redis.from_url(self.pair.redis_url) as client:
            while self._done(client) < min(share, 1) and process.is_alive():
                time.sleep(0.002)
        process.join(rng.random() * (0.3 if share > 1 else 0.05))
        return None if process.exitcode is not None else "ending" if share > 1 else "working"

    def _done(self, client):
        """How much of the input has been stored by all, from 0 to 1."""
        keys = [key for key in client.scan_iter(match=f"*{self.case.tag}*predict.*:next", count=10_000)]
        return sum(int(client.hget(key, "next") or 0) for key in keys) / self._total

    @property
    def _total(self):
        asked = sum(record.topic.startswith(("orders", "returns")) for record in self.case.records)
        return asked * len(self.case.definitions.services)
