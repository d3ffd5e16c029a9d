"""Counts by value, quantiles and lists of real flights equal what SQL says, written from the semantics alone."""

from __future__ import annotations

import numpy as np
import pytest

from batch.backfill import after_events, at_rows
from featurestore import (
    CountBy,
    Distinct,
    Entity,
    First,
    FirstN,
    Histogram,
    Last,
    LastN,
    Mode,
    Quantile,
    SumBy,
    TopK,
    col,
    view,
)
from featurestore.frames import checked_events
from tests.batch.test_sql_oracle import MADE, WINDOWS, answers, departures, rows_of, some_flights


class Values:
    carriers = Distinct("carrier")
    numbers = Distinct("flight", bound=10_000)
    middle = Quantile("dep_delay")
    worst = Quantile("dep_delay", q=0.9)
    buckets = Histogram("dep_delay", edges=[0, 15])
    by_carrier = CountBy("carrier", where=col("dep_delay") > 0)
    behind_by = SumBy("behind", by="carrier")
    often = TopK("flight", k=3, bound=10_000)
    most = Mode("flight", bound=10_000)
    first = First("carrier")
    last = Last("carrier", where=col("dep_delay") > 15)
    firsts = FirstN("flight", n=3)
    lasts = LastN("dep_delay", n=3)


ByOrigin = view(entity=Entity("origin", key="origin"), source=departures, windows=MADE)(Values)
KEYS = ["origin"]

#: `e` is an event that the window covers, `o` its place in the log. What is most frequent is found in `flights`.
SQL = {
    "carriers": "count(DISTINCT e.carrier)",
    "numbers": "count(DISTINCT e.flight)",
    "middle": "quantile_cont(e.dep_delay, 0.5)",
    "worst": "quantile_cont(e.dep_delay, 0.9)",
    "buckets": "[count(*) FILTER (e.dep_delay < 0), count(*) FILTER (e.dep_delay >= 0 AND e.dep_delay < 15), "
    "count(*) FILTER (e.dep_delay >= 15)]",
    "by_carrier": "histogram(e.carrier) FILTER (e.dep_delay > 0)",
    "amounts": "list({{'by': e.carrier, 'x': e.behind}}) FILTER (e.behind IS NOT NULL)",
    "flights": "histogram(e.flight)",
    "first": "arg_min(e.carrier, (e.at, e.o))",
    "last": "arg_max(e.carrier, (e.at, e.o)) FILTER (e.dep_delay > 15)",
    "firsts": "coalesce(list(e.flight ORDER BY e.at, e.o) FILTER (e.o IS NOT NULL), [])[:3]",
    "lasts": "coalesce(list(e.dep_delay ORDER BY e.at, e.o) FILTER (e.dep_delay IS NOT NULL), [])[-3:]",
}
PLAIN = ("carriers", "numbers", "buckets", "first", "last", "firsts", "lasts")


@pytest.fixture(scope="module")
def flights():
    return some_flights()


@pytest.fixture(scope="module")
def events(flights):
    return checked_events(departures, flights)


@pytest.fixture(scope="module")
def at_times(flights, events):
    rows = rows_of(flights, KEYS)
    return at_rows(ByOrigin, events, rows, time="t"), rows


@pytest.fixture(scope="module")
def after_some(events):
    some = after_events(ByOrigin, events)[::53]
    return some, some.select(*KEYS, t="_time", o="_offset")


def check(found, wanted, label):
    for name in PLAIN:
        ours, theirs = found[f"{name}_{label}"], wanted[f"{name}_{label}"]
        assert ours.to_list() == theirs.to_list(), name
    is_exact = WINDOWS[label][2] is None
    for name in ("middle", "worst"):
        ours, theirs = found[f"{name}_{label}"], wanted[f"{name}_{label}"]
        assert ours.is_null().equals(theirs.is_null())
        # Between two minutes of other sign the error is a part of theirs, not of what lies between.
        near = {"rtol": 1e-12, "atol": 1e-12} if is_exact else {"rtol": 0.008, "atol": 0.1}
        np.testing.assert_allclose(ours.drop_nulls(), theirs.drop_nulls(), **near, err_msg=name)
    columns = [f"{name}_{label}" for name in ("by_carrier", "behind_by", "often", "most")]
    for row, theirs in zip(found.select(columns).rows(), wanted.rows(named=True), strict=True):
        check_counts(row, {name: theirs[f"{name}_{label}"] for name in ("by_carrier", "amounts", "flights")})


def check_counts(row, wanted):
    by_carrier, behind_by, often, most = row
    assert by_carrier == (wanted["by_carrier"] or {})
    sums: dict[str, list[float]] = {}
    for each in wanted["amounts"] or []:
        sums.setdefault(each["by"], []).append(each["x"])
    assert behind_by == {carrier: sum(amounts) for carrier, amounts in sums.items()}  # whole minutes
    ranked = sorted((wanted["flights"] or {}).items(), key=lambda each: (-each[1], each[0]))
    assert often == [{"value": flight, "count": count} for flight, count in ranked[:3]]
    assert most == (ranked[0][0] if ranked else None)


@pytest.mark.parametrize("label", WINDOWS)
def test_rows_at_given_times(flights, at_times, label):
    found, rows = at_times
    check(found, answers(flights, rows, KEYS, label, log_order=False, sql=SQL), label)


@pytest.mark.parametrize("label", WINDOWS)
def test_after_every_event(flights, after_some, label):
    found, rows = after_some
    check(found, answers(flights, rows, KEYS, label, log_order=True, sql=SQL), label)
