"""What bags keep of very many values, and how far off sketches, bins and heavy hitters may be."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import CountBy, Distinct, Mode, Quantile, SumBy, TopK, last, oracle, window
from featurestore.columns import coded
from featurestore.kernel import sketches
from featurestore.texts import Texts
from tests.featurestore.closeness import INT64, of_bins
from tests.featurestore.helpers import NOON, callable_part, do, event, fold, made, numbered, read, restored, state_of

estimated, to_registers = callable_part(sketches.estimated), callable_part(sketches.to_registers)

MILLION = 1_000_000

# Very many different values of one entity

HEAVY = [9_000, 5_000, 3_000]
TEXTS = 250_000


@pytest.fixture(scope="module")
def crowded():
    """The state of one entity that had three heavy numbers among a million that came once, in random order.

    As texts they are fewer, since each of these takes Python some microseconds.
    """
    features = {
        "by": CountBy("s"),
        "sums": SumBy("i", by="s"),
        "top": TopK("g", k=3),
        "mode": Mode("g"),
        "n": Distinct("g"),
    }
    state = state_of(made(features, windows=["lifetime"]))
    rng = np.random.default_rng(7)
    heavy = np.repeat([-1, -2, -3], HEAVY)
    values = rng.permutation(np.concatenate([heavy, np.arange(MILLION)]))
    return fold(state, g=values, s=(values % TEXTS).astype(str), i=np.ones(len(values), np.int64)), values


def test_of_so_many_categories_a_state_keeps_what_its_plan_says(crowded):
    state, _ = crowded
    (blob,) = state.blobs(0).values()
    kept_texts = 2 * 100
    assert len(blob) <= 8 * (state.plan.state_words + 2 * kept_texts)
    assert read(restored(state)) == read(state)


def test_of_so_many_categories_the_rest_adds_up_exactly(crowded):
    state, values = crowded
    found = read(state)
    for name in ("by_lifetime", "sums_lifetime"):
        assert len(found[name]) == 101
        assert sum(found[name].values()) == len(values)
        shown = {key: n for key, n in found[name].items() if key != "other"}
        assert all(n == np.count_nonzero(values % TEXTS == int(key)) for key, n in shown.items())


def test_heavy_hitters_among_a_million_are_found_and_never_counted_too_low(crowded):
    state, values = crowded
    found, bound = read(state), 1_000
    assert [each["value"] for each in found["top_lifetime"]] == [-1, -2, -3]
    for each, true in zip(found["top_lifetime"], HEAVY, strict=True):
        assert true <= each["count"] <= true + len(values) / bound
    assert found["mode_lifetime"] == -1


def test_a_million_values_are_told_apart_and_halved_within_the_bounds(crowded):
    state, values = crowded
    assert read(state)["n_lifetime"] == pytest.approx(MILLION + 3, rel=4 * 0.023)
    halved = fold(state_of(made({"half": Quantile("g")}, windows=["lifetime"])), g=values)
    assert read(halved)["half_lifetime"] == pytest.approx(np.median(values), rel=0.008)
    (blob,) = halved.blobs(0).values()
    assert len(blob) < 8 * 3 * 64 * 22  # 64 bins an octave, of numbers below 2^20


# Distinct


def hashes(values):
    return coded(pl.Series(values), "hash", Texts())[0]


def estimate(values):
    """How many values a sketch takes for distinct."""
    words = np.zeros(2 * len(values) + 64, np.int64)
    words[: 2 * len(values) : 2] = np.sort(hashes(values))
    end = to_registers(words, 0, 2 * len(values), 2)
    return estimated(words, 0, end, 2, end)


def test_a_sketch_is_off_by_what_its_standard_error_says():
    rng = np.random.default_rng(3)
    sizes = np.exp(rng.uniform(np.log(1e3), np.log(2e5), 200)).astype(int)
    sizes[:2] = MILLION
    errors = [estimate(seed * MILLION + np.arange(size)) / size - 1 for seed, size in enumerate(sizes)]
    assert math.sqrt(np.mean(np.square(errors))) < 0.03
    assert abs(np.mean(errors)) < 0.006  # no bias
    assert max(map(abs, errors)) < 5 * 0.023


@pytest.mark.parametrize("column", ["i", "x", "s", "at"])
def test_distinct_is_exact_up_to_its_bound_and_near_beyond(column):
    bound, state = 256, state_of(made({"n": Distinct({"at": "i"}.get(column, column))}, windows=["lifetime"]))
    make = {"i": lambda n: n, "x": lambda n: n / 7, "s": lambda n: f"customer {n}", "at": lambda n: NOON + n}[column]
    name = {"at": "i"}.get(column, column)
    fold(state, **{name: [make(n) for n in range(bound)] * 2})
    assert read(state) == {"n_lifetime": bound}
    fold(state, first=1_000, **{name: [make(n) for n in range(bound + 1)]})
    assert read(state)["n_lifetime"] == pytest.approx(bound + 1, rel=0.1)
    fold(state, first=2_000, **{name: [make(n) for n in range(5_000)]})
    assert read(state)["n_lifetime"] == pytest.approx(5_000, rel=0.1)


def test_distinct_of_a_window_is_exact_again_once_it_has_let_the_many_go():
    state = state_of(made({"n": Distinct("i", bound=50), "few": Distinct("i", bound=5)}, windows=["5s"]))
    times = np.repeat(NOON + 1_000 * np.arange(8), [600, 1, 1, 1, 1, 1, 1, 1])
    values = np.concatenate([np.arange(600), [1, 2, 3, 4, 4, 1, 2]])
    fold(state, times=times[:600], i=values[:600])
    assert read(state)["n_5s"] == pytest.approx(600, rel=0.1)
    assert read(state)["n_5s"] != 600
    fold(state, first=600, times=times[600:], i=values[600:])
    assert read(restored(state)) == read(state) == {"n_5s": 4, "few_5s": 4}


def test_a_window_of_small_tiles_is_a_sketch_when_it_has_more_than_the_bound_in_all():
    state = state_of(made({"n": Distinct("i", bound=100)}, windows=["5s"]))
    fold(state, times=NOON + np.repeat(1_000 * np.arange(5), 80), i=np.arange(400))
    assert read(state)["n_5s"] == pytest.approx(400, rel=0.1)
    assert read(state, as_of=NOON + 8_000)["n_5s"] == pytest.approx(160, rel=0.1)
    assert read(state, as_of=NOON + 9_000)["n_5s"] == 80


# Quantile

HARD = st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 2.3e-308, -1e-300, 1.0, -1.0, 1e308, -1e308, math.inf, -math.inf])
HARD |= st.floats(allow_nan=False)


@settings(max_examples=100)
@given(st.lists(HARD, min_size=1, max_size=20))
def test_a_quantile_in_bins_is_within_its_bound_and_an_exact_one_is_exact(values):
    features = {f"q{q}": Quantile("x", q=q / 4) for q in range(5)}
    windows = ["5s", window("4s", exact=True), last(20)]
    state = state_of(made(features, windows=windows))
    do(state, numbered(event(NOON, x=x) for x in values))
    found, ordered = read(state, as_of=NOON), sorted(values)
    for q in range(5):
        rank = q * (len(values) - 1) / 4
        low, high = ordered[math.floor(rank)], ordered[math.ceil(rank)]
        want = oracle._quantile(ordered, q / 4)
        want = None if math.isnan(want) else want
        assert found[f"q{q}_4s"] == found[f"q{q}_last_20"] == want
        got = found[f"q{q}_5s"]
        if want is None or math.isinf(want):
            assert got == want
        else:
            bound = of_bins(max(abs(low), abs(high)))
            assert abs(got / 4 - want / 4) <= bound / 4


def median(rows, aggregate):
    """What a quantile gives of events at noon."""
    state = state_of(made({"f": aggregate}, windows=["5s"]))
    do(state, numbered(event(NOON, **row) for row in rows))
    (value,) = read(state, as_of=NOON).values()
    return value


@pytest.mark.parametrize("values", [[INT64 - 1] * 3, [-INT64, INT64 - 1], [-INT64] * 2, [0, 0, 1]])
def test_a_quantile_of_integers_is_that_of_their_floats(values):
    floats = np.array(values, np.float64)
    got = median([{"i": i} for i in values], Quantile("i"))
    assert abs(got - np.median(floats)) <= 0.008 * max(abs(floats))


def test_nothing_has_no_quantile_and_nan_counts_as_nothing():
    assert median([{"x": math.nan}, {}], Quantile("x")) is None
    assert median([{"x": math.nan}, {"x": 2.0}], Quantile("x", windows=[window("5s", exact=True)])) == 2.0
