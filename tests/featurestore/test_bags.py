"""Bags and lists: what their definitions refuse, what they keep of very many values, and how far off they may be."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import (
    Count,
    CountBy,
    Distinct,
    FirstN,
    Histogram,
    LastN,
    Mode,
    Quantile,
    SumBy,
    TopK,
    col,
    last,
    oracle,
    session,
    window,
)
from featurestore.bagging import Bag
from featurestore.columns import coded
from featurestore.errors import DefinitionError, FormatError
from featurestore.frames import checked_events, lane_inputs
from featurestore.kernel import Steps, layout
from featurestore.kernel.gathering import merged
from featurestore.kernel.sketches import estimated, to_registers
from featurestore.keys import encode_entity
from featurestore.plan import compiled
from featurestore.texts import MAX_TEXT, Texts
from tests.featurestore.closeness import EPS, INT64, REAL
from tests.featurestore.helpers import NOON, PARTITIONS, SOURCE, do, event, made, numbered, read, restored, state_of

MILLION = 1_000_000
TEXT = st.sampled_from(["p", "q", "", "r", None])


def fold(state, *, partition=0, first=0, times=None, **columns):
    """Fold many events of entity "a", by default all at noon, looking at no feature in between."""
    count = len(next(iter(columns.values())))
    given_ = {"k": pl.repeat("a", count, eager=True), "at": np.full(count, NOON) if times is None else times, **columns}
    frame = pl.DataFrame(given_).with_columns(pl.lit(None).alias(c) for c in SOURCE.schema if c not in given_)
    frame = checked_events(SOURCE, frame)
    (number,) = state.number([encode_entity(("a",))])
    every, offsets = np.arange(count), first + np.arange(count)
    steps = Steps(every, np.full(count, number), np.full(count, partition), frame["_time"].to_numpy(), offsets)
    state.run(steps, lane_inputs(state.plan, frame, state.texts), emit=False)
    return state


def over(aggregate, *values, column="x", windows=("5s",), **others):
    """What an aggregate over a window gives of values that came one after another."""
    state = state_of(made({"f": aggregate}, windows=list(windows)))
    rows = zip(values, *others.values(), strict=True)
    do(state, numbered(event(NOON, **dict(zip([column, *others], row, strict=True))) for row in rows))
    (value,) = read(state, as_of=NOON).values()
    return value


def tops(*pairs):
    return [{"value": value, "count": count} for value, count in pairs]


# Definitions


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Quantile("s"), "Quantile needs numbers, and column 's' is a str"),
        (lambda: Quantile("at"), "Quantile of a timestamp has no meaning; derive a duration first"),
        (lambda: Histogram("s", edges=[1]), "Histogram needs numbers, and column 's' is a str"),
        (lambda: SumBy("s", by="i"), "SumBy needs numbers, and column 's' is a str"),
        (lambda: SumBy("s", by="s"), "SumBy needs numbers, and column 's' is a str"),
        (lambda: SumBy("at", by="s"), "SumBy of a timestamp has no meaning; derive a duration first"),
        (lambda: CountBy("x"), r"CountBy needs categories, and column 'x' is a float; derive a text or an int"),
        (lambda: CountBy("at"), "CountBy needs categories, and column 'at' is a timestamp"),
        (lambda: SumBy("i", by="x"), "SumBy needs categories, and column 'x' is a float; derive a text or an int"),
        (lambda: SumBy("i", by="ss"), "there is no column 'ss' in 'events'; did you mean 's'"),
        (lambda: TopK("ss"), "there is no column 'ss' in 'events'; did you mean 's'"),
        *[
            (lambda edges=edges: Histogram("x", edges=edges), "give finite numbers in ascending order, at least one")
            for edges in ([], [2, 1], [1, 1], [math.nan], [1, math.inf], [10**400], ["1"], [True, 2], 5)
        ],
        (lambda: Histogram("x", edges=range(10_001)), "give a whole number from 1 to 10,000"),
        *[
            (lambda q=q: Quantile("x", q=q), "q lies between 0 and 1, such as 0.95")
            for q in (-0.1, 1.1, 95, math.nan, "0.5", True)
        ],
        *[
            (lambda make=make, wrong=wrong: make(wrong), rf"=.*{wrong}\): give a whole number from 1 to 10,000")
            for make in (
                lambda n: Distinct("s", bound=n),
                lambda n: TopK("s", k=n),
                lambda n: Mode("s", bound=n),
                lambda n: CountBy("s", bound=n),
                lambda n: SumBy("i", by="s", bound=n),
                lambda n: FirstN("s", n=n),
                lambda n: LastN("s", n=n),
            )
            for wrong in (0, -1, 10_001, 1.5, True)
        ],
        (lambda: TopK("s", k=10, bound=9), r"TopK\(bound=9\): give a whole number from 10 to 10,000"),
        (lambda: CountBy("s", other=None), "give the text under which the rest adds up"),
        (lambda: SumBy("i", by="s", other=7), "give the text under which the rest adds up"),
    ],
)
def test_a_definition_that_cannot_work_says_what_to_do(make, says):
    with pytest.raises(DefinitionError, match=says):
        made({"f": make()}, windows=["5s"])


def test_two_features_that_say_the_same_give_the_same():
    twice = {
        "n": lambda: Distinct("i", bound=2),
        "by": lambda: CountBy("s", bound=1),
        "sum": lambda: SumBy("x", by="s", bound=1),
        "top": lambda: TopK("s", k=2),
        "mode": lambda: Mode("s"),
    }
    state = state_of(made({f"{f}{i}": make() for f, make in twice.items() for i in range(2)}, windows=["5s"]))
    rows = [("p", 1e16), ("p", 1.0), ("p", -1e16), ("q", 2.0), ("r", 3.0)]
    do(state, numbered(event(NOON + 1_000 * n, i=n, s=s, x=x) for n, (s, x) in enumerate(rows)))
    values = read(state)
    assert [values[f"{name}0_5s"] for name in twice] == [values[f"{name}1_5s"] for name in twice]
    assert values["by1_5s"] == {"p": 3, "other": 2}
    assert values["sum1_5s"] == {"r": 3.0, "other": 3.0}


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


@pytest.mark.parametrize(
    ("aggregate", "key", "counted"),
    [(Histogram("x", edges=[0.0]), 2, 1), (Histogram("x", edges=[0.0]), -1, 1), (Distinct("x", bound=1), -INT64, 255)],
)
def test_a_stored_bag_with_what_no_bag_has_is_refused(aggregate, key, counted):
    state = state_of(made({"f": aggregate}, windows=["lifetime"]))
    do(state, [event(NOON, x=1.0)])
    (blob,) = state.blobs(0).values()
    words = np.frombuffer(blob, np.int64).copy()
    words[layout.HEAD + 2 :] = key, counted
    with pytest.raises(FormatError, match="rebuild"):
        state.load(0, 0, words.tobytes())
    assert state.blobs(0) == {b"sa": blob}


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


def test_distinct_looks_at_whole_texts_and_the_rest_at_their_beginnings():
    long = ["x" * MAX_TEXT + end for end in "ab"]
    assert over(Distinct("s"), *long, column="s") == 2
    assert over(CountBy("s"), *long, column="s") == {"x" * MAX_TEXT: 2}
    assert over(TopK("s"), *long, column="s") == tops(("x" * MAX_TEXT, 2))
    assert over(LastN("s", n=2), *long, column="s") == ["x" * MAX_TEXT] * 2


def test_a_long_text_is_cut_by_characters_not_bytes():
    assert over(LastN("s", n=1), "\u20ac" * 300, column="s") == ["\u20ac" * MAX_TEXT]


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
            bound = 0.008 * max(abs(low), abs(high)) + 2.0**-1028
            assert abs(got / 4 - want / 4) <= bound / 4


@pytest.mark.parametrize("values", [[INT64 - 1] * 3, [-INT64, INT64 - 1], [-INT64] * 2, [0, 0, 1]])
def test_a_quantile_of_integers_is_that_of_their_floats(values):
    floats = np.array(values, np.float64)
    got = over(Quantile("i"), *values, column="i")
    assert abs(got - np.median(floats)) <= 0.008 * max(abs(floats))


def test_nothing_has_no_quantile_and_nan_counts_as_nothing():
    assert over(Quantile("x"), math.nan, None) is None
    assert over(Quantile("x"), math.nan, 2.0, windows=[window("5s", exact=True)]) == 2.0


# Sums and counts by category


def test_a_sum_by_category_keeps_what_rounding_would_lose():
    assert over(SumBy("x", by="s"), 1e16, 1.0, -1e16, 2.5, s=["p", "p", "p", "q"]) == {"q": 2.5, "p": 1.0}


@pytest.mark.parametrize("windows", [["5s"], ["lifetime"], [last(5)], [window("5s", exact=True)], [session("1s")]])
def test_an_integer_sum_that_leaves_int64_is_null_in_its_category_only(windows):
    big = INT64 - 1
    sums = over(SumBy("i", by="s"), big, 1, 7, column="i", s=["p", "p", "q"], windows=windows)
    assert sums == {"p": None, "q": 7}
    back = over(SumBy("i", by="s"), big, 1, 7, -big, column="i", s=["p", "p", "q", "p"], windows=windows)
    assert back == {"q": 7, "p": 1}


def test_the_rest_overflows_alone_too():
    big = INT64 - 1
    sums = over(SumBy("i", by="s", bound=1), 5, big, big, column="i", s=["p", "q", "r"])
    assert sums == {"p": 5, "other": None}


def test_a_category_that_is_called_other_adds_up_with_the_rest():
    assert over(CountBy("s", bound=1), "other", "p", "p", "q", column="s") == {"p": 2, "other": 2}
    assert over(CountBy("s", bound=1, other="p"), "q", "p", "q", column="s") == {"q": 2, "p": 1}


def test_a_tile_knows_the_categories_that_came_first_and_a_window_shows_the_largest():
    assert over(CountBy("s", bound=2), *"pqrrr", column="s") == {"p": 1, "q": 1, "other": 3}
    state = state_of(made({"by": CountBy("s", bound=2)}, windows=["5s"]))
    do(state, numbered(event(NOON + 1_000 * n, s=s) for n, s in enumerate("pqrrr")))
    by = read(state)["by_5s"]
    assert (by["r"], by["other"], sum(by.values())) == (3, 1, 5)


def test_bools_and_integers_are_categories_by_their_text():
    assert over(CountBy("b"), True, False, True, column="b") == {"true": 2, "false": 1}
    assert over(CountBy("i"), -5, 7, -5, column="i") == {"-5": 2, "7": 1}


def test_the_empty_text_is_a_value():
    assert over(CountBy("s"), "", "", None, column="s") == {"": 2}
    assert over(Mode("s"), "", column="s") == ""
    assert over(FirstN("s", n=3), "", None, "p", column="s") == ["", "p"]


def test_over_nothing_lists_and_maps_are_empty_and_a_mode_is_null():
    features = {"by": CountBy("s"), "top": TopK("s"), "all": LastN("s", n=2), "mode": Mode("s"), "n": Distinct("s")}
    features |= {"edges": Histogram("x", edges=[1])}
    nothing = {"by_5s": {}, "top_5s": [], "all_5s": [], "mode_5s": None, "n_5s": 0, "edges_5s": [0, 0]}
    assert read(state_of(made(features, windows=["5s"]))) == nothing


# Floats that are no plain numbers, times


def test_zero_has_no_sign_where_values_are_counted_and_keeps_it_where_they_are_listed():
    values = [-0.0, 0.0, math.nan, -0.0]
    assert repr(over(TopK("x"), *values)) == repr(tops((0.0, 3)))
    assert repr(over(Mode("x"), *values)) == "0.0"
    assert over(Distinct("x"), *values) == 1
    assert repr(over(FirstN("x", n=4), *values)) == "[-0.0, 0.0, -0.0]"


def test_infinities_are_values():
    values = [math.inf, -math.inf, -math.inf]
    assert over(TopK("x"), *values) == tops((-math.inf, 2), (math.inf, 1))
    assert over(Histogram("x", edges=[0.0]), *values) == [2, 1]
    assert over(LastN("x", n=2), *values) == [-math.inf, -math.inf]


def test_of_what_came_equally_often_the_smaller_number_is_first():
    assert over(TopK("i"), 3, -2, 3, -2, 9, column="i") == tops((-2, 2), (3, 2), (9, 1))
    assert over(Mode("x"), 1.5, -1.5) == -1.5


def test_times_are_values():
    features = {"top": TopK("at", k=1), "n": Distinct("at"), "first": FirstN("at", n=2), "mode": Mode("at")}
    state = state_of(made(features, windows=["lifetime"]))
    do(state, numbered(event(NOON + time) for time in (5, 3, 5)))
    assert {name: feature.type for name, feature in state.plan.view.features.items()} == {
        "top_lifetime": "counts[timestamp[ms]]",
        "n_lifetime": "int",
        "first_lifetime": "list[timestamp[ms]]",
        "mode_lifetime": "timestamp[ms]",
    }
    first = [NOON + 3, NOON + 5]
    top = tops((NOON + 5, 2))
    assert read(state) == {
        "top_lifetime": top,
        "n_lifetime": 2,
        "first_lifetime": first,
        "mode_lifetime": NOON + 5,
    }


# Windows

EVERYTHING = {
    "top": TopK("s"),
    "by": CountBy("s"),
    "sums": SumBy("i", by="s"),
    "n": Distinct("s"),
    "first": FirstN("i", n=2),
    "last": LastN("i", n=2),
    "middle": Quantile("i"),
    "edges": Histogram("i", edges=[2]),
}


def seen(state, label, as_of):
    """What the features say, by their names without the window's."""
    return {name: value for name in EVERYTHING if (value := read(state, as_of=as_of)[f"{name}_{label}"]) is not None}


def test_partitions_are_taken_together():
    state = state_of(made(EVERYTHING, windows=["lifetime"]))
    rows = [(0, "p", 1, 30), (1, "p", 2, 10), (2, "q", 3, 20), (1, "q", 4, 30), (0, "p", 5, 10)]
    do(state, numbered(event(NOON + time, partition=p, s=s, i=i) for p, s, i, time in rows))
    assert seen(state, "lifetime", NOON) == {
        "top": tops(("p", 3), ("q", 2)),
        "by": {"p": 3, "q": 2},
        "sums": {"p": 8, "q": 7},
        "n": 2,
        "first": [5, 2],
        "last": [1, 4],
        "middle": pytest.approx(3, rel=0.008),
        "edges": [1, 4],
    }


def test_a_delayed_window_lists_what_it_holds_and_not_what_came_since():
    state = state_of(made({"last": LastN("i", n=2), "by": CountBy("s")}, windows=[window("10s", delay="5s")]))
    do(state, numbered(event(NOON + 1_000 * n, i=n, s=f"{n % 2}") for n in range(12)))
    assert (
        read(restored(state)) == read(state) == {"last_10s_delayed_5s": [5, 6], "by_10s_delayed_5s": {"0": 4, "1": 3}}
    )


def test_an_event_out_of_order_joins_two_sessions_and_their_bags_and_lists():
    state = state_of(made(EVERYTHING, windows=[session("2s")]))
    do(state, numbered(event(NOON + time, s=s, i=i) for time, s, i in [(0, "p", 1), (3_000, "q", 2), (3_500, "p", 3)]))
    assert seen(state, "session_2s", NOON + 3_500)["sums"] == {"p": 3, "q": 2}
    do(state, [event(NOON + 1_500, s="r", i=9, offset=3)])
    want = {
        "top": [{"p": 2, "r": 1, "q": 1}],
        "by": {"p": 2, "q": 1, "r": 1},
        "sums": {"r": 9, "p": 4, "q": 2},
        "n": 3,
        "first": [1, 9],
        "last": [2, 3],
        "middle": pytest.approx(2.5, rel=0.008),
        "edges": [1, 3],
    }
    for each in (state, restored(state)):
        got = seen(each, "session_2s", NOON + 3_500)
        got["top"] = [{top["value"]: top["count"] for top in got["top"]}]
        assert got == want


def test_sessions_that_are_joined_lose_no_event_though_their_bags_were_full():
    state = state_of(made({"by": CountBy("i", bound=2), "n": Count()}, windows=[session("2s")]))
    times = [*range(0, 500, 100), *range(3_000, 3_500, 100), 1_500]
    do(state, numbered(event(NOON + time, i=time) for time in times))
    found = read(state, as_of=NOON + 3_500)
    assert sum(found["by_session_2s"].values()) == found["n_session_2s"] == 11
    assert len(found["by_session_2s"]) == 3


def test_the_last_events_are_counted_whatever_the_bounds_and_where_leaves_some_out():
    features = {
        "by": CountBy("s", bound=1),
        "some": TopK("s", k=2, where=col("i") > 2),
        "n": Distinct("s", bound=1),
        "first": FirstN("s", n=2),
    }
    state = state_of(made(features, windows=[last(4)]))
    do(state, numbered(event(NOON + n, partition=n % PARTITIONS, s=s, i=n) for n, s in enumerate("pqrsqq")))
    found = read(state)
    assert found["by_last_4"] == {"q": 2, "other": 2}
    assert found["some_last_4"][0] == {"value": "q", "count": 2}
    assert found["first_last_4"] == ["r", "s"]
    assert found["n_last_4"] == pytest.approx(3, abs=1)


# Merging


class Bags:
    """Stretches of a bag's entries, merged by the kernel."""

    def __init__(self, aggregate):
        self.plan = compiled(made({"f": aggregate}, windows=["lifetime"]))
        (bag,) = self.plan.bags
        assert isinstance(bag, Bag)
        self.size = 1 + bag.words
        words = self.plan.memory(1, [1])
        self.words = np.concatenate([words, np.zeros(1 << 14, np.int64)])
        self.reals = self.words.view(np.float64)
        self.bag = self.words[self.words[layout.GROUPS_END] + layout.OF_BAG]

    def __call__(self, *stretches):
        """The entries of ascending stretches, one of each key."""
        flat = [word for stretch in stretches for entry in stretch for word in entry]
        at = int(self.words[layout.USED])
        self.words[at : at + len(flat)] = flat
        begin, end = merged(self.words, self.reals, self.bag, at, len(flat) // self.size)
        return [tuple(entry) for entry in self.words[begin:end].reshape(-1, self.size).tolist()]


COUNTED, SKETCHED = Bags(CountBy("s")), Bags(Distinct("i", bound=1))
WHOLE, REALS = Bags(SumBy("i", by="s")), Bags(SumBy("x", by="s"))
KEYS = st.integers(0, 9)


def stretches(value):
    """Ascending entries, by key."""
    made_of = st.dictionaries(KEYS, value, max_size=6)
    return made_of.map(lambda entries: [(key, *counted) for key, counted in sorted(entries.items())])


COUNTS = stretches(st.tuples(st.integers(1, 99)))
SUMS = stretches(st.tuples(st.integers(-INT64, INT64 - 1), st.integers(-3, 3)))
FLOATS = REAL.filter(lambda x: not math.isnan(x)).map(lambda x: int(np.float64(x).view(np.int64)))
FLOAT_SUMS = stretches(st.tuples(FLOATS, st.just(0)))
REGISTERS = st.lists(st.integers(0, INT64 - 1), max_size=30, unique=True).map(
    lambda found: SKETCHED([(word, 1) for word in sorted(found)])
)


def registers(hashed):
    """The registers of hashes, as entries."""
    words = np.array([(each, 1) for each in sorted(set(hashed))], np.int64).reshape(-1)
    end = to_registers(words, 0, len(words), 2)
    return [tuple(entry) for entry in words[:end].reshape(-1, 2).tolist()]


@pytest.mark.parametrize(
    ("bags", "entries"),
    [(COUNTED, COUNTS), (WHOLE, SUMS), (SKETCHED, st.lists(st.integers(0, INT64 - 1)).map(registers))],
)
def test_the_merge_of_bags_is_associative_and_takes_stretches_in_any_order(bags, entries):
    @settings(max_examples=100)
    @given(a=entries, b=entries, c=entries)
    def check(a, b, c):
        assert bags(a) == bags(a, []) == bags([], a) == a
        assert bags(bags(a, b), c) == bags(a, bags(b, c)) == bags(a, b, c)
        assert bags(c, b, a) == bags(b, a, c) == bags(a, b, c)

    check()


@settings(max_examples=100)
@given(parts=st.lists(FLOAT_SUMS, min_size=3, max_size=3))
def test_the_merge_of_float_sums_keeps_every_key_and_its_error_bound(parts):
    a, b, c = parts
    flat = [entry for part in parts for entry in part]
    for result in (REALS(a, b, c), REALS(REALS(a, b), c), REALS(a, REALS(b, c)), REALS(c, a, b)):
        assert [key for key, _, _ in result] == sorted({key for key, _, _ in flat})
        for key, *words in result:
            total, rest = np.array(words, np.int64).view(np.float64)
            values = np.array([word for each, word, _ in flat if each == key], np.int64).view(np.float64)
            size = math.fsum(map(abs, values))
            assert abs(total + rest - math.fsum(values)) <= 2 * EPS * abs(math.fsum(values)) + 64 * EPS**2 * size


@settings(max_examples=100)
@given(st.lists(st.integers(0, INT64 - 1), max_size=40), st.lists(st.integers(0, INT64 - 1), max_size=40))
def test_registers_of_two_sets_merged_are_those_of_their_union(one, other):
    both = registers(one + other)
    assert SKETCHED(registers(one), registers(other)) == both
    if one and other:
        assert SKETCHED([(each, 1) for each in sorted(set(one))], registers(other)) == both
