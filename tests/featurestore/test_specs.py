"""A view is made again of what the registry has of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from featurestore import Count, Entity, ExpDecay, Histogram, Source, Sum, col, last, session, window
from featurestore.errors import DefinitionError
from featurestore.specs import AGGREGATES, view_of
from tests.featurestore.helpers import KEY, SOURCE, made
from tests.featurestore.test_engine import views

WINDOWS = ["5m", "lifetime", window("1h", hop="5m"), window("2h", exact=True), window("1d", delay="2h"), last(7)]
WINDOWS += [session("30m"), window("3h", exact=True, delay="1m")]
MORE = {
    "Corr": {"other": "i"},
    "ExpDecay": {"half_life": "7s"},
    "FirstN": {"n": 3},
    "Histogram": {"edges": [0, 2.5]},
    "LastN": {"n": 3},
    "Quantile": {"q": 0.9},
    "SumBy": {"by": "s"},
    "TimeSince": {"of": "first"},
}


def again(chosen, **changes):
    spec = json.loads(json.dumps({**chosen.spec(), **changes}))
    return view_of(spec, entity=chosen.entity, source=chosen.source)


@pytest.mark.parametrize("name", AGGREGATES)
def test_every_aggregate_over_every_window_comes_back(name):
    column = {"Any": "b", "All": "b", "CountBy": "s"}.get(name, "x")
    windows = [w for w in WINDOWS if name != "Rate" or w == "5m" or getattr(w, "kind", "") in ("tiles", "exact")]
    feature = AGGREGATES[name](column, where=col("i") > 0, windows=windows, **MORE.get(name, {}))
    chosen = made({"f": feature, "n": Count(windows=["1d"])})
    assert again(chosen).key == chosen.key
    assert again(chosen).spec() == chosen.spec()


@given(views())
def test_any_view_comes_back(chosen):
    assert again(chosen).spec()["features"] == chosen.spec()["features"]


def test_a_name_that_ends_as_a_window_does_comes_back():
    chosen = made({"n_5m": Count(windows=["5m", "1h"]), "n": Count(windows=["1h"])})
    assert again(chosen).key == chosen.key


@pytest.mark.parametrize(
    ("source", "entity", "reason"),
    [
        (Source("others", schema=SOURCE.schema, event_time="at", key="k"), KEY, "is of source events, not of others"),
        (SOURCE, Entity("group", key="g"), "is of entities by k"),
        (Source("events", schema=SOURCE.schema, event_time="at", key="k", lateness="1h"), KEY, "id or derived"),
        (
            Source(
                "events", schema=SOURCE.schema, event_time="at", key="k", lateness="10s", derive={"d": col("i") + 1}
            ),
            KEY,
            "id or derived",
        ),
        (Source("events", schema={"k": str, "at": int}, event_time="at", key="k"), KEY, "there is no column 'x'"),
    ],
)
def test_a_source_or_entity_that_changed_is_told(source, entity, reason):
    with pytest.raises(DefinitionError, match=reason):
        view_of(made({"t": Sum("x")}, windows=["5m"]).spec(), entity=entity, source=source)


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregate": "Median"},
        {"parameters": {"bound": 3}},
        {"column": "y"},
        {"where": "{"},
        {"where": '{"Nonsense":1}'},
        {"where": '{ "\\u0041nonymousFunction": {} }'},
        {"window": {"label": "5m", "kind": "tiles", "length": 1, "hop": 1, "delay": 0}},
    ],
)
def test_a_damaged_spec_is_refused(changes):
    spec = made({"t": Sum("x")}, windows=["5m"]).spec()
    (feature,) = spec["features"]
    with pytest.raises(DefinitionError):
        view_of({**spec, "features": [{**feature, **changes}]}, entity=KEY, source=SOURCE)


def test_what_was_told_comes_back_as_it_was():
    chosen = made({"a": ExpDecay("x", half_life="90s"), "b": Histogram("x", edges=[1, 2])}, windows=["5m"])
    assert [f.aggregate.parameters for f in again(chosen).stored] == [{"half_life": 90_000}, {"edges": [1.0, 2.0]}]
