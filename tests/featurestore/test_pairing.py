from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import Source
from featurestore.align import merged
from featurestore.erasures import Erasure
from featurestore.expressions import TYPES
from featurestore.frames import META, empty_frame
from featurestore.keys import encode_entity
from featurestore.pairing import Pairing

WITHIN, LATENESS = 5, (3, 2)
PAYMENTS = Source(
    "payments",
    schema={"card": str, "amount": int, "at": "timestamp[ms]"},
    event_time="at",
    key="card",
    lateness=f"{LATENESS[0]}ms",
)
LOGINS = Source(
    "logins",
    schema={"card": str, "device": str, "amount": int, "at": "timestamp[ms]"},
    event_time="at",
    key="card",
    lateness=f"{LATENESS[1]}ms",
)
JOINED = PAYMENTS.join(LOGINS, on="card", within=f"{WITHIN}ms")


def log(source, events):
    """An event frame of (key, time) pairs, with holes between the offsets."""
    rows = [
        {"card": key, "amount": at, "device": f"d{at}", "at": time}
        | {"_partition": 2, "_offset": 2 * at, "_timestamp": 0, "_time": time}
        for at, (key, time) in enumerate(events)
    ]
    kinds = {name: TYPES[kind] for name, kind in source.types.items()} | META
    return pl.DataFrame([{name: row[name] for name in kinds} for row in rows], schema=kinds)


def expected(lefts, rights):
    """The pairs' offsets, by looking at all events of both logs."""
    good = [
        [
            (key, time, 2 * at)
            for at, (key, time) in enumerate(events)
            if time >= max((before for _, before in events[:at]), default=time) - lateness
        ]
        for events, lateness in zip((lefts, rights), LATENESS, strict=True)
    ]
    return {
        (one, other)
        for key, time, one in good[0]
        for same, then, other in good[1]
        if key == same and abs(time - then) <= WITHIN
    }


def steps(left, right):
    """Both logs with the places of their events in merged order."""
    chunk = merged({"payments": 0, "logins": 0}, {("payments", 2): left, ("logins", 2): right})
    nothing = {source.name: empty_frame(source).with_columns(_step=pl.lit(0, pl.Int64)) for source in JOINED.sides}
    return [chunk.frames.get(source.name, nothing[source.name]).sort("_offset") for source in JOINED.sides]


def cut(frame, places):
    bounds = [0, *sorted(place % (len(frame) + 1) for place in places), len(frame)]
    return [frame[a:b] for a, b in pairwise(bounds)]


def places(pairs):
    return list(zip(pairs["_left"], pairs["_right"], strict=True))


EVENTS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=30)
CUTS = st.lists(st.integers(0, 30), min_size=4, max_size=4)


@settings(max_examples=400)
@given(EVENTS, EVENTS, CUTS, CUTS)
def test_pairs_are_those_of_an_oracle_however_the_logs_are_cut(lefts, rights, cuts, others):
    pairing, found = Pairing(JOINED, 2), []
    left_log, right_log = steps(log(PAYMENTS, lefts), log(LOGINS, rights))
    for left, right in zip(cut(left_log, cuts), cut(right_log, others), strict=True):
        found += places(pairing.take(left, right).pairs)
    assert len(found) == len(set(found))
    assert set(found) == expected(lefts, rights)


def in_chunks(left, right, bounds):
    """Both logs, cut at places of their merged order."""
    ends = [*sorted(bounds), np.iinfo(np.int64).max]
    for low, high in zip([-1, *ends[:-1]], ends, strict=True):
        yield tuple(frame.filter((pl.col("_step") > low) & (pl.col("_step") <= high)) for frame in (left, right))


@given(EVENTS, EVENTS, CUTS)
def test_the_order_of_pairs_does_not_depend_on_where_the_merged_order_is_cut(lefts, rights, bounds):
    logs = steps(log(PAYMENTS, lefts), log(LOGINS, rights))
    pairing = Pairing(JOINED, 2)
    parts = [pairing.take(*chunk).pairs for chunk in in_chunks(*logs, bounds)]
    assert pl.concat(parts).equals(Pairing(JOINED, 2).take(*logs).pairs)


@given(EVENTS, EVENTS, st.integers(-1, 60), CUTS)
def test_one_that_reads_back_to_its_places_goes_on_with_the_same_pairs(lefts, rights, end, cuts):
    logs = steps(log(PAYMENTS, lefts), log(LOGINS, rights))
    before = [frame.filter(pl.col("_step") <= end) for frame in logs]
    first = Pairing(JOINED, 2)
    parts = [first.take(*chunk).pairs for chunk in in_chunks(*before, cuts)]
    ends = [len(frame) and frame["_offset"][-1] + 1 for frame in before]
    again, back = Pairing(JOINED, 2), []
    for side, (frame, upto) in enumerate(zip(logs, ends, strict=True)):
        place = first.place(side, upto)
        assert place.offset <= upto
        again.begin(side, place.clock)
        back.append(frame.filter(pl.col("_offset") >= place.offset))
    new = (pl.col("_left") >= ends[0]) | (pl.col("_right") >= ends[1])
    parts.append(again.take(*back).pairs.filter(new))
    assert pl.concat(parts).equals(Pairing(JOINED, 2).take(*logs).pairs)


def test_a_pair_has_the_columns_of_both_the_later_time_and_an_id():
    left, right = steps(log(PAYMENTS, [("a", 7)]), log(LOGINS, [("b", 1), ("a", 4)]))
    assert Pairing(JOINED, 2).take(left, right).pairs.to_dicts() == [
        {"pair_id": "2:0:2", "pair_at": 7, "card": "a", "amount": 0, "at": 7}
        | {"device": "d1", "amount_right": 1, "at_right": 4, "_left": 0, "_right": 2}
    ]


def test_late_events_are_told_apart_with_all_that_they_came_with():
    left, right = steps(log(PAYMENTS, [("a", 9), ("a", 5), ("a", 6)]), log(LOGINS, [("a", 3)]))
    late = Pairing(JOINED, 2).take(left, right).late
    assert (late[0]["at"].to_list(), len(late[1])) == ([5], 0)
    assert set(late[0].columns) == set(left.columns)


def test_events_that_nothing_to_come_can_match_are_forgotten():
    pairing = Pairing(JOINED, 2)
    events = [("abc"[at % 3], at) for at in range(1_000)]
    for chunk in in_chunks(*steps(log(PAYMENTS, events), log(LOGINS, events)), list(range(0, 2_000, 50))):
        pairing.take(*chunk)
    least = 2 * (1_000 - 3 * (WITHIN + max(LATENESS) + 50))
    assert min(pairing.place(0, 2_000).offset, pairing.place(1, 2_000).offset) >= least
    assert pairing.dropped == 0


def test_what_waits_no_more_is_not_read_again_because_it_came_together_with_what_does():
    pairing = Pairing(JOINED, 2)
    events = [("abc"[at % 3], at) for at in range(1_000)]
    pairing.take(*steps(log(PAYMENTS, events), log(LOGINS, events)))
    assert min(pairing.place(0, 2_000).offset, pairing.place(1, 2_000).offset) >= 2 * (1_000 - 2 - 2 * WITHIN)


def test_where_too_many_wait_for_a_silent_side_the_newer_half_goes_on_waiting():
    pairing = Pairing(JOINED, 2, most=100)
    left, right = steps(log(PAYMENTS, [("a", at) for at in range(130)]), log(LOGINS, [("a", 128)]))
    for at in range(0, 130, 10):
        assert not len(pairing.take(left[at : at + 10], right.clear()).pairs)
    assert (pairing.dropped, pairing.place(0, 260).offset) == (60, 120)
    assert places(pairing.take(left.clear(), right).pairs) == [(2 * at, 0) for at in range(123, 130)]


@pytest.mark.parametrize("bits", [11, 63])
def test_keys_with_the_same_hash_are_not_taken_for_each_other(monkeypatch, bits):
    monkeypatch.setattr("featurestore.pairing._SPARE_BITS", bits)
    events = [(key, 0) for key in "abcdefgh"]
    pairs = Pairing(JOINED, 2).take(*steps(log(PAYMENTS, events), log(LOGINS, events))).pairs
    assert places(pairs) == [(2 * at, 2 * at) for at in range(8)]


def test_the_rate_of_a_hot_key_is_that_of_its_pairs():
    left, right = steps(log(PAYMENTS, [("a", 0)] * 300), log(LOGINS, [("a", 0)] * 300))
    assert len(Pairing(JOINED, 2).take(left, right).pairs) == 90_000


def test_an_erased_entity_waits_no_longer_and_all_others_do():
    pairing = Pairing(JOINED, 2)
    left, right = steps(log(PAYMENTS, [("a", 1), ("b", 2), ("a", 3), ("c", 4)]), log(LOGINS, [("a", 5), ("b", 5)]))
    pairing.take(left, right.clear())
    pairing.erase(0, ["card"], erasure("a", before=3))
    pairing.erase(1, ["card"], erasure("b", before=99))
    assert pairing.place(0, 8).offset == 2
    assert places(pairing.take(left.clear(), right).pairs) == [(4, 0), (2, 2)]
    pairing.erase(0, ["card", "amount"], Erasure("payments", 2, 99, "payment", encode_entity(("c", 3))))
    assert pairing.place(0, 8).offset == 2
    pairing.erase(0, ["pair_id"], erasure("0:1:2", before=99))  # of pairs that are joined again: it names none of these


def erasure(card, before):
    return Erasure("payments", 2, before, "card", encode_entity((card,)))
