"""What every online store must do: one kit, run on each of them."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.errors import DataError, FencedError, FormatError, GapError, StateError
from featurestore.keys import encode_entity, key_prefix, position_key
from featurestore.memory import MemoryStore
from featurestore.online import FORMAT, Commit, Position, RedisStore, Request
from tests.featurestore.redis_cluster import RedisCluster
from tests.featurestore.redis_server import SERVERS, RedisServer

HOSTILE = [encode_entity((text,)) for text in ["\x00", "{}", ":next", "a\nb", "é😀", "next", ""]]


class MemoryRig:
    """Opens the store under test and does to it what only another program could."""

    def __init__(self):
        self._store = MemoryStore()

    @contextlib.asynccontextmanager
    async def open(self):
        yield self._store

    def set_format(self, view_key, topic, partition, written):
        self._store._shelves[key_prefix(topic, partition, view_key)].format = written


class RedisRig:
    def __init__(self, server):
        self._server = server

    @contextlib.asynccontextmanager
    async def open(self):
        store = RedisStore(self._server.url)
        try:
            yield store
        finally:
            await store.close()

    def set_format(self, view_key, topic, partition, written):
        with self._server.admin() as admin:
            admin.hset(position_key(topic, partition, view_key), "format", written)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with contextlib.ExitStack() as stack:
        running = {}

        def server(which):
            if which not in running:
                kind = RedisCluster if which == "cluster" else RedisServer
                options = "bundled" if which == "cluster" else which
                running[which] = stack.enter_context(kind(options, tmp_path_factory.mktemp(which)))
            return running[which]

        yield server


@pytest.fixture(params=["memory", *SERVERS, "cluster"])
def rig(request, servers):
    return MemoryRig() if request.param == "memory" else RedisRig(servers(request.param))


def batch(view, start, upto, states, **changes):
    """A commit of `start`..`upto` by owner "me" on partition 0 of topic "t", the first one if it starts at 0."""
    entities, blobs = list(states), list(states.values())
    made = Commit(view, "t", 0, "me", start, upto, 1000 + upto, entities, blobs, first=start == 0)
    return replace(made, **changes)


def a_view():
    return f"v@{uuid.uuid4().hex[:12]}"


def run(rig, body):
    async def main():
        async with rig.open() as store:
            await body(store, a_view())

    asyncio.run(main())


def test_a_claim_of_an_unknown_partition_finds_no_position(rig):
    async def body(store, view):
        assert await store.claim(view, "t", 0, "me") is None
        assert await store.positions(view, "t", 2) == [None, None]

    run(rig, body)


def test_a_commit_stores_states_and_position_together(rig):
    async def body(store, view):
        await store.claim(view, "t", 0, "me")
        await store.commit([batch(view, 5, 9, {b"sa": b"\x00\xff", b"sb": memoryview(b"two")}, first=True)])
        await store.commit([batch(view, 9, 12, {b"sa": b"newer"})])
        assert await store.read(view, "t", 2, [b"sb", b"sa", b"sc"]) == [[b"two", None], [b"newer", None], [None, None]]
        assert await store.positions(view, "t", 2) == [Position(12, 1012), None]
        assert await store.claim(view, "t", 0, "you") == Position(12, 1012)

    run(rig, body)


def test_what_a_commit_erases_is_gone_with_the_position_that_it_sets(rig):
    async def body(store, view):
        await store.claim(view, "t", 0, "me")
        await store.commit([batch(view, 0, 10, {b"sa": b"1", b"sb": b"2", HOSTILE[0]: b"3"})])
        await store.commit([batch(view, 10, 20, {b"sc": b"4"}, erased=[b"sa", HOSTILE[0], b"snever"], ttl=60_000)])
        assert {entity: blob async for entity, blob in store.scan(view, "t", 0)} == {b"sb": b"2", b"sc": b"4"}
        assert await store.positions(view, "t", 1) == [Position(20, 1020)]
        with pytest.raises(GapError):
            await store.commit([batch(view, 10, 25, {}, erased=[b"sb"])])
        assert await store.read(view, "t", 1, [b"sb"]) == [[b"2"]]

    run(rig, body)


def test_states_that_nobody_folds_are_erased_by_name(rig):
    async def body(store, view):
        await store.claim(view, "t", 0, "me")
        await store.commit([batch(view, 0, 10, {b"sa": b"1", b"sb": b"2"})])
        assert await store.erase(view, "t", 0, [b"sa", b"snever"]) == 1
        assert await store.erase(view, "t", 1, [b"sb"]) == 0
        assert {entity: blob async for entity, blob in store.scan(view, "t", 0)} == {b"sb": b"2"}
        assert await store.positions(view, "t", 1) == [Position(10, 1010)]

    run(rig, body)


def test_hostile_entities_have_states_of_their_own(rig):
    async def body(store, view):
        await store.claim(view, "t", 0, "me")
        await store.commit([batch(view, 0, 7, {entity: b"of " + entity for entity in HOSTILE})])
        assert await store.read(view, "t", 1, HOSTILE) == [[b"of " + entity] for entity in HOSTILE]
        assert await store.positions(view, "t", 1) == [Position(7, 1007)]

    run(rig, body)


def test_only_the_latest_owner_may_commit(rig):
    async def body(store, view):
        await store.claim(view, "t", 0, "me")
        await store.commit([batch(view, 0, 4, {b"sa": b"mine"})])
        await store.claim(view, "t", 0, "you")
        with pytest.raises(FencedError, match=rf"{view} on t:0: another worker"):
            await store.commit([batch(view, 4, 8, {b"sa": b"stale", b"sb": b"stale"})])
        assert await store.read(view, "t", 1, [b"sa", b"sb"]) == [[b"mine"], [None]]
        await store.commit([batch(view, 4, 8, {b"sa": b"yours"}, owner="you")])

    run(rig, body)


def test_a_commit_without_a_claim_is_refused(rig):
    async def body(store, view):
        with pytest.raises(FencedError, match="nobody owns it"):
            await store.commit([batch(view, 0, 4, {b"sa": b"x"})])
        with pytest.raises(FencedError, match="nobody owns it"):
            await store.commit([batch(view, 0, 4, {b"sa": b"x"}, owner="")])
        assert await store.read(view, "t", 1, [b"sa"]) == [[None]]

    run(rig, body)


def test_of_many_claims_at_once_exactly_one_owner_remains(rig):
    async def body(store, view):
        owners = [f"w{i}" for i in range(12)]
        await asyncio.gather(*(store.claim(view, "t", 0, owner) for owner in owners))
        commits = (store.commit([batch(view, 0, 1, {b"sa": owner.encode()}, owner=owner)]) for owner in owners)
        outcomes = await asyncio.gather(*commits, return_exceptions=True)
        [winner] = [owner for owner, outcome in zip(owners, outcomes, strict=True) if outcome is None]
        assert await store.read(view, "t", 1, [b"sa"]) == [[winner.encode()]]

    run(rig, body)


@pytest.mark.parametrize("start", [1, 3, 9, 2**60])
def test_a_gap_or_an_overlap_stores_nothing_and_names_both_offsets(rig, start):
    async def body(store, view):
        await store.claim(view, "t", 0, "me")
        await store.commit([batch(view, 2, 8, {b"sa": b"kept"}, first=True)])
        with pytest.raises(GapError, match=rf"{view} on t:0: the batch starts at offset {start}, .*next offset is 8\b"):
            await store.commit([batch(view, start, 2**61, {b"sa": b"lost", b"sb": b"lost"})])
        assert await store.read(view, "t", 1, [b"sa", b"sb"]) == [[b"kept"], [None]]
        assert await store.positions(view, "t", 1) == [Position(8, 1008)]

    run(rig, body)


def test_a_first_batch_is_refused_where_something_is_stored_and_a_later_one_where_nothing_is(rig):
    async def body(store, view):
        await store.claim(view, "t", 0, "me")
        with pytest.raises(GapError, match="starts at offset 4, nothing is stored: the store was rolled back"):
            await store.commit([batch(view, 4, 8, {b"sa": b"without what came before"})])
        assert await store.positions(view, "t", 1) == [None]
        await store.commit([batch(view, 4, 8, {b"sa": b"kept"}, first=True)])
        with pytest.raises(GapError, match="next offset is 8"):
            await store.commit([batch(view, 8, 9, {b"sa": b"anew"}, first=True)])
        assert await store.read(view, "t", 1, [b"sa"]) == [[b"kept"]]

    run(rig, body)


def test_a_batch_committed_again_is_done_already(rig):
    async def body(store, view):
        await store.claim(view, "t", 0, "me")
        once = batch(view, 0, 5, {b"sa": b"once"})
        await store.commit([once])
        await store.commit([replace(once, blobs=[b"twice"])])
        assert await store.read(view, "t", 1, [b"sa"]) == [[b"once"]]

    run(rig, body)


def test_offsets_beyond_a_double_are_exact(rig):
    async def body(store, view):
        await store.claim(view, "t", 0, "me")
        await store.commit([batch(view, 2**53, 2**53 + 1, {}, clock=-(2**62) - 1, first=True)])
        with pytest.raises(GapError):
            await store.commit([batch(view, 2**53, 2**53 + 2, {})])
        assert await store.positions(view, "t", 1) == [Position(2**53 + 1, -(2**62) - 1)]

    run(rig, body)


def test_a_refused_commit_does_not_hold_back_the_others(rig):
    async def body(store, view):
        for partition in range(3):
            await store.claim(view, "t", partition, "me")
        await store.commit([batch(view, 0, 5, {}, partition=1)])
        with pytest.raises(GapError):
            await store.commit([batch(view, 3, 6, {b"sa": b"x"}, partition=p, first=True) for p in range(3)])
        assert await store.read(view, "t", 3, [b"sa"]) == [[b"x", None, b"x"]]

    run(rig, body)


def test_two_commits_of_one_place_in_a_call_are_refused(rig):
    async def body(store, view):
        await store.claim(view, "t", 0, "me")
        with pytest.raises(StateError, match="two commits"):
            await store.commit([batch(view, 0, 5, {}), batch(view, 5, 9, {})])
        with pytest.raises(StateError, match="2 entities but 1 states"):
            await store.commit([batch(view, 0, 5, {}, entities=[b"sa", b"sb"], blobs=[b"x"])])
        assert await store.positions(view, "t", 1) == [None]

    run(rig, body)


def test_another_format_is_refused_and_nothing_is_changed(rig):
    async def body(store, view):
        await store.claim(view, "t", 0, "me")
        await store.commit([batch(view, 0, 5, {b"sa": b"old"})])
        rig.set_format(view, "t", 0, "99")
        message = rf"written by format 99, this version writes {FORMAT}: .*nothing was changed"
        with pytest.raises(FormatError, match=message):
            await store.claim(view, "t", 0, "you")
        with pytest.raises(FormatError, match=message):
            await store.commit([batch(view, 5, 6, {b"sa": b"new"})])
        with pytest.raises(FormatError, match=message):
            await store.positions(view, "t", 1)
        rig.set_format(view, "t", 0, str(FORMAT))
        assert await store.read(view, "t", 1, [b"sa"]) == [[b"old"]]
        await store.commit([batch(view, 5, 6, {b"sa": b"still mine"})])

    run(rig, body)


def test_states_expire_and_the_position_stays(rig):
    async def body(store, view):
        await store.claim(view, "t", 0, "me")
        await store.commit([batch(view, 0, 1, {b"sa": b"x"}, ttl=60)])
        await store.commit([batch(view, 1, 2, {b"sb": b"y"}, ttl=60_000)])
        await store.commit([batch(view, 2, 3, {b"sc": b"z"})])
        assert await store.read(view, "t", 1, [b"sb", b"sc"]) == [[b"y"], [b"z"]]
        await asyncio.sleep(0.1)
        assert await store.read(view, "t", 1, [b"sa", b"sb", b"sc"]) == [[None], [b"y"], [b"z"]]
        assert sorted([pair async for pair in store.scan(view, "t", 0)]) == [(b"sb", b"y"), (b"sc", b"z")]
        assert await store.positions(view, "t", 1) == [Position(3, 1003)]

    run(rig, body)


def test_many_views_are_read_at_once_in_the_order_asked(rig):
    async def body(store, view):
        other = a_view()
        for topic, partition in [("t", 0), ("t", 2), ("u", 0)]:
            for which in (view, other):
                await store.claim(which, topic, partition, "me")
                blob = f"{which} {topic} {partition}".encode()
                await store.commit([batch(which, 0, 1, {b"sa": blob}, topic=topic, partition=partition)])
        answers = await store.read_many(
            [
                Request(other, "t", [2, 0], [b"sx", b"sa"]),
                Request(view, "u", range(2), [b"sa"]),
                Request(view, "t", [2], [b"sa", b"sa"]),
                Request(view, "t", [], [b"sa"]),
                Request(view, "t", [0], []),
            ]
        )
        here = f"{view} t 2".encode()
        assert answers == [
            [[None, None], [f"{other} t 2".encode(), f"{other} t 0".encode()]],
            [[f"{view} u 0".encode(), None]],
            [[here], [here]],
            [[]],
            [],
        ]
        assert await store.read_many([]) == []
        await store.commit([])

    run(rig, body)


def test_a_scan_finds_every_state_of_its_view_and_partition_only(rig):
    async def body(store, view):
        states = {b"i%d" % i: b"%d" % i for i in range(2500)}
        for which, partition in [(view, 0), (view, 1), (a_view(), 0), (view + "0", 0)]:
            await store.claim(which, "t", partition, "me")
            await store.commit([batch(which, 0, 1, states if partition == 0 else {b"sx": b"x"}, partition=partition)])
        found = [pair async for pair in store.scan(view, "t", 0)]
        assert len(found) == 2500
        assert dict(found) == states
        assert [pair async for pair in store.scan(view, "t", 1)] == [(b"sx", b"x")]

    run(rig, body)


def test_a_drop_leaves_nothing_fences_the_owner_and_lets_another_begin(rig):
    async def body(store, view):
        for partition in range(2):
            await store.claim(view, "t", partition, "me")
            await store.commit([batch(view, 0, 9, {b"i%d" % i: b"x" for i in range(1500)}, partition=partition)])
        await store.drop(view, "t", 0)
        assert await store.positions(view, "t", 2) == [None, Position(9, 1009)]
        assert [pair async for pair in store.scan(view, "t", 0)] == []
        assert len([pair async for pair in store.scan(view, "t", 1)]) == 1500
        with pytest.raises(FencedError):
            await store.commit([batch(view, 9, 10, {b"sa": b"x"})])
        assert await store.claim(view, "t", 0, "you") is None
        await store.drop(a_view(), "t", 0)

    run(rig, body)


def test_names_that_could_break_out_are_refused(rig):
    async def body(store, view):
        with pytest.raises(DataError, match="cannot be stored"):
            await store.claim(view, "t}:x", 0, "me")
        with pytest.raises(DataError, match="cannot be stored"):
            await store.read("v:1", "t", 1, [b"sa"])
        await store.ping()

    run(rig, body)


OPERATIONS = st.lists(
    st.tuples(st.just("claim"), st.integers(0, 1), st.sampled_from("ab"))
    | st.tuples(
        st.just("commit"),
        st.integers(0, 1),
        st.sampled_from("ab"),
        st.integers(0, 5),
        st.integers(0, 3),
        st.dictionaries(st.sampled_from([b"sx", b"sy", b"i1"]), st.binary(max_size=4)),
        st.booleans(),
    )
    | st.tuples(st.just("drop"), st.integers(0, 1)),
    max_size=25,
)


async def _outcome(store, view, operation):
    kind, partition, *rest = operation
    try:
        if kind == "claim":
            return await store.claim(view, "t", partition, *rest)
        if kind == "drop":
            return await store.drop(view, "t", partition)
        owner, start, length, states, first = rest
        commit = batch(view, start, start + length, states, partition=partition, owner=owner, first=first)
        return await store.commit([commit])
    except StateError as error:
        return type(error), str(error)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OPERATIONS)
def test_redis_does_whatever_memory_does(servers, operations):
    async def main():
        memory = MemoryStore()
        async with RedisRig(servers("bundled")).open() as store:
            view = a_view()
            for operation in operations:
                assert await _outcome(store, view, operation) == await _outcome(memory, view, operation)
            entities = [b"sx", b"sy", b"i1"]
            assert await store.read(view, "t", 2, entities) == await memory.read(view, "t", 2, entities)
            assert await store.positions(view, "t", 2) == await memory.positions(view, "t", 2)

    asyncio.run(main())


def test_a_foreign_hash_in_the_place_of_a_position_is_refused(servers):
    async def body(store, view):
        with servers("bundled").admin() as admin:
            admin.hset(position_key("t", 0, view), "next", "7")
            with pytest.raises(FormatError, match="written by format unknown"):
                await store.claim(view, "t", 0, "me")
            with pytest.raises(FormatError, match="written by format unknown"):
                await store.positions(view, "t", 1)
            assert admin.hgetall(position_key("t", 0, view)) == {b"next": b"7"}

    run(RedisRig(servers("bundled")), body)
