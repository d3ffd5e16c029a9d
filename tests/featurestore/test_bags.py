"""Bags and lists: what their definitions refuse, and what they give over every kind of window."""

from __future__ import annotations

import math

import numpy as np
import pytest

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
    session,
    window,
)
from featurestore.errors import DefinitionError, FormatError
from featurestore.kernel import layout
from featurestore.texts import MAX_TEXT
from tests.featurestore.closeness import INT64
from tests.featurestore.helpers import NOON, PARTITIONS, do, event, made, numbered, read, restored, state_of, within


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


# Texts


def test_distinct_looks_at_whole_texts_and_the_rest_at_their_beginnings():
    long = ["x" * MAX_TEXT + end for end in "ab"]
    assert over(Distinct("s"), *long, column="s") == 2
    assert over(CountBy("s"), *long, column="s") == {"x" * MAX_TEXT: 2}
    assert over(TopK("s"), *long, column="s") == tops(("x" * MAX_TEXT, 2))
    assert over(LastN("s", n=2), *long, column="s") == ["x" * MAX_TEXT] * 2


def test_a_long_text_is_cut_by_characters_not_bytes():
    assert over(LastN("s", n=1), "\u20ac" * 300, column="s") == ["\u20ac" * MAX_TEXT]


# Stored


@pytest.mark.parametrize(
    ("aggregate", "key", "counted"),
    [(Histogram("x", edges=[0.0]), 2, 1), (Histogram("x", edges=[0.0]), -1, 1), (Distinct("x", bound=1), -INT64, 255)],
)
def test_a_stored_bag_with_what_no_bag_has_is_refused(aggregate, key, counted):
    state = state_of(made({"f": aggregate}, windows=["lifetime"]))
    do(state, [event(NOON, x=1.0)])
    (blob,) = state.blobs(0).values()
    told = np.array([key, counted]).tobytes()
    with pytest.raises(FormatError, match="rebuild"):
        state.load(0, 0, within(blob, lambda words: words[: 8 * layout.HEAD + 16] + told))
    assert state.blobs(0) == {b"sa": blob}
