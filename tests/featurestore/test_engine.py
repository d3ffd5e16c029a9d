"""The engine equals the oracle, and no cut into batches, restart or growth changes a bit."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import (
    All,
    Any,
    Corr,
    Count,
    CountBy,
    Distinct,
    Entity,
    ExpDecay,
    First,
    FirstN,
    Histogram,
    Kurtosis,
    Last,
    LastN,
    Max,
    Mean,
    Min,
    Mode,
    Quantile,
    Rate,
    Skew,
    Slope,
    Source,
    Std,
    Sum,
    SumBy,
    TimeSince,
    TopK,
    Var,
    col,
    growing,
    kernel,
    last,
    oracle,
    session,
    window,
)
from featurestore.engine import NO_ENTITY, ViewState, words_of
from featurestore.errors import FormatError
from featurestore.frames import lane_inputs
from featurestore.kernel import Steps, compacting, layout
from featurestore.keys import encode_entity
from featurestore.plan import compiled
from tests.featurestore.closeness import INT64, REAL, WHOLE
from tests.featurestore.helpers import (
    KEY,
    NOON,
    PARTITIONS,
    SOURCE,
    STATUSES,
    assert_features,
    bits,
    do,
    event,
    frame_of,
    made,
    numbered,
    read,
    restored,
    state_of,
    stored,
    within,
)

SOURCES = [
    Source("events", schema=SOURCE.schema, event_time="at", key="k", lateness=lateness)
    for lateness in ("1ms", "10s", "2h")
]
ENTITIES = [KEY, Entity("group", key="g"), Entity("pair", key=("s", "g"))]
WINDOWS = ["1s", "5s", "90s", "1h", "lifetime"]
WINDOWS += [window("10s", hop="10s"), window("1m", hop="7s"), window("1s", hop="250ms"), window("1h", hop="20m")]
WINDOWS += [window("5s", exact=True), window("90s", exact=True), window("1h", exact=True)]
WINDOWS += [window("1m", delay="30s"), window("90s", exact=True, delay="1m"), last(1), last(4)]
WINDOWS += [session("1s"), session("2m")]
CONDITIONS = [None, col("b"), col("i") > 0, col("s") == "p", col("x").is_not_nan() & (col("g") == 1)]
AGGREGATES = [(Count, c) for c in ("", "x", "s")]
AGGREGATES += [(a, c) for a in (Sum, Mean, Std, Min, Max, First, Last) for c in ("i", "x", "b")]
AGGREGATES += [(a, c) for a in (Var, Slope, Rate, ExpDecay) for c in ("i", "x")] + [(Skew, "x"), (Kurtosis, "x")]
AGGREGATES += [(a, "at") for a in (Min, Max, First, Last)] + [(Any, "b"), (All, "b"), (TimeSince, ""), (ExpDecay, "")]
AGGREGATES += [
    (partial(TimeSince, of="first"), "x"),
    (partial(Corr, other="g"), "x"),
    (partial(ExpDecay, half_life="7s"), "b"),
    (First, "s"),
    (Last, "s"),
]
# By what their bounds are, since where sessions are joined no oracle can tell what a bound left out.
SMALL, LARGE = 2, 50
BAGS = [(partial(Distinct, bound=bound), column) for bound in (SMALL, LARGE) for column in ("s", "x", "i", "b", "at")]
BAGS += [(partial(Quantile, q=q), column) for q in (0, 0.5, 0.93) for column in ("x", "i")]
BAGS += [(partial(Histogram, edges=[-1, 0, 1e9]), column) for column in ("x", "i")]
BAGS += [(partial(FirstN, n=2), c) for c in ("s", "x", "at")] + [(partial(LastN, n=3), c) for c in ("s", "i", "b")]
BOUNDED = [
    *((partial(TopK, k=2, bound=SMALL), column) for column in ("s", "i", "x")),
    *((partial(Mode, bound=SMALL), column) for column in ("s", "b")),
    *((partial(CountBy, bound=bound, other="p"), column) for bound in (1, SMALL) for column in ("s", "g", "b")),
    *((partial(SumBy, by=by, bound=SMALL), column) for by in ("s", "g") for column in ("x", "i")),
]
BAGS += [(partial(make, bound=LARGE), column) for make, column in BOUNDED]

MOVES = st.sampled_from(
    [-7_200_001, -3_600_000, -60_001, -10_001, -1_000, -1, 0, 0, 0, 1, 999, 1_000, 5_000, 3_600_000]
)
TIMES = st.builds(
    lambda base, move, near: NOON + base + move + near,
    st.sampled_from([0, 0, 0, 90_000]),
    MOVES,
    st.sampled_from([0, 0, 0, 1, -1]),
)
EVENTS = st.builds(
    event,
    TIMES,
    partition=st.integers(0, PARTITIONS - 1),
    k=st.sampled_from(["a", "b", None]),
    g=st.sampled_from([1, 2]),
    i=st.none() | WHOLE,
    x=st.none() | REAL,
    b=st.none() | st.booleans(),
    s=st.sampled_from(["p", "q", "q", "", "\u20ac" * 40, None]),
)


def some_of(windows, most):
    """Lists of a few windows, no two of one name."""
    return st.lists(st.sampled_from(windows), min_size=1, max_size=most, unique_by=lambda w: getattr(w, "label", w))


def with_length(windows):
    """Those of the windows that have a length, as a rate needs; at least one."""
    timed = [each for each in windows if isinstance(each, str) or each.kind in ("tiles", "exact")]
    return [each for each in timed if each != "lifetime"] or ["90s"]


@st.composite
def views(draw):
    chosen = draw(st.lists(st.tuples(st.sampled_from(AGGREGATES), st.sampled_from(CONDITIONS)), min_size=1, max_size=5))
    windows = draw(some_of(WINDOWS, 3))
    lengthy = with_length(windows)
    features = {
        f"f{i}": make(column, where=where, windows=lengthy if make is Rate else None)
        for i, ((make, column), where) in enumerate(chosen)
    }
    tiled = [each for each in windows if isinstance(each, str) or each.kind != "session"]
    for i, (make, column) in enumerate(draw(st.lists(st.sampled_from([*BAGS, *BOUNDED]), max_size=3))):
        small = (make, column) in BOUNDED
        if tiled or not small:
            features[f"bag{i}"] = make(
                column, where=draw(st.sampled_from(CONDITIONS)), windows=tiled if small else windows
            )
    one = draw(st.sampled_from(WINDOWS))
    features["extra"] = draw(st.sampled_from([Sum, Last]))("i", windows=[one])
    return made(
        features, source=draw(st.sampled_from(SOURCES)), entity=draw(st.sampled_from(ENTITIES)), windows=windows
    )


@st.composite
def scenarios(draw):
    """A view and what happens to it: events and reads."""
    chosen = draw(views())
    entities = {"key": ("a",), "group": (1,), "pair": ("p", 1)}
    reads = st.tuples(st.just(entities[chosen.entity.name]), TIMES)
    work = draw(st.lists(EVENTS | EVENTS | EVENTS | reads, max_size=20))
    events = iter(numbered(each for each in work if isinstance(each, dict)))
    return chosen, [next(events) if isinstance(each, dict) else each for each in work]


def changed(state):
    """The states written to since the last time, by partition and entity."""
    return {(c.partition, e): bytes(b) for c in state.take_changes() for e, b in zip(c.entities, c.blobs, strict=True)}


@settings(max_examples=150, deadline=None)
@given(scenarios())
def test_the_engine_equals_the_oracle(scenario):
    chosen, work = scenario
    state = state_of(chosen)
    results = do(state, work)
    events = []
    for step, each in enumerate(work):
        if isinstance(each, dict):
            events.append(each)
            status = oracle.statuses(chosen, events)[-1]
            assert STATUSES[results.status[step]] == status
            if status != "folded":
                continue
            each = (oracle.key(chosen, each), each["_time"])  # noqa: PLW2901
        effective, want = oracle.features(chosen, events, *each)
        assert results.effective[step] == effective
        assert_features(state, results, step, events, want)


CUTS = st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["go on", "restart", "compact"])), max_size=6)


@settings(max_examples=150, deadline=None)
@given(scenarios(), CUTS)
def test_no_cut_into_batches_no_restart_and_no_move_changes_a_bit(scenario, cuts):
    chosen, work = scenario
    whole = state_of(chosen)
    want = bits(whole, work)
    state, got, begin = state_of(chosen), [], 0
    for end, how in [*sorted(cuts), (len(work), "compact"), (len(work), "restart")]:
        got += bits(state, work[begin:end])
        begin = max(begin, min(end, len(work)))
        if how == "restart":
            state = restored(state)
        elif how == "compact":
            kernel.compact(state._words, state._slots)
    assert got == want
    assert stored(state) == stored(whole)


@settings(max_examples=100, deadline=None)
@given(scenarios())
def test_changes_hold_every_state_that_was_written_and_no_other(scenario):
    chosen, work = scenario
    state, held = state_of(chosen), {}
    for each in work:
        do(state, [each])
        held |= changed(state)
    assert state.take_changes() == []
    assert held == {(p, e): blob for p in range(PARTITIONS) for e, blob in state.blobs(p).items()}


def test_the_pool_grows_without_losing_a_bit():
    chosen = made({"n": Count(), "x": Sum("x"), "low": Min("i")}, windows=["5s", "1h", window("5m", hop="1s")])
    rng = np.random.default_rng(1)
    events = numbered(
        event(NOON + int(t), partition=int(p), k=f"k{k}", i=int(k), x=float(x))
        for t, p, k, x in zip(
            np.sort(rng.integers(0, 7_200_000, 6_000)),
            rng.integers(0, PARTITIONS, 6_000),
            rng.integers(0, 150, 6_000),
            rng.normal(size=6_000),
            strict=True,
        )
    )
    whole = state_of(chosen)
    small = len(whole._words)
    want = bits(whole, events)
    assert len(whole._words) > 8 * small
    parts = state_of(chosen)
    got = bits(parts, events[:3_000])
    parts = restored(parts)
    got += bits(parts, events[3_000:])
    assert got == want
    assert stored(parts) == stored(whole)
    _, values = oracle.features(chosen, events, ("k7",), NOON + 7_200_000)
    assert read(whole, ("k7",), NOON + 7_200_000) == pytest.approx(values, rel=1e-12)


def test_a_long_state_loads_into_a_pool_that_is_still_small():
    chosen = made({"a": Std("x"), "b": Last("i"), "c": Max("x")}, windows=[window("1h", hop="10s")])
    state = state_of(chosen)
    do(state, numbered(event(NOON + 10_000 * n, i=n, x=float(n)) for n in range(400)))
    fresh = restored(state)
    assert stored(fresh) == stored(state)
    assert fresh._words[layout.USED] <= len(fresh._words)


def test_memory_is_made_compact_rather_than_larger_and_knows_what_is_not_stored_yet(monkeypatch):
    monkeypatch.setattr(compacting, "PIECE", 4_096)
    monkeypatch.setattr(growing, "HUGE", 4_096)  # a few megabytes stand for many
    monkeypatch.setattr(growing, "_pieces", [])  # what others left may be larger than it need be
    chosen = made({"n": Count(), "low": Min("i")}, windows=["5m", "1h"])
    state = state_of(chosen)
    events = numbered(
        event(NOON + 90_000 * turn + 10 * n, partition=n % PARTITIONS, k=f"k{n}", i=turn)
        for turn in range(6)
        for n in range(3_000)
    )
    do(state, events[:-4_000])
    assert len(changed(state)) == 3_000
    do(state, events[-4_000:])
    kernel.compact(state._words, state._slots)
    heads = np.count_nonzero(state._slots) * state.plan.head_words
    tiles = sum(len(words_of(blob)) for p in range(PARTITIONS) for blob in state.blobs(p).values())
    assert state._words[layout.USED] - state._words[layout.BEGIN] < heads + 2 * tiles
    assert len(state._words) < 3 * (heads + tiles)
    assert changed(state) == {(p, e): blob for p in range(PARTITIONS) for e, blob in state.blobs(p).items()}
    whole = state_of(chosen)
    do(whole, events)
    assert stored(state) == stored(whole)


@pytest.mark.parametrize(
    ("later", "kept"),
    [(0, ("5s", "1m")), (5_998, ("5s", "1m")), (5_999, ("1m",)), (60_998, ("1m",)), (60_999, ()), (10**12, ())],
)
def test_values_decay_when_read_later_without_new_events(later, kept):
    state = state_of(made({"n": Count(), "x": Sum("x"), "top": Max("x")}, windows=["5s", "1m", "lifetime"]))
    do(state, [event(NOON, x=2.5)])
    want = {}
    for label in ("5s", "1m", "lifetime"):
        there = label in (*kept, "lifetime")
        want |= {f"n_{label}": int(there), f"x_{label}": 2.5 * there, f"top_{label}": 2.5 if there else None}
    assert read(state, as_of=NOON + later) == want


def test_a_read_is_never_before_the_newest_event_of_its_entity():
    state = state_of(made({"n": Count()}, windows=["5s"]))
    results = do(state, [event(NOON), event(NOON + 60_000, k="b", offset=1), (("a",), NOON - 99_000), (("c",), 7)])
    assert results.effective.tolist() == [NOON, NOON + 60_000, NOON, 7]
    assert results.words[:, 2:].tolist() == [[1, 0]]


def test_first_and_last_go_by_time_then_partition_then_offset():
    state = state_of(made({"first": First("i"), "last": Last("i")}, windows=["5s", "lifetime"]))
    events = [(0, 2), (0, 2), (1, 1), (1, 0), (1, 1), (0, 1), (0, 0), (0, 0), (1, 0)]
    do(state, numbered(event(NOON + time, partition=p, i=i) for i, (time, p) in enumerate(events)))
    assert read(state) == {"first_5s": 6, "last_5s": 4, "first_lifetime": 6, "last_lifetime": 4}


def test_what_a_float_sum_rounds_off_in_one_tile_is_there_when_another_cancels_it():
    state = state_of(made({"total": Sum("x"), "mean": Mean("x")}, windows=["5s"]))
    do(state, numbered(event(NOON + time, x=x) for time, x in [(0, 1e16), (0, 1.0), (1_000, -1e16), (2_000, 1.0)]))
    assert read(state) == {"total_5s": 2.0, "mean_5s": 0.5}


def test_an_integer_sum_that_would_overflow_is_refused_whole_and_its_neighbours_stay_exact():
    state = state_of(made({"total": Sum("i"), "n": Count(), "top": Max("i"), "mean": Mean("i")}, windows=["5s"]))
    big = INT64 - 1
    results = do(state, numbered(event(NOON, i=i, k=k) for k, i in [("a", big), ("a", 1), ("b", 1), ("a", -3)]))
    assert [STATUSES[status] for status in results.status] == ["folded", "overflow", "folded", "folded"]
    assert read(state, as_of=NOON) == {"total_5s": big - 3, "n_5s": 2, "top_5s": big, "mean_5s": (big - 3) / 2}
    assert read(state, ("b",), NOON)["total_5s"] == 1


def test_a_window_whose_sum_leaves_int64_is_null_and_one_that_comes_back_is_exact():
    state = state_of(made({"total": Sum("i"), "mean": Mean("i")}, windows=["5s"]))
    big = INT64 - 1
    do(state, numbered(event(NOON + 1_000 * n, i=big) for n in range(2)))
    assert read(state, as_of=NOON) == {"total_5s": None, "mean_5s": float(big)}
    do(state, [event(NOON + 2_000, i=-big, offset=2)])
    assert read(state, as_of=NOON) == {"total_5s": big, "mean_5s": pytest.approx(big / 3, rel=1e-15)}


def test_a_window_over_several_partitions_leaves_int64_and_comes_back_in_the_same_way():
    state = state_of(made({"total": Sum("i")}, windows=["5s"]))
    big = INT64 - 1
    events = numbered(
        event(NOON + 1_000 * n, partition=p, i=i) for p, i in [(0, 7), (1, big), (2, -big)] for n in (0, 1)
    )
    do(state, events[:4])
    assert read(state) == {"total_5s": None}
    do(state, events[4:])
    assert read(state) == {"total_5s": 14}


def test_an_expired_tile_overflows_no_event_whether_it_is_still_in_memory_or_not():
    chosen = made({"total": Sum("i")}, source=SOURCES[2], windows=["5s"])
    state = state_of(chosen)
    do(state, numbered(event(NOON + time, i=INT64 - 1) for time in (0, 1_000, 2_000, 3_000, 4_000, 60_000)))
    late = [event(NOON, i=1, offset=6)]
    got = bits(restored(state), late)
    assert got == bits(state, late)
    assert STATUSES[got[0][-1]] == "folded"


def test_an_event_too_late_for_every_window_is_not_folded():
    state = state_of(made({"n": Count()}, windows=["5s"]))  # lateness 10 s, hop 1 s
    times = [0, 60_000, 45_000, 44_999, 46_000]
    results = do(state, numbered(event(NOON + time) for time in times))
    assert [STATUSES[status] for status in results.status] == ["folded", "folded", "folded", "late", "folded"]
    assert not results.valid[:, 3].any()
    assert state.clock(0) == NOON + 60_000
    assert state.clock(1) is None


def test_each_partition_has_its_own_clock():
    state = state_of(made({"n": Count()}, windows=["5s"]))
    results = do(state, numbered([event(NOON + 60_000), event(NOON, partition=1)]))
    assert results.status.tolist() == [0, 0]


def test_an_event_without_its_entity_key_is_left_out_but_moves_the_clock():
    state = state_of(made({"n": Count()}, windows=["5s"]))
    results = do(state, numbered([event(NOON, k=None), event(NOON - 60_000)]))
    assert [STATUSES[status] for status in results.status] == ["keyless", "late"]
    assert stored(state)[0] == (NOON, {})


def test_an_event_that_a_state_holds_already_is_not_folded_again():
    events = numbered(event(NOON + 1_000 * n, k=k, x=1.0) for n, k in enumerate("aababbaa"))
    state = state_of(made({"n": Count(), "x": Sum("x")}, windows=["1h"]))
    do(state, events[:5])
    (ahead,) = (state.blobs(0)[encode_entity((k,))] for k in "a")
    do(state, events[5:])
    torn = state_of(state.plan.view)  # as a store leaves it that kept one state of a batch and lost the others
    torn.number([encode_entity(("a",))])
    torn.load(0, 0, ahead)
    do(torn, events)
    assert stored(torn) == stored(state)


def test_a_read_without_an_entity_is_null():
    state = state_of(made({"n": Count(), "x": Sum("x")}, windows=["5s"]))
    steps = Steps(*(np.array([each], np.int64) for each in (-1, NO_ENTITY, -1, NOON, -1)))
    results = state.run(steps, lane_inputs(state.plan, frame_of(SOURCE, []), state.texts), emit=False)
    assert not results.valid.any()


def test_without_emit_only_reads_give_features():
    state = state_of(made({"n": Count()}, windows=["5s"]))
    state.number([encode_entity(("a",))])
    steps = Steps(*np.array([[0, 0, 0, NOON, 0], [-1, 0, -1, NOON, -1]], np.int64).T.copy())
    results = state.run(steps, lane_inputs(state.plan, frame_of(SOURCE, [event(NOON)]), state.texts), emit=False)
    assert (results.valid[0, 1], results.words[0, 1]) == (True, 1)


@pytest.fixture(scope="module")
def blob():
    state = state_of(made({"n": Count(), "x": Sum("x")}, windows=["5s", "1h"]))
    do(state, numbered(event(NOON + 1_000 * n, x=1.0) for n in range(4)))
    return state.blobs(0)[encode_entity(("a",))]


@pytest.mark.parametrize(
    "damage",
    [
        lambda blob: b"",
        lambda blob: blob[:-1],
        lambda blob: blob[:-8],
        lambda blob: blob + bytes(8),
        lambda blob: bytes([1]) + blob[1:],
        lambda blob: blob[:4] + bytes([blob[4] ^ 1]) + blob[5:],
        lambda blob: blob[:7] + b"\x7f" + blob[8:],
        lambda blob: blob[:8] + b"\xff" * 8 + blob[16:],
        lambda blob: b"\x93NUMPY" + bytes(58),
    ],
)
def test_a_damaged_or_foreign_blob_is_refused_and_changes_nothing(blob, damage):
    state = state_of(made({"n": Count(), "x": Sum("x")}, windows=["5s", "1h"]))
    state.number([encode_entity(("a",))])
    state.load(0, 0, blob)
    with pytest.raises(FormatError, match=r"state of made@\w+, entity sa, .* rebuild"):
        state.load(0, 0, damage(blob))
    assert state.blobs(0) == {b"sa": blob}


@pytest.mark.parametrize(
    "damage",
    [
        lambda words: words[:8],
        lambda words: words[:-8],
        lambda words: words + bytes(8),
        lambda words: bytes([1]) + words[1:],
        lambda words: words[:8] + bytes(8) + words[16:],
        lambda words: words[:24] + (10**6).to_bytes(8, "little") + words[32:],
        lambda words: words[:24] + (-1).to_bytes(8, "little", signed=True) + words[32:],
        lambda words: words[:40] + words[72:104] + words[40:72] + words[104:],
    ],
)
def test_a_state_whose_words_cannot_be_is_refused_and_changes_nothing(blob, damage):
    state = state_of(made({"n": Count(), "x": Sum("x")}, windows=["5s", "1h"]))
    state.number([encode_entity(("a",))])
    state.load(0, 0, blob)
    with pytest.raises(FormatError, match=r"state of made@\w+, entity sa, .* rebuild"):
        state.load(0, 0, within(blob, damage))
    assert state.blobs(0) == {b"sa": blob}


@settings(deadline=None)
@given(st.lists(st.integers(-INT64, INT64 - 1) | st.integers(-1, 3), min_size=1, max_size=200))
def test_words_are_what_they_were_after_they_were_squeezed(words):
    given_words = np.array([words[0] & 0xFFFFFFFF, *words[1:]], np.int64)
    short = kernel.squeezed(given_words)
    assert np.array_equal(kernel.expanded(short), given_words)
    assert len(short) <= kernel.room_for(len(words))


def test_a_state_of_tiles_with_one_event_is_stored_in_half_of_its_words():
    state = state_of(made({"n": Count(), "x": Sum("x"), "low": Min("x"), "std": Std("x")}, windows=["5m", "1h", "1d"]))
    do(state, numbered(event(NOON + 1_800_000 * n, x=n / 3) for n in range(20)))
    (blob,) = state.blobs(0).values()
    assert 2 * len(blob) < 8 * len(words_of(blob))


@settings(deadline=None)
@given(
    st.binary(max_size=200)
    | st.lists(st.integers(-INT64, INT64 - 1) | st.integers(-1, 300), max_size=30).map(
        lambda w: np.array(w, np.int64).tobytes()
    )
)
def test_no_bytes_break_loading(raw):
    state = state_of(made({"n": Count(), "x": Sum("x")}, windows=["5s", "1h"]))
    state.number([encode_entity(("a",))])
    try:
        state.load(0, 0, raw)
    except FormatError:
        return
    assert state.blobs(0) in ({b"sa": raw}, {})


def test_states_are_looked_up_once_until_the_partition_is_written_elsewhere():
    state = ViewState(compiled(made({"n": Count()}, windows=["5s"])), 2)
    numbers = state.number([b"sa", b"sb"])
    assert state.missing(numbers, [0, 1]) == [(0, 0), (1, 0), (0, 1), (1, 1)]
    state.load(0, 0, None)
    state.assume_new(1)
    assert state.missing(numbers, [0, 1]) == [(1, 0)]
    many = state.number([b"s%d" % n for n in range(200)])
    assert state.missing(many, [1]) == []
    state.stale(1)
    more = state.number([b"i%d" % n for n in range(500)])
    assert len(state.missing(more, [1])) == 500
    assert state.missing(numbers, [1]) == [(0, 1), (1, 1)]


def test_a_state_that_was_written_elsewhere_takes_the_place_of_the_one_in_memory():
    mine = state_of(made({"n": Count(), "x": Sum("x")}, windows=["5s"]))
    do(mine, numbered(event(NOON + time, x=1.0) for time in (0, 1_000, 2_000)))
    other = restored(mine)
    do(other, [event(NOON, x=5.0, offset=3)])
    mine.stale(0)
    mine.load(0, 0, other.blobs(0)[b"sa"])
    assert read(mine) == read(other) == {"n_5s": 4, "x_5s": 8.0}


def test_an_entity_that_is_nowhere_stored_leaves_no_state_behind():
    state = state_of(made({"n": Count()}, windows=["5s"]))
    state.number([b"sa"])
    state.load(0, 0, None)
    assert read(state, as_of=NOON) == {"n_5s": 0}
    assert state.blobs(0) == {}
    assert state.take_changes() == []


def test_no_state_is_larger_than_its_plan_says():
    chosen = made({"n": Count(), "x": Std("x")}, windows=["5s", "1m", "lifetime"])
    state = state_of(chosen)
    do(state, numbered(event(NOON + 500 * n, x=1.0) for n in range(400)))
    (blob,) = state.blobs(0).values()
    assert len(blob) <= 8 * state.plan.state_words


def test_infinite_inputs_stay_infinite():
    state = state_of(made({"x": Sum("x"), "top": Max("x"), "mean": Mean("x")}, windows=["5s"]))
    do(state, numbered(event(NOON, x=x) for x in (math.inf, 1.0)))
    assert read(state, as_of=NOON) == {"x_5s": math.inf, "top_5s": math.inf, "mean_5s": math.inf}
