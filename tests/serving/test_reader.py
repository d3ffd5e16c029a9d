from __future__ import annotations

import asyncio

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import ConfigError, DataError, FormatError
from featurestore.keys import encode_entity
from featurestore.memory import MemoryStore
from featurestore.partitioners import partition_of
from featurestore.stores import Commit
from serving.reader import Lookup, SharedReader
from tests.featurestore.helpers import event, numbered, read
from tests.serving.helpers import (
    HOUR,
    MINUTE,
    NOW,
    TOPICS,
    VIEWS,
    Cards,
    Groups,
    Keyed,
    Pairs,
    WatchedStore,
    filled,
    folded,
    put,
    reader_of,
)


def answers(lookups, store=None, **options):
    async def main():
        source = store or await filled(MemoryStore(lambda: NOW))
        return await reader_of(source, **options).read(lookups)

    return asyncio.run(main())


def row(lookup, **options):
    [frame] = answers([lookup], **options)
    return frame.row(0, named=True)


def test_a_read_is_the_engines_own_to_the_last_bit():
    for as_of in (NOW, NOW + 90_000, NOW + 30 * MINUTE, NOW + 2 * HOUR):
        for view, key in ((Cards, ("a",)), (Cards, ("b",)), (Groups, (1,)), (Groups, (2,)), (Pairs, ("a", 1))):
            served = row(Lookup(view, [key], as_of))
            assert {name: served[name] for name in (f.name for f in view.stored)} == read(folded(view), key, as_of)


@given(
    st.lists(
        st.tuples(st.integers(0, 90 * MINUTE), st.integers(0, 2), st.sampled_from("ab"), st.none() | st.floats()),
        min_size=1,
        max_size=30,
    ),
    st.integers(-HOUR, 3 * HOUR),
)
def test_any_history_is_served_as_the_engine_reads_it(made, ahead):
    history = numbered([event(NOW - ago, partition=p, k=k, x=x) for ago, p, k, x in made])
    state = folded(Cards, history)

    async def main():
        store = MemoryStore(lambda: NOW)
        await put(store, state)
        return await reader_of(store, [Cards]).read([Lookup(Cards, [("a",), ("b",)], NOW + ahead)])

    [frame] = asyncio.run(main())
    names = [feature.name for feature in Cards.stored]
    expected = pl.DataFrame(
        [read(state, (k,), NOW + ahead) for k in "ab"], schema=frame.select(names).schema, strict=False
    )
    assert frame.select(names).equals(expected, null_equal=True)


def test_derived_features_come_from_the_stored_ones():
    served = row(Lookup(Cards, [("a",)], NOW))
    assert served["share"] == served["spend_5m"] / served["spend_1h"]


def test_windows_decay_without_events():
    payments = [row(Lookup(Cards, [("a",)], NOW + wait))["payments_5m"] for wait in (0, 2 * MINUTE, 10 * MINUTE)]
    assert payments == [2, 1, 0]


def test_no_read_is_as_of_a_time_before_the_newest_event():
    served = row(Lookup(Cards, [("a",)], NOW - HOUR))
    assert served["_effective"] == served["_newest"] == NOW - 2 * MINUTE
    assert row(Lookup(Cards, [("a",)], NOW))["_effective"] == NOW


def test_without_a_time_the_clock_counts():
    assert row(Lookup(Cards, [("a",)]))["_effective"] == NOW


def test_in_a_replay_the_newest_stored_event_is_the_clock():
    served = row(Lookup(Cards, [("a",)]), stream_time=True)
    assert served["_effective"] == NOW - 1
    assert row(Lookup(Cards, [("a",)]), stream_time=True, store=WatchedStore())["_effective"] == 0


def test_every_entity_may_have_a_time_of_its_own():
    [frame] = answers([Lookup(Cards, [("a",), ("a",)], [NOW, NOW + 10 * MINUTE])])
    assert frame["payments_5m"].to_list() == [2, 0]


def test_what_is_not_there_is_told_from_what_is_over():
    [cards, groups] = answers([Lookup(Cards, [("a",), ("nobody",), (None,), ("old",)]), Lookup(Groups, [(4,)])])
    assert cards["_status"].to_list() == ["PRESENT", "NOT_FOUND", "NOT_FOUND", "OUTSIDE_MAX_AGE"]
    assert groups["_status"].to_list() == ["PRESENT"]  # a lifetime has no end


def test_a_state_is_present_as_long_as_a_window_and_lateness():
    longest = HOUR + 10_000
    newest = NOW - 2 * MINUTE
    assert row(Lookup(Cards, [("a",)], newest + longest))["_status"] == "PRESENT"
    assert row(Lookup(Cards, [("a",)], newest + longest + 1))["_status"] == "OUTSIDE_MAX_AGE"


def test_an_entity_without_state_counts_nothing_and_one_with_a_null_key_is_none():
    [frame] = answers([Lookup(Pairs, [("nobody", 1), ("a", None)])])
    assert frame["payments_1h"].to_list() == [0, None]


def test_all_lookups_share_one_round_trip():
    async def main():
        store = await filled(WatchedStore())
        reader = reader_of(store)
        asked = [Lookup(view, [("a", 1)[: len(view.entity.keys)]]) for view in (Cards, Keyed, Pairs, Cards)]
        return await reader.read([*asked, Lookup(Cards, [])]), store.asked

    frames, asked = asyncio.run(main())
    assert [len(frame) for frame in frames] == [1, 1, 1, 1, 0]
    assert frames[0].equals(frames[3])
    [requests] = asked
    assert [(request.view_key, len(request.entities)) for request in requests] == [
        (view.key, 1) for view in (Cards, Keyed, Pairs)
    ]


def test_a_key_with_a_known_partitioner_reads_one_partition():
    async def main():
        store = WatchedStore()
        keys = [(f"k{i}",) for i in range(20)]
        await reader_of(store).read([Lookup(Keyed, keys), Lookup(Cards, keys)])
        return store.asked[0]

    requests = asyncio.run(main())
    by_key = [request for request in requests if request.view_key == Keyed.key]
    for request in by_key:
        [partition] = request.partitions
        for entity in request.entities:
            assert partition == partition_of("murmur2", entity[1:], TOPICS["keyed"])
    assert sum(len(request.entities) for request in by_key) == 20
    assert [list(r.partitions) for r in requests if r.view_key == Cards.key] == [[0, 1, 2]]


def test_a_known_partitioner_finds_what_was_folded_there():
    place = partition_of("murmur2", b"a", TOPICS["keyed"])
    history = numbered([event(NOW - 5, partition=place, k="a"), event(NOW - 4, partition=(place + 1) % 3, k="b")])

    async def main():
        store = MemoryStore(lambda: NOW)
        await put(store, folded(Keyed, history))
        return await reader_of(store).read([Lookup(Keyed, [("a",)])])

    [frame] = asyncio.run(main())
    assert frame["payments_5m"].to_list() == [1]


def test_after_partitions_were_added_a_key_is_looked_for_where_it_led_and_where_it_leads():
    async def main():
        store = WatchedStore()
        reader, keys = reader_of(store), [(f"k{i}",) for i in range(20)]
        reader.grow({"keyed": 2, "events": 5})  # a topic never shrinks: Kafka's answer is older than the reader's
        reader.grow({"keyed": 7})
        await reader.read([Lookup(Keyed, keys), Lookup(Cards, keys)])
        return store.asked[0]

    requests = asyncio.run(main())
    for request in (request for request in requests if request.view_key == Keyed.key):
        for entity in request.entities:
            assert set(request.partitions) == {partition_of("murmur2", entity[1:], count) for count in (3, 7)}
    assert [list(r.partitions) for r in requests if r.view_key == Cards.key] == [[0, 1, 2, 3, 4]]


def test_an_unknown_topic_is_refused_at_once():
    with pytest.raises(ConfigError, match="topic 'events' does not exist"):
        type(reader_of(MemoryStore()))(list(VIEWS.values()), MemoryStore(), {"keyed": 1}, lambda: NOW)


def test_warming_up_touches_no_store():
    store = WatchedStore()
    reader_of(store).warm()
    assert store.asked == []


class SlowStore(WatchedStore):
    async def read_many(self, requests):
        await asyncio.sleep(0.01)
        return await super().read_many(requests)


def test_callers_share_round_trips_and_get_their_own_answers():
    async def main():
        store = await filled(SlowStore(), Cards)
        shared = SharedReader(reader_of(store))
        keys = ["abc"[i % 3] for i in range(30)]
        alone = await reader_of(store).read([Lookup(Cards, [(key,)]) for key in keys])
        store.asked.clear()
        together = await asyncio.gather(*(shared.read([Lookup(Cards, [(key,)])]) for key in keys))
        assert all(got[0].equals(own) for got, own in zip(together, alone, strict=True))
        return len(store.asked)

    assert asyncio.run(main()) == 1


def test_one_callers_fault_is_not_anothers():
    async def main():
        store = await filled(SlowStore(), Cards)
        entity = encode_entity(("bad",))
        await store.commit([Commit(Cards.key, "events", 0, "me", 9, 10, NOW, [entity], [b"damaged!"])])
        shared = SharedReader(reader_of(store))
        keys = [("a",), ("bad",), ("x" * 300,), ("b",)]
        asked = [shared.read([Lookup(Cards, [key])]) for key in keys]
        return await asyncio.gather(*asked, return_exceptions=True)

    a, bad, long, b = asyncio.run(main())
    assert (a[0]["_status"][0], b[0]["_status"][0]) == ("PRESENT", "PRESENT")
    assert isinstance(bad, FormatError)
    assert isinstance(long, DataError)


def test_a_caller_that_gives_up_takes_nobody_along():
    async def main():
        shared = SharedReader(reader_of(await filled(SlowStore(), Cards)))
        first, second = (asyncio.create_task(shared.read([Lookup(Cards, [("a",)])])) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        [frame] = await second
        return frame["_status"][0]

    assert asyncio.run(main()) == "PRESENT"
