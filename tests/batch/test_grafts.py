"""A changed view takes over its older definition's states, and the stream goes on as if they had always been its."""

from __future__ import annotations

import asyncio
import json

import pytest

from batch import grafts
from batch.events import last_offsets
from batch.grafts import older, take_over
from batch.handover import hand_over
from featurestore import Count, DefinitionError, Last, Max, Mean, Source, StateError, Sum, TopK, session, view
from featurestore.engine import ViewState
from featurestore.flow import Flow
from featurestore.grafting import graft_of
from featurestore.memory import MemoryStore
from featurestore.online import connect
from featurestore.plan import compiled
from featurestore.stores import UNFINISHED, Position
from tests.batch import stored
from tests.batch.stored import PARTITIONS, CardPayments, card, payments
from tests.batch.test_handover import erased, states, streamed
from tests.featurestore.helpers import read
from tests.featurestore.redis_server import SERVERS, RedisServer


@view(entity=card, source=payments, windows=["20s", "lifetime"])
class Changed:
    """As `CardPayments`, with some more and one less."""

    n = Count()
    spent = Sum("doubled")
    biggest = Max("amount", windows=["20s"])
    shops = TopK("shop", k=2, windows=["lifetime"])
    visit = Last("shop", windows=[session("3s")])
    mean = Mean("amount", windows=["20s", "1m"])


KEPT = ("n_20s", "n_lifetime", "spent_20s", "spent_lifetime")  # though 1m is made of the same tiles as 20s
ANEW = ("biggest_20s", "shops_lifetime", "visit_session_3s", "mean_20s", "mean_1m")


@pytest.fixture(params=[0, 40_000], ids=["in order", "out of order"])
def history(request):
    return stored.history(disorder=request.param)["payments"]


@pytest.fixture(autouse=True)
def small_commits(monkeypatch):
    monkeypatch.setattr(grafts, "STATES", 2)


async def grafted(store, events, *, old=CardPayments, made=Changed, ends=None, owner="backfill"):
    """What was kept, or why nothing was."""
    graft = graft_of(json.loads(json.dumps(old.spec())), made)
    return await take_over(graft, events, ends or last_offsets(events), store, owner=owner, now=0)


async def completed(store, events, made=Changed):
    await hand_over(made, events, last_offsets(events), store, owner="more", now=0)
    return await states(store, made)


async def wanted(events):
    """What an uninterrupted run leaves."""
    store = MemoryStore()
    await streamed(store, Changed, events)
    return await states(store, Changed)


def values(made, found):
    """Features of every card as of its newest event, from what a store has."""
    state = ViewState(compiled(made), PARTITIONS)
    for partition, (blobs, _) in enumerate(found):
        for entity, blob in blobs.items():
            state.load(int(state.number([entity])[0]), partition, blob)
    return [read(state, (f"c{i}",)) for i in range(9)]


@pytest.mark.parametrize("cut", [1, 70, 150, 999])
def test_take_over_then_stream_is_one_uninterrupted_run(history, cut):
    async def work():
        store = MemoryStore()
        await streamed(store, CardPayments, history.filter(history["_offset"] < cut))
        before = await states(store, CardPayments)
        kept = await grafted(store, history)
        assert (kept.of, kept.features, kept.anew, kept.since) == (CardPayments.key, KEPT, ANEW, {})
        after = await states(store, Changed)
        assert kept.states == sum(len(blobs) for blobs, _ in after)
        assert [position for _, position in after] == [position for _, position in before]
        assert after == await wanted(history.filter(history["_offset"] < cut))
        assert await states(store, CardPayments) == before
        await streamed(store, Changed, history)
        assert await states(store, Changed) == await wanted(history)

    asyncio.run(work())


def test_a_backfill_goes_on_where_the_old_states_stood(history):
    async def work():
        store = MemoryStore()
        await streamed(store, CardPayments, history.filter(history["_offset"] < 100))
        await grafted(store, history)
        assert await completed(store, history) == await wanted(history)
        assert await grafted(store, history) == "it has states of its own, which go on"

    asyncio.run(work())


class Failing(MemoryStore):
    """Fails at a commit, as a process that ends there."""

    left = 99

    async def commit(self, commits):
        self.left -= 1
        if self.left < 0:
            raise InterruptedError
        await super().commit(commits)


@pytest.mark.parametrize("commits", range(10))
def test_an_interrupted_run_is_done_again(history, commits):
    async def work():
        store = Failing()
        await streamed(store, CardPayments, history.filter(history["_offset"] < 100))
        store.left = commits
        try:
            await grafted(store, history)
        except InterruptedError:
            store.left = 99
            await grafted(store, history, owner="again")
        store.left = 99
        assert await completed(store, history) == await wanted(history)

    asyncio.run(work())


def test_nobody_goes_on_from_states_that_are_not_all_there(history):
    async def work():
        store = Failing()
        await streamed(store, CardPayments, history)
        store.left = 1
        with pytest.raises(InterruptedError):
            await grafted(store, history)
        position = await store.claim(Changed.key, "payments", 0, "worker")
        assert position.next == UNFINISHED
        with pytest.raises(StateError, match="a backfill was interrupted"):
            Flow([Changed], [], {"payments": PARTITIONS}).begin(Changed.key, ("payments", 0), (position.next, 0))
        store.left = 99
        assert await completed(store, history) == await wanted(history)  # also with no older definition

    asyncio.run(work())


@pytest.mark.parametrize("which", SERVERS)
def test_redis_keeps_what_memory_does_though_it_is_killed(which, tmp_path, history):
    async def work(server):
        store = connect(server.url)
        await streamed(store, CardPayments, history.filter(history["_offset"] < 100))
        commit, left = store.commit, [3]

        async def failing(commits):
            left[0] -= 1
            if left[0] < 0:
                raise InterruptedError
            await commit(commits)

        store.commit = failing
        with pytest.raises(InterruptedError):
            await grafted(store, history)
        server.kill()
        server.start()
        left[0] = 999
        assert (await grafted(store, history, owner="again")).features == KEPT
        assert await completed(store, history) == await wanted(history)
        await store.close()

    with RedisServer(which, tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        asyncio.run(work(server))


def test_events_that_end_too_early_are_told(history):
    async def work():
        store = MemoryStore()
        await streamed(store, CardPayments, history)
        short = history.filter(history["_offset"] < 100)
        assert "these events end before 100" in await grafted(store, short)
        with pytest.raises(StateError, match=r"do not begin where the log does: let a worker of card_payments@\w+"):
            await grafted(store, short.filter(short["_offset"] >= 10))
        assert await store.positions(Changed.key, "payments", PARTITIONS) == [None] * PARTITIONS

    asyncio.run(work())


def test_history_without_its_beginning_keeps_what_was_kept(history):
    async def work():
        store = MemoryStore()
        await streamed(store, CardPayments, history.filter(history["_offset"] < 100))
        kept = await grafted(store, history.filter(history["_offset"] >= 50))
        assert kept.since == {0: 50, 1: 50}
        await streamed(store, Changed, history)
        await streamed(store, CardPayments, history)
        return [values(made, await states(store, made)) for made in (CardPayments, Changed)]

    old, new = asyncio.run(work())
    assert [{name: row[name] for name in KEPT} for row in new] == [{name: row[name] for name in KEPT} for row in old]


def test_a_card_that_was_erased_behind_the_old_states_is_not_taken_over(history):
    events, forgotten = erased(history, 120)

    async def work():
        store, whole = MemoryStore(), MemoryStore()
        await streamed(store, CardPayments, history.filter(history["_offset"] < 70))
        graft, ends = graft_of(json.loads(json.dumps(CardPayments.spec())), Changed), last_offsets(history)
        await take_over(graft, events, ends, store, owner="backfill", now=0, forgotten=forgotten)
        found = {entity for blobs, _ in await states(store, Changed) for entity in blobs}
        assert (b"sc3" in found, len(found)) == (False, 8)
        for each in (store, whole):
            await hand_over(Changed, events, ends, each, owner="more", now=0, forgotten=forgotten)
        assert await states(store, Changed) == await states(whole, Changed)

    asyncio.run(work())


def test_a_worker_that_still_writes_is_noticed(history):
    async def work():
        store = MemoryStore()
        await streamed(store, CardPayments, history)

        class Busy(MemoryStore):
            async def positions(self, key, topic, partitions):
                found = await super().positions(key, topic, partitions)
                behind = key == CardPayments.key
                return [at and Position(at.next - behind, at.clock) for at in found]

        busy = Busy()
        busy._shelves = store._shelves
        with pytest.raises(StateError, match="a worker writes its states"):
            await grafted(busy, history)
        assert await store.positions(Changed.key, "payments", PARTITIONS) == [None] * PARTITIONS

    asyncio.run(work())


def test_old_states_that_cannot_be_read_are_of_no_use(history):
    async def work():
        store = MemoryStore()
        await streamed(store, CardPayments, history)
        for partition in range(PARTITIONS):
            shelf = store._shelf(CardPayments.key, "payments", partition)
            shelf.states = {entity: (b"\x03" + blob[1:], expiry) for entity, (blob, expiry) in shelf.states.items()}
        assert "written by another version" in await grafted(store, history)
        with pytest.raises(StateError, match="with the whole log, all is folded anew"):
            await grafted(store, history.filter(history["_offset"] >= 10))
        assert await completed(store, history) == await wanted(history)

    asyncio.run(work())


def test_integers_that_may_overflow_are_folded_anew():
    source = Source("numbers", schema={"card": str, "i": int, "at": "timestamp[ms]"}, event_time="at", key="card")
    made = view(entity=card, source=source, windows=["20s"])
    old, new = made(type("Sums", (), {"t": Sum("i")})), made(type("Sums", (), {"t": Sum("i"), "n": Count()}))
    events = stored.checked_events(source, stored.pl.DataFrame({"card": ["a"] * 3, "i": [2**62] * 3, "at": [0, 1, 2]}))

    async def work():
        store = MemoryStore()
        await hand_over(old, events, {0: 3}, store, owner="a", now=0)
        return await grafted(store, events, old=old, made=new)

    assert "sums may overflow" in asyncio.run(work())


def test_the_newest_definition_that_has_states_is_the_one(history):
    async def work():
        store = MemoryStore()
        assert await older(Changed, [CardPayments.spec()], PARTITIONS, store) == (None, "")
        await streamed(store, CardPayments, history)
        specs = [CardPayments.spec(), {**CardPayments.spec(), "fingerprint": "beef"}, Changed.spec()]
        graft, reason = await older(Changed, specs, PARTITIONS, store)
        assert (graft.old.view.key, reason) == (CardPayments.key, "")
        await store.claim("card_payments@beef", "payments", 0, "x")
        store._shelf("card_payments@beef", "payments", 0).position = Position(1, 1)
        graft, reason = await older(Changed, specs, PARTITIONS, store)
        assert graft is None
        assert "card_payments@beef is of another source" in reason

    asyncio.run(work())


def test_a_definition_with_nothing_in_common_is_of_no_use():
    @view(entity=card, source=payments, windows=["20s"])
    class Other:
        low = Max("amount")

    with pytest.raises(DefinitionError, match="kept nothing that its states now need"):
        graft_of(CardPayments.spec(), Other)
