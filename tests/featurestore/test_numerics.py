"""Numbers that naive arithmetic gets wrong, and times on the edge, in each kind of window."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from featurestore import Corr, Count, Kurtosis, Last, Max, Mean, Min, Skew, Slope, Std, Sum, last, session, window
from featurestore.frames import lane_inputs
from featurestore.kernel import Steps
from featurestore.keys import encode_entity
from tests.featurestore.closeness import INT64
from tests.featurestore.helpers import NOON, STATUSES, do, event, made, numbered, read, state_of, values_of

#: Windows that hold all that came in the four seconds from noon on, as of `AFTER`.
KINDS = {
    "one tile": window("1h", hop="1h"),
    "a lifetime": window("lifetime"),
    "tiles": window("10s", hop="1s"),
    "delayed tiles": window("10s", hop="1s", delay="1s"),
    "exact": window("10s", exact=True),
    "delayed exact": window("10s", exact=True, delay="1s"),
    "last": last(10_000),
    "session": session("5s"),
}
AFTER = NOON + 5_000
WHOLE_TILES = ("one tile", "a lifetime")
each_kind = pytest.mark.parametrize("kind", KINDS)


def spread(values, column="x"):
    """Events with these values, evenly over the four seconds."""
    return numbered(event(NOON + 4_000 * n // len(values), **{column: value}) for n, value in enumerate(values))


def features_of(kind, features, events):
    """What features over one kind of window say of the events, by the names they were given."""
    state = state_of(made(features, windows=[KINDS[kind]]))
    results = do(state, events)
    assert {STATUSES[status] for status in results.status} == {"folded"}
    return named(kind, read(state, as_of=AFTER))


def named(kind, values):
    return {name.removesuffix(f"_{KINDS[kind].label}"): value for name, value in values.items()}


def sum_of(kind, values):
    """The sum of very many values."""
    state, count = state_of(made({"total": Sum("x")}, windows=[KINDS[kind]])), len(values)
    state.number([encode_entity(("a",))])
    times, zeros = NOON + np.arange(count) * 4_000 // count, np.zeros(count, np.int64)
    steps = Steps(np.arange(count), zeros, zeros, times, np.arange(count))
    state.run(steps, lane_inputs(state.plan, pl.DataFrame({"x": values}), state.texts), emit=False)
    return named(kind, read(state, as_of=AFTER))["total"]


@each_kind
def test_a_slope_over_milliseconds_is_as_good_as_one_over_hours(kind):
    events = numbered(event(NOON + time, x=x) for time, x in [(0, 0.0), (0, 0.0), (1, 1.0)])
    assert features_of(kind, {"slope": Slope("x")}, events) == {"slope": pytest.approx(1_000, rel=1e-12)}


@each_kind
@pytest.mark.parametrize("column", ["x", "i"])
def test_the_deviation_of_large_neighbours_is_exact(kind, column):
    events = spread([10**9, 10**9 + 1, 10**9 + 2], column)
    assert features_of(kind, {"std": Std(column)}, events) == {"std": 1.0}


@each_kind
def test_an_offset_of_a_billion_does_not_change_skewness_and_tails(kind):
    values = np.round(np.random.default_rng(3).exponential(8, 1_000) * 1_024) / 1_024  # with the offset still floats
    shapes = {"skew": Skew("x"), "tails": Kurtosis("x")}
    plain, moved = (features_of(kind, shapes, spread((values + offset).tolist())) for offset in (0, 1e9))
    assert moved == pytest.approx(plain, rel=1e-6)
    third, fourth = (np.mean((values - values.mean()) ** power) / values.std() ** power for power in (3, 4))
    assert plain == pytest.approx({"skew": third, "tails": fourth - 3}, rel=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "last"])  # which is of ten thousand events at most
def test_the_sum_of_a_million_cents_is_exact(kind):
    cents = np.full(1_000_000, 0.01)
    assert sum_of(kind, cents) == pytest.approx(10_000, rel=1e-12, abs=0)
    rng = np.random.default_rng(4)
    mixed = np.where(rng.random(1_000_000) < 0.5, cents, rng.choice([1e12, -1e12, 7e-9, 1e5], 1_000_000))
    assert sum_of(kind, mixed) == pytest.approx(math.fsum(mixed), rel=1e-12, abs=0)


@pytest.mark.parametrize(
    "leaving",
    [
        window("10s", hop="1s"),
        window("10s", hop="1s", delay="1s"),
        window("10s", exact=True),
        window("10s", exact=True, delay="1s"),
        last(7),
        session("5s"),
    ],
    ids=lambda leaving: f"{leaving.kind} {leaving.label}",
)
def test_a_huge_value_that_a_window_let_go_leaves_no_trace(leaving):
    kinds = {"sum": Sum, "mean": Mean, "std": Std, "high": Max, "skew": Skew, "tails": Kurtosis, "slope": Slope}
    features = {**{name: kind("x") for name, kind in kinds.items()}, "corr": Corr("x", other="i")}
    longer = [window("1m", hop="1s"), window("1m", exact=True), last(200)]  # they hold it on
    longer = [each for each in longer if each.kind == leaving.kind]
    state = state_of(made(features, windows=[leaving, *longer]))
    huge = [event(NOON + time, x=x, i=1) for time, x in [(-7_000, 3.0), (-6_000, 1e16), (-5_999, 1e16)]]
    held, never = ([event(NOON + 300 * n, k=k, x=0.1 * (n % 13), i=n * n) for n in range(100)] for k in "ab")
    work = numbered([*huge, *(each for both in zip(held, never, strict=True) for each in both)])
    results = do(state, work)
    after = [step for step, each in enumerate(work) if each["_time"] >= NOON + 6_000 and each["k"] == "a"]
    assert len(after) == 80
    for step in after:
        one, other = (values_of(state.plan, results, each) for each in (step, step + 1))
        assert {name: one[f"{name}_{leaving.label}"] for name in features} == {
            name: other[f"{name}_{leaving.label}"] for name in features
        }
        assert not longer or one[f"high_{longer[0].label}"] == 1e16


@each_kind
@pytest.mark.parametrize(
    ("values", "total", "mean"),
    [
        ([-INT64], -INT64, -float(INT64)),
        ([INT64 - 1, -INT64], -1, -0.5),
        ([-INT64, INT64 - 1, INT64 - 1], INT64 - 2, (INT64 - 2) / 3),
        ([INT64 - 1, -1, 1], INT64 - 1, (INT64 - 1) / 3),
    ],
)
def test_the_ends_of_int64_are_numbers_like_others(kind, values, total, mean):
    features = {"total": Sum("i"), "mean": Mean("i"), "low": Min("i"), "high": Max("i")}
    want = {"total": total, "mean": pytest.approx(mean, rel=1e-15), "low": min(values), "high": max(values)}
    assert features_of(kind, features, spread(values, "i")) == want


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WHOLE_TILES])
def test_a_sum_that_leaves_int64_is_null_and_its_mean_is_right(kind):
    features, big = {"total": Sum("i"), "mean": Mean("i")}, INT64 - 1
    assert features_of(kind, features, spread([big, big], "i")) == {"total": None, "mean": float(big)}
    assert features_of(kind, features, spread([-INT64, -INT64, -1], "i"))["total"] is None
    assert features_of(kind, features, spread([big, big, -big], "i"))["total"] == big


EXACT, TILED = window("10s", exact=True), window("10s", hop="1s")
LATE_EXACT, LATE_TILED = window("10s", exact=True, delay="3s"), window("10s", hop="1s", delay="3s")


@pytest.mark.parametrize("others", [0, 6], ids=["alone", "among others"])
@pytest.mark.parametrize("beside", [{}, {"last": Last("i")}], ids=["counted", "merged"])  # the kernel's two ways
@pytest.mark.parametrize(
    ("over", "as_of", "inside", "outside"),
    [
        (EXACT, 123_457, [113_458, 123_457], [113_457]),
        (EXACT, 120_000, [110_001, 120_000], [110_000]),
        (LATE_EXACT, 123_457, [110_458, 120_457], [110_457, 120_458]),
        (TILED, 119_999, [110_000, 119_999], [109_999]),  # tiles begin where the window does
        (
            TILED,
            120_000,
            [110_000, 120_000],
            [109_999],
        ),  # a millisecond later: its first tile is whole
        (TILED, 120_998, [110_000, 120_998], [109_999]),
        (TILED, 120_999, [111_000, 120_999], [110_999]),
        (LATE_TILED, 122_999, [110_000, 119_999], [109_999, 120_000]),
        (LATE_TILED, 123_000, [110_000, 120_999], [109_999, 121_000]),
    ],
)
def test_windows_begin_and_end_on_the_millisecond(over, as_of, inside, outside, beside, others):
    end = as_of - over.delay
    between = [event(NOON + end - 1_300 * n) for n in range(others, 0, -1)]
    for time in [*inside, *outside]:
        events = sorted([*between, event(NOON + time)], key=lambda each: each["_time"])
        state = state_of(made({"n": Count(), **beside}, windows=[over]))
        do(state, numbered(events))
        assert read(state, as_of=NOON + as_of)[f"n_{over.label}"] == others + (time in inside), time
        results = do(state, [event(NOON + as_of, offset=len(events))])
        now = 0 if over.delay else 1
        assert values_of(state.plan, results, 0)[f"n_{over.label}"] == others + (time in inside) + now, time
