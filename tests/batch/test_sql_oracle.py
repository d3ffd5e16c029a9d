"""Features of real flights equal what SQL says, written from the semantics alone.

With a delay a window is as of so much earlier: its end is `t - delay`, `u` below.
"""

from __future__ import annotations

import duckdb
import numpy as np
import polars as pl
import pytest

from batch.backfill import after_events, at_rows
from examples.flights import data
from featurestore import (
    All,
    Any,
    Corr,
    Count,
    Entity,
    ExpDecay,
    First,
    Kurtosis,
    Last,
    Max,
    Mean,
    Min,
    Rate,
    Skew,
    Slope,
    Source,
    Std,
    Sum,
    TimeSince,
    Var,
    col,
    derived,
    view,
)
from featurestore import window as window_of
from featurestore.frames import checked_events

DAYS = 60
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
#: By label: the window, its length, the width of its tiles (usually the largest usual one not above a 48th of the
#: length; None for an exact window), its delay.
WINDOWS = {
    "1h": ("1h", HOUR, MINUTE, 0),
    "3h": ("3h", 3 * HOUR, 2 * MINUTE, 0),
    "1d": ("1d", DAY, 30 * MINUTE, 0),
    "30m": (window_of("30m", hop="10m"), 30 * MINUTE, 10 * MINUTE, 0),
    "45m": (window_of("45m", exact=True), 45 * MINUTE, None, 0),
    "20h": (window_of("20h", exact=True), 20 * HOUR, None, 0),
    "2h_delayed_50m": (window_of("2h", delay="50m"), 2 * HOUR, 2 * MINUTE, 50 * MINUTE),
    "90m_delayed_5h": (window_of("90m", exact=True, delay="5h"), 90 * MINUTE, None, 5 * HOUR),
}

departures = Source(
    "departures",
    schema={
        "flight_id": str,
        "carrier": str,
        "flight": int,
        "origin": str,
        "dep_delay": float,
        "behind": float,
        "at": "timestamp[ms]",
    },
    event_time="at",
    key="flight_id",
    derive={"is_late": col("dep_delay") > 15},
)


class Aggregates:
    flights = Count()
    late = Count(where=col("dep_delay") > 15)
    number = Sum("flight")
    total = Sum("dep_delay")
    delay = Mean("dep_delay")
    spread = Std("dep_delay")
    variance = Var("behind")
    skew = Skew("dep_delay")
    tails = Kurtosis("dep_delay")
    tails_late = Kurtosis("dep_delay", where=col("dep_delay") > 15)
    least = Min("dep_delay")
    most = Max("flight")
    first = First("flight")
    last = Last("dep_delay")
    any_late = Any("is_late")
    all_late = All("is_late")
    pace = Rate()
    lost = Rate("behind")
    since = TimeSince("behind")
    begun = TimeSince(of="first")
    fading = ExpDecay("dep_delay", half_life="20m")
    trend = Slope("dep_delay")
    linked = Corr("behind", other="flight")
    share = derived(col("late_1h") / col("flights_1h"))


MADE = [window for window, *_ in WINDOWS.values()]
ByOrigin = view(entity=Entity("origin", key="origin"), source=departures, windows=MADE)(Aggregates)
ByCarrier = view(entity=Entity("pair", key=("carrier", "origin")), source=departures, windows=MADE)(Aggregates)
VIEWS = [(ByOrigin, ["origin"]), (ByCarrier, ["carrier", "origin"])]

#: Of the events e that a window covers: `o` is their order in the log, `u` the window's end, and x, y and z are the
#: distances of their delay from the mean, of those late from theirs, and of those behind from theirs. (DuckDB's own
#: skewness and kurtosis are corrected for samples.)
SQL = {
    "flights": "count(e.o)",
    "late": "count(*) FILTER (e.dep_delay > 15)",
    "number": "coalesce(sum(e.flight), 0)::BIGINT",
    "total": "coalesce(fsum(e.dep_delay), 0.0)",
    "delay": "fsum(e.dep_delay) / count(e.dep_delay)",
    "spread": "CASE WHEN count(e.x) > 1 THEN sqrt(sum(e.x ** 2) / (count(e.x) - 1)) END",
    "variance": "CASE WHEN count(e.z) > 1 THEN sum(e.z ** 2) / (count(e.z) - 1) END",
    "skew": "CASE WHEN max(e.x) > min(e.x) THEN avg(e.x ** 3) / avg(e.x ** 2) ** 1.5 END",
    "tails": "CASE WHEN max(e.x) > min(e.x) THEN count(e.x) * sum(e.x ** 4) / sum(e.x ** 2) ** 2 - 3 END",
    "tails_late": "CASE WHEN max(e.y) > min(e.y) THEN count(e.y) * sum(e.y ** 4) / sum(e.y ** 2) ** 2 - 3 END",
    "least": "min(e.dep_delay)",
    "most": "max(e.flight)",
    "first": "arg_min(e.flight, (e.at, e.o))",
    "last": "arg_max(e.dep_delay, (e.at, e.o))",
    "any_late": "bool_or(e.dep_delay > 15)",
    "all_late": "bool_and(e.dep_delay > 15)",
    "pace": "count(e.o) / {seconds}",
    "lost": "coalesce(fsum(e.behind), 0.0) / {seconds}",
    "since": "any_value(e.u) - max(e.at) FILTER (e.behind IS NOT NULL)",
    "begun": "any_value(e.u) - min(e.at)",
    "fading": "coalesce(sum(e.dep_delay * 2.0 ** ((e.at - e.u) / 1200000.0)), 0.0)",
    "trend": "CASE WHEN max(e.at) > min(e.at) THEN regr_slope(e.dep_delay, (e.at - e.u) / 1000.0) END",
    "linked": "corr(e.behind, e.flight)",
}
EXACT = {"flights", "late", "number", "least", "most", "first", "last", "any_late", "all_late", "since", "begun"}
#: Delays are whole minutes, mostly near their mean: n roundings of sums and means of up to some 400 are 1e-13 of them.
ALMOST = {"rtol": 1e-12, "atol": 1e-12}


def some_flights():
    """The departures of the first days."""
    frame = data.topics()["departures"]
    frame = frame.filter(pl.col("at") < frame["at"].to_numpy().min() + DAYS * DAY)
    return frame.with_columns(behind=pl.when(pl.col("dep_delay") > 0).then("dep_delay"))


@pytest.fixture(scope="module")
def flights():
    return some_flights()


@pytest.fixture(scope="module")
def events(flights):
    return checked_events(departures, flights)


def rows_of(flights, keys):
    """Entities and times: some near events, some where an event comes into a window or goes out of it, and nobody."""
    rng = np.random.default_rng(7)

    def some(count):
        return flights[rng.integers(0, len(flights), count)]

    near = some(400).select(*keys, t=pl.col("at") + pl.Series(rng.integers(-2, 3, 400) * 7 * MINUTE - 1))
    edges = [
        some(20).select(*keys, t=pl.col("at") + delay + age)
        for _, length, _, delay in WINDOWS.values()
        for age in (-1, 0, length - 1, length)
    ]
    return pl.concat(
        [near, flights[:100].select(*keys, t="at"), *edges, near[:1].with_columns(origin=pl.lit("nowhere"))]
    )


@pytest.fixture(scope="module", params=VIEWS, ids=["one key", "two keys"])
def at_times(request, flights, events):
    """Features at given times: what came out, and the rows and keys to ask DuckDB for."""
    made, keys = request.param
    rows = rows_of(flights, keys)
    return at_rows(made, events, rows, time="t"), rows, keys


@pytest.fixture(scope="module", params=VIEWS, ids=["one key", "two keys"])
def after_some(request, flights, events):
    """The same right after events, of which all have a row."""
    made, keys = request.param
    after = after_events(made, events)
    assert len(after) == len(flights)
    some = after[::53]
    return some, some.select(*keys, t="_time", o="_offset"), keys


def covered(label):
    """Whether the window `label` covers an event e as of r.t."""
    _, length, hop, delay = WINDOWS[label]
    if hop is None:
        return f"e.at > r.t - {delay} - {length} AND e.at <= r.t - {delay}"

    def tile(time):
        return f"floor(({time})::DOUBLE / {hop})"

    near = f"e.at BETWEEN r.t - {length + hop + delay} AND r.t - {delay} + {hop}"  # for speed: a range to join by
    first, end = tile(f"r.t - {delay} - {length} + 1"), tile(f"r.t - {delay}")
    return f"{near} AND {tile('e.at')} BETWEEN {first} AND {end}"


def answers(flights, rows, keys, label, log_order, sql=SQL):
    """The window `label` at each row (keys, t, o); with `log_order` without events that come after o in the log."""
    _, length, _, delay = WINDOWS[label]
    seen = "e.o <= r.o" if log_order else "e.at <= r.t"
    same = " AND ".join(f"e.{key} = r.{key}" for key in keys)
    wanted = ", ".join(f"{text.format(seconds=length / 1000)} AS {name}_{label}" for name, text in sql.items())
    query = f"""
        WITH held AS (
            SELECT r.i, r.t - {delay} AS u, e.*, e.dep_delay AS x, CASE WHEN e.dep_delay > 15 THEN e.dep_delay END AS y
            FROM rows r LEFT JOIN log e ON {same} AND {seen} AND {covered(label)}
        ), centred AS (
            SELECT held.* REPLACE (x - avg(x) OVER w AS x, y - avg(y) OVER w AS y), behind - avg(behind) OVER w AS z
            FROM held WINDOW w AS (PARTITION BY i)
        )
        SELECT i, {wanted} FROM centred e GROUP BY i ORDER BY i"""
    with duckdb.connect() as connection:
        connection.register("log", flights.with_row_index("o").to_arrow())
        connection.register("rows", rows.with_row_index("i").to_arrow())
        return pl.DataFrame(connection.sql(query).to_arrow_table())


def check(found, wanted, label):
    for name in SQL:
        ours, theirs = found[f"{name}_{label}"], wanted[f"{name}_{label}"]
        if name in EXACT:
            assert ours.equals(theirs.cast(ours.dtype)), name
        else:
            theirs = theirs.fill_nan(None)
            assert ours.is_null().equals(theirs.is_null()), name
            np.testing.assert_allclose(ours.drop_nulls(), theirs.drop_nulls(), **ALMOST, err_msg=name)


@pytest.mark.parametrize("label", WINDOWS)
def test_rows_at_given_times(flights, at_times, label):
    found, rows, keys = at_times
    check(found, answers(flights, rows, keys, label, log_order=False), label)


def test_a_derived_feature_is_worked_out_of_the_others(at_times):
    found, *_ = at_times
    assert found["share"].fill_nan(None).equals(found["late_1h"].cast(float) / found["flights_1h"].replace(0, None))


@pytest.mark.parametrize("label", WINDOWS)
def test_after_every_event(flights, after_some, label):
    found, rows, keys = after_some
    check(found, answers(flights, rows, keys, label, log_order=True), label)
