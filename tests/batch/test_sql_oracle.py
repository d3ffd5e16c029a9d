"""Features of real flights equal what SQL says, written from the semantics alone.

As of `t` a window of length w in tiles of width h covers the tiles floor((t - w + 1) / h) .. floor(t / h), whole.
"""

from __future__ import annotations

import duckdb
import numpy as np
import polars as pl
import pytest

from batch.backfill import after_events, at_rows
from examples.flights import data
from featurestore import Count, Entity, First, Last, Max, Mean, Min, Source, Std, Sum, col, derived, view
from featurestore import window as window_of
from featurestore.frames import checked_events

DAYS = 60
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
#: Windows and the tiles that they get: the largest usual width not above a 48th.
WINDOWS = {
    "1h": (HOUR, MINUTE),
    "3h": (3 * HOUR, 2 * MINUTE),
    "1d": (DAY, 30 * MINUTE),
    "30m": (30 * MINUTE, 10 * MINUTE),
}

departures = Source(
    "departures",
    schema={"flight_id": str, "carrier": str, "flight": int, "origin": str, "dep_delay": float, "at": "timestamp[ms]"},
    event_time="at",
    key="flight_id",
)


class Aggregates:
    flights = Count()
    late = Count(where=col("dep_delay") > 15)
    number = Sum("flight")
    total = Sum("dep_delay")
    delay = Mean("dep_delay")
    spread = Std("dep_delay")
    least = Min("dep_delay")
    most = Max("flight")
    first = First("flight")
    last = Last("dep_delay")
    share = derived(col("late_1h") / col("flights_1h"))


SHORT = window_of("30m", hop="10m")
ByOrigin = view(entity=Entity("origin", key="origin"), source=departures, windows=["1h", "3h", "1d", SHORT])(Aggregates)
ByCarrier = view(
    entity=Entity("pair", key=("carrier", "origin")), source=departures, windows=["1h", "3h", "1d", SHORT]
)(Aggregates)

#: Of the events e that a window covers, `o` being their order in the log.
SQL = {
    "flights": "count(*)",
    "late": "count(*) FILTER (e.dep_delay > 15)",
    "number": "coalesce(sum(e.flight), 0)::BIGINT",
    "total": "coalesce(fsum(e.dep_delay), 0.0)",
    "delay": "fsum(e.dep_delay) / count(e.dep_delay)",
    "spread": "CASE WHEN count(e.dep_delay) > 1 THEN stddev_samp(e.dep_delay) END",
    "least": "min(e.dep_delay)",
    "most": "max(e.flight)",
    "first": "arg_min(e.flight, (e.at, e.o))",
    "last": "arg_max(e.dep_delay, (e.at, e.o))",
}
EXACT = {"flights", "late", "number", "least", "most", "first", "last"}


@pytest.fixture(scope="module")
def flights():
    frame = data.topics()["departures"]
    return frame.filter(pl.col("at") < frame["at"].to_numpy().min() + DAYS * DAY)


@pytest.fixture(scope="module")
def events(flights):
    return checked_events(departures, flights)


def answers(flights, rows, keys, label, log_order):
    """The window `label` at each row (keys, t, o); with `log_order` without events that come after o in the log."""
    length, hop = WINDOWS[label]
    seen = "AND e.o <= r.o" if log_order else "AND e.at <= r.t"

    def tile(time):
        return f"floor({time}::DOUBLE / {hop})"

    wanted = ", ".join(f"{sql} AS {name}_{label}" for name, sql in SQL.items())
    same = " AND ".join(f"e.{key} = r.{key}" for key in keys)
    query = f"""
        SELECT r.i, {wanted.replace("count(*)", "count(e.o)")}
        FROM rows r LEFT JOIN log e ON {same} {seen}
         AND {tile("e.at")} BETWEEN {tile(f"(r.t - {length} + 1)")} AND {tile("r.t")}
         AND e.at BETWEEN r.t - {length + hop} AND r.t + {hop}
        GROUP BY r.i ORDER BY r.i"""
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
            assert ours.is_null().equals(theirs.is_null()), name
            # Of few and equal delays the deviation is next to nothing, and DuckDB's is no better than 1e-9 of them.
            slack = {"rtol": 1e-9, "atol": 1e-6} if name == "spread" else {"rtol": 1e-12, "atol": 1e-12}
            np.testing.assert_allclose(ours.drop_nulls(), theirs.drop_nulls(), **slack)


@pytest.mark.parametrize("label", WINDOWS)
@pytest.mark.parametrize(("made", "keys"), [(ByOrigin, ["origin"]), (ByCarrier, ["carrier", "origin"])])
def test_rows_at_given_times(flights, events, made, keys, label):
    rng = np.random.default_rng(7)
    picks = rng.integers(0, len(flights), 400)
    rows = flights[picks].select(*keys, t=pl.col("at") + pl.Series(rng.integers(-2, 3, 400) * 7 * MINUTE - 1))
    rows = pl.concat([rows, flights[:100].select(*keys, t="at"), rows[:1].with_columns(origin=pl.lit("nowhere"))])
    found = at_rows(made, events, rows, time="t")
    check(found, answers(flights, rows, keys, label, log_order=False), label)
    assert found["share"].fill_nan(None).equals(found["late_1h"].cast(float) / found["flights_1h"].replace(0, None))


@pytest.mark.parametrize("label", WINDOWS)
@pytest.mark.parametrize(("made", "keys"), [(ByOrigin, ["origin"]), (ByCarrier, ["carrier", "origin"])])
def test_after_every_event(flights, events, made, keys, label):
    after = after_events(made, events)
    assert len(after) == len(flights)
    some = slice(0, None, 53)
    rows = after[some].select(*keys, t="_time", o="_offset")
    check(after[some], answers(flights, rows, keys, label, log_order=True), label)
