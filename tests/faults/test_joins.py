from __future__ import annotations

import asyncio
import json
import random
import secrets
import signal
import time
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import redis

from featurestore.online import connect
from onceflow.ends import spans
from onceflow.reading import build_reader
from serving.reader import Lookup
from tests.faults.group import Group
from tests.faults.kills import LIMIT_SECONDS, Killer
from tests.streams.meetings import PARTITIONS, features, history, meetings, pairs, produce
from tests.streams.working import messages, settings_of

MODULE = "tests.faults.joined_definitions"


@dataclass
class Case:
    """Payments and logins, and how workers take them: chunks so small that a kill hits every stage."""

    tag: str
    count: int
    mode: str
    partitions: int = PARTITIONS
    records: list = field(init=False)
    expected: dict = field(init=False)  # the pairs by id

    def __post_init__(self):
        self.definitions = meetings(self.tag)
        self.records = history(self.tag, self.count, partitions=self.partitions)
        self.expected = pairs(self.records)[0]
        (self.joined,) = self.definitions.joins
        (self.view,) = (view for view in self.definitions.views.values() if view.source is self.joined)

    def settings(self, pair, data):
        return settings_of(pair, self.tag, data, mode=self.mode, chunk=100, grid=2_000)


class JoinKiller(Killer):
    """Kills workers that make pairs, or fold them."""

    def _done(self, client):
        case = self.case
        return (made(case, client) / len(case.records) + folded(case, client) / len(case.expected)) / 2


def online(case, pair, data):
    """What is served of every card as of the newest pair, and what an oracle of the two logs says."""
    expected = case.expected
    cards = sorted({each["card"] for each in expected.values()})
    as_of = max(each["pair_at"] for each in expected.values())

    async def read():
        settings = case.settings(pair, data)
        store = connect(settings.redis)
        try:
            reader = build_reader(case.definitions, settings, store)
            return (await reader.read([Lookup(case.view, [(card,) for card in cards], as_of)]))[0]
        finally:
            await store.close()

    served = {}
    for card, row in zip(cards, asyncio.run(read()).iter_rows(named=True), strict=True):
        served[card] = {name: row[name] for name in features({}, card, 0)}
        for name in ("on_lifetime", "on_5m"):
            served[card][name] = {key: count for key, count in dict(row[name]).items() if key != "other" or count}
    return served, {card: features(expected, card, as_of) for card in cards}


def check(case, pair, data):
    served, expected = online(case, pair, data)
    assert served == expected
    sent = {json.loads(read.value)["pair_id"] for read in messages(pair.kafka, case.joined.name)}
    assert sent == set(case.expected)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_workers_killed_in_a_replay_lose_and_double_no_pair(embedded_pair, tmp_path):
    case = Case(secrets.token_hex(4), 3_000, "replay")
    produce(embedded_pair.kafka, case.tag, case.records)
    killer = JoinKiller(case, embedded_pair, tmp_path, module=MODULE)
    killer.run(kills=10, seed=1)
    assert sum(killer.moments.values()) - killer.moments["failed"] >= 8, killer.moments
    check(case, embedded_pair, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_workers_killed_while_they_join_live_lose_and_double_no_pair(pair, tmp_path):
    case, rng = Case(secrets.token_hex(4), 3_000, "live"), random.Random(2)
    killer = JoinKiller(case, pair, tmp_path, module=MODULE, ends=False)
    cuts = [0, *sorted(rng.sample(range(len(case.records)), 5)), len(case.records)]
    with redis.Redis.from_url(pair.redis_url) as client:
        for begin, end in pairwise(cuts):
            produce(pair.kafka, case.tag, case.records[begin:end])
            process, done = killer.start(), killer._done(client)
            until(lambda done=done: killer._done(client) > done, killer.log)
            process.join(rng.random() * 0.1)
            process.kill()
            killer.ended(process)
        process = killer.start()
        until(lambda: finished(case, pair, client), killer.log)
    process.kill()
    check(case, pair, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_workers_of_a_group_that_come_and_go_lose_and_double_no_pair(pair, tmp_path):
    case, rng = Case(secrets.token_hex(4), 3_000, "live", partitions=6), random.Random(5)
    group = Group(pair.kafka, pair.redis_url, case.tag, tmp_path, module=MODULE)
    third = len(case.records) // 3
    thirds = case.records[:third], case.records[third : 2 * third], case.records[2 * third :]
    with redis.Redis.from_url(pair.redis_url) as client:
        produce(pair.kafka, case.tag, thirds[0], partitions=case.partitions)
        group.join()
        group.join()
        until(lambda: made(case, client) >= len(thirds[0]), group.said)
        produce(pair.kafka, case.tag, thirds[1], partitions=case.partitions)
        time.sleep(rng.random())
        group.leave(0, signal.SIGKILL)
        group.join()
        produce(pair.kafka, case.tag, thirds[2], partitions=case.partitions)
        time.sleep(rng.random())
        group.leave(1, signal.SIGTERM)
        group.join()
        until(lambda: finished(case, pair, client), group.said)
    assert group.stop() == [0, 0], group.said()
    check(case, pair, tmp_path)


def until(condition, said):
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(0.01)


def made(case, client):
    """The offsets of both logs up to which pairs were made, together."""
    keys = client.scan_iter(match=f"*{case.tag}*join.made*:next", count=10_000)
    return sum(int(client.hget(key, "next") or 0) for key in keys)


def folded(case, client):
    """How many messages of the joined topic were folded."""
    keys = client.scan_iter(match=f"*{case.view.key}:next", count=10_000)
    return sum(int(client.hget(key, "next") or 0) for key in keys)


def finished(case, pair, client):
    """Whether both logs have been joined, and all pairs folded: first the one, or there may be more pairs by then."""
    if made(case, client) < len(case.records):
        return False
    ends = spans(pair.kafka, {case.joined.name: case.partitions})[case.joined.name]
    return folded(case, client) == sum(span.end for span in ends)
