"""A backfill hands states to the stream with no gap and no double count."""

from __future__ import annotations

import asyncio

import polars as pl
import pytest

from batch import handover
from batch.events import chunks, last_offsets, logs_of
from batch.handover import hand_over
from featurestore import FencedError, StateError
from featurestore.flow import Flow
from featurestore.forgotten import Forgotten, masked_events
from featurestore.memory import MemoryStore
from tests.batch import stored
from tests.batch.stored import PARTITIONS, CardPayments, ShopPayments

MADE = [CardPayments, ShopPayments]


async def states(store, made):
    """All that the store has of a view."""
    return [
        ({e: b async for e, b in store.scan(made.key, "payments", p)}, position)
        for p, position in enumerate(await store.positions(made.key, "payments", PARTITIONS))
    ]


async def streamed(store, made, events):
    """Go on where the store says, as a worker does."""
    flow = Flow([made], [], {"payments": PARTITIONS})
    for partition in range(PARTITIONS):
        position = await store.claim(made.key, "payments", partition, "worker")
        flow.begin(made.key, ("payments", partition), position and (position.next, position.clock))
    for chunk in chunks(logs_of("payments", events), {"payments": 0}, 23):
        before = {p: flow.next_offset(made.key, p) for p in chunk.spans}
        for entity, partition in flow.lookups(chunk, {}).get(made.key, []):
            state = flow.states[made.key]
            [[blob]] = [
                row[partition : partition + 1]
                for row in await store.read(made.key, "payments", 2, [state.names[entity]])
            ]
            state.load(entity, partition, blob)
        flow.run(chunk, emit=False)
        spans = {p: (max(start, before[p] or start), end) for p, (start, end) in chunk.spans.items()}
        await store.commit(stored.commits(flow, {p: s for p, s in spans.items() if s[0] < s[1]}, "worker"))


@pytest.fixture(scope="module", params=[0, 40_000], ids=["in order", "out of order"])
def payments(request):
    return stored.history(disorder=request.param)["payments"]


@pytest.fixture(autouse=True)
def small_commits(monkeypatch):
    monkeypatch.setattr(handover, "EVENTS", 50)


def given(made, events, store, owner="backfill", ends=None):
    return asyncio.run(hand_over(made, events, ends or last_offsets(events), store, owner=owner, now=0))


@pytest.mark.parametrize("made", MADE, ids=lambda made: made.name)
@pytest.mark.parametrize("cut", [1, 70, 150])
def test_backfill_then_stream_is_one_uninterrupted_run(payments, made, cut):
    whole, parts = MemoryStore(), MemoryStore()
    asyncio.run(streamed(whole, made, payments))
    given(made, payments.filter(payments["_offset"] < cut), parts)
    asyncio.run(streamed(parts, made, payments))
    assert asyncio.run(states(parts, made)) == asyncio.run(states(whole, made))


@pytest.mark.parametrize("made", MADE, ids=lambda made: made.name)
@pytest.mark.parametrize("cut", [1, 70, 150])
def test_a_backfill_takes_a_stream_that_is_behind_further(payments, made, cut):
    whole, parts = MemoryStore(), MemoryStore()
    asyncio.run(streamed(whole, made, payments))
    asyncio.run(streamed(parts, made, payments.filter(payments["_offset"] < cut)))
    given(made, payments, parts)
    assert asyncio.run(states(parts, made)) == asyncio.run(states(whole, made))


def test_an_interrupted_hand_over_goes_on(payments):
    class Failing(MemoryStore):
        left = 3

        async def commit(self, commits):
            self.left -= 1
            if self.left < 0:
                raise InterruptedError
            await super().commit(commits)

    store, whole = Failing(), MemoryStore()
    with pytest.raises(InterruptedError):
        given(CardPayments, payments, store)
    store.left = 99
    given(CardPayments, payments, store, owner="again")
    given(CardPayments, payments, whole)
    assert asyncio.run(states(store, CardPayments)) == asyncio.run(states(whole, CardPayments))


def test_done_twice_is_done_once(payments):
    store = MemoryStore()
    first = given(CardPayments, payments, store)
    before = asyncio.run(states(store, CardPayments))
    again = given(CardPayments, payments, store)
    assert (first.next, again.states) == (again.next, 0)
    assert asyncio.run(states(store, CardPayments)) == before


def test_a_stream_that_is_ahead_is_left_alone(payments):
    store = MemoryStore()
    asyncio.run(streamed(store, CardPayments, payments))
    before = asyncio.run(states(store, CardPayments))
    with pytest.raises(StateError, match=r"card_payments on payments:\d: the stream has come to offset \d+"):
        given(CardPayments, payments.filter(payments["_offset"] < 100), store)
    assert asyncio.run(states(store, CardPayments)) == before


def test_a_worker_at_work_is_fenced(payments):
    store = MemoryStore()
    asyncio.run(streamed(store, CardPayments, payments.filter(payments["_offset"] < 100)))
    given(CardPayments, payments.filter(payments["_offset"] < 100), store)
    with pytest.raises(FencedError):
        asyncio.run(_commit_as_worker(store))


async def _commit_as_worker(store):
    flow = Flow([CardPayments], [], {"payments": PARTITIONS})
    await store.commit(stored.commits(flow, {("payments", 0): (100, 101)}, "worker"))


def test_offsets_without_events_at_the_end_are_covered(payments):
    store = MemoryStore()
    ends = {partition: end + 7 for partition, end in last_offsets(payments).items()}
    assert given(CardPayments, payments, store, ends=ends).next == ends
    positions = asyncio.run(store.positions(CardPayments.key, "payments", PARTITIONS))
    assert {p: position.next for p, position in enumerate(positions)} == ends


def erased(payments, cut):
    """The payments with one card erased at an offset, and what is written down of that."""
    entries = [Forgotten("card", "sc3", ("card",), ("card",), cut, cut)]
    parts = [masked_events(stored.payments, frame, entries) for frame in logs_of("payments", payments).values()]
    return pl.concat(parts), dict.fromkeys(range(PARTITIONS), entries)


def test_a_card_that_was_erased_behind_the_stored_states_is_gone_after_the_backfill(payments):
    events, forgotten = erased(payments, 120)
    store, whole, ends = MemoryStore(), MemoryStore(), last_offsets(payments)
    asyncio.run(streamed(store, CardPayments, payments.filter(payments["_offset"] < 70)))
    asyncio.run(hand_over(CardPayments, events, ends, store, owner="backfill", now=0, forgotten=forgotten))
    given(CardPayments, events, whole, ends=ends)
    assert asyncio.run(states(store, CardPayments)) == asyncio.run(states(whole, CardPayments))
