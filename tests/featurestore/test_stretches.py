"""Events that follow each other are folded together, track by track: no bit tells that from one after the other."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import Count, Last, Max, Mean, Min, Std, Sum, Var, col, oracle, session, window
from featurestore.kernel import layout
from featurestore.plan import compiled
from tests.featurestore.closeness import REAL
from tests.featurestore.helpers import NOON, assert_features, bits, do, event, made, numbered, state_of, stored

FEATURES = {
    "n": Count(),
    "there": Count("x"),
    "total": Sum("x"),
    "mean": Mean("x"),
    "low": Min("x"),
    "high": Max("x"),
    "std": Std("x"),
    "var": Var("x", where=col("b")),
    "some": Sum("x", where=col("b")),
    "least": Min("x", where=col("b")),
}
# Two windows of one track, one whose tiles are as long as it, some with many tiles and some with few.
WINDOWS = ["1s", "90s", window("10s", hop="1s"), window("1m", hop="1s"), window("2m", hop="2m"), "lifetime"]
PLAIN = made(FEATURES, windows=WINDOWS)
STEPS = st.sampled_from([0, 0, 1, 10, 250, 250, 999, 1_000, 1_001, 2_000, 7_000, 60_000, 600_000, -1, -3_000])


def in_order(steps, others):
    """Events, most of them of one entity on one partition, whose times are the steps' sums."""
    times = NOON + np.cumsum(steps, dtype=np.int64)
    return numbered(event(int(time), **other) for time, other in zip(times, others, strict=False))


ONE = st.fixed_dictionaries(
    {
        "k": st.sampled_from(["a", "a", "a", "a", "b"]),
        "partition": st.sampled_from([0] * 12 + [1]),
        "x": st.none() | REAL,
        "b": st.none() | st.booleans(),
    }
)
HISTORIES = st.builds(in_order, st.lists(STEPS, max_size=80), st.lists(ONE, min_size=80, max_size=80))


def one_by_one(state, work):
    """What comes of doing work step by step."""
    return [row for each in work for row in bits(state, [each])]


def test_a_view_of_counts_and_of_what_a_tile_keeps_of_floats_is_folded_in_stretches():
    assert compiled(PLAIN).is_plain
    for more, windows in [
        ({"last": Last("x")}, WINDOWS),
        ({"whole": Sum("i")}, WINDOWS),
        ({}, [*WINDOWS, window("5m", exact=True)]),
        ({}, [*WINDOWS, window("5m", delay="1m")]),
        ({}, [*WINDOWS, session("1m")]),
    ]:
        assert not compiled(made({**FEATURES, **more}, windows=windows)).is_plain


@settings(max_examples=300, deadline=None)
@given(events=HISTORIES, reads=st.lists(st.tuples(st.integers(0, 80), STEPS), max_size=4))
def test_no_cut_into_batches_of_a_plain_view_changes_a_bit(events, reads):
    work = list(events)
    for place, later in sorted(reads, reverse=True, key=lambda read: read[0]):
        work.insert(min(place, len(work)), (("a",), NOON + later))
    together, apart = state_of(PLAIN), state_of(PLAIN)
    assert bits(together, work) == one_by_one(apart, work)
    assert stored(together) == stored(apart)


@settings(max_examples=200, deadline=None)
@given(events=HISTORIES, places=st.lists(st.tuples(st.integers(0, 80), st.sampled_from("ab")), max_size=4))
def test_where_only_some_steps_are_looked_at_no_bit_changes(events, places):
    work = list(events)
    for place, key in sorted(places, reverse=True):
        work.insert(min(place, len(work)), ((key,), NOON))
    together, apart = state_of(PLAIN), state_of(PLAIN)
    got, want = bits(together, work, emit=False), one_by_one(apart, work)
    reads = [i for i, each in enumerate(work) if not isinstance(each, dict)]
    assert [got[i] for i in reads] == [want[i] for i in reads]
    assert stored(together) == stored(apart)


@settings(max_examples=100, deadline=None)
@given(events=HISTORIES)
def test_a_plain_view_equals_the_oracle(events):
    state = state_of(PLAIN)
    results = do(state, events)
    for step, each in enumerate(events):
        if results.status[step] == layout.FOLDED:
            _, want = oracle.features(PLAIN, events[: step + 1], (each["k"],), each["_time"])
            assert_features(state, results, step, events[: step + 1], want)


@settings(max_examples=50, deadline=None)
@given(events=HISTORIES, again=st.integers(0, 79))
def test_events_that_a_state_has_already_are_not_folded_again(events, again):
    once, twice = state_of(PLAIN), state_of(PLAIN)
    do(once, events)
    do(twice, [*events, *events[again:]])
    assert stored(twice) == stored(once)


@pytest.mark.parametrize("step", [1, 40, 400, 1_000, 40_000])
def test_a_long_stretch_makes_its_memory_grow_and_loses_no_bit(step):
    chosen = made(FEATURES, windows=["1s", "1h", window("20m", hop="1s"), "1d"])
    rng = np.random.default_rng(step)
    events = numbered(
        event(NOON + step * i, k="a" if rng.random() < 0.9 else f"k{i % 50}", x=float(rng.normal()), b=bool(i % 3))
        for i in range(5_000)
    )
    together, apart = state_of(chosen), state_of(chosen)
    small = len(together._words)
    got = bits(together, events)
    assert step < 1_000 or len(together._words) > small
    assert together._words[layout.USED] <= len(together._words)
    queue, want, rng = deque(events), [], np.random.default_rng(1)
    while queue:
        want += bits(apart, [queue.popleft() for _ in range(min(len(queue), int(rng.integers(1, 4))))])
    assert got == want
    assert stored(together) == stored(apart)
    silent = state_of(chosen)
    do(silent, events, emit=False)
    assert stored(silent) == stored(apart)


def test_events_after_which_nobody_looks_leave_the_same_states():
    rng = np.random.default_rng(1)
    events = numbered(event(NOON + 300 * i, x=float(rng.normal()), b=bool(i % 2)) for i in range(3_000))
    looked_at, folded = state_of(PLAIN), state_of(PLAIN)
    do(looked_at, events)
    do(folded, events, emit=False)
    assert stored(folded) == stored(looked_at)
