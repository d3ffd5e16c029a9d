"""The window engine against what a Python team would use instead, one core each, in turn, medians of ratios.

Work W: events of 100,000 keys (Zipf 1.2), 10 ms apart; count, sum, min, max and std of a value over 5 minutes, an hour
and a day, after every event. Each contender goes from a frame of events to columns of features. Polars and DuckDB
compute windows that are exact to the millisecond; onceflow's tiled windows are what it stores, its exact ones the same
values as theirs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from batch.backfill import at_rows
from benchmarks.work import zipf
from featurestore import Count, Entity, Max, Min, Source, Std, Sum, View, Window, view, window
from featurestore.engine import ViewState
from featurestore.frames import META, entity_codes, feature_columns, lane_inputs
from featurestore.kernel import Steps
from featurestore.plan import compiled

START = 1_700_000_000_000
PERIODS = ("5m", "1h", "1d")
SOURCE = Source("payments", schema={"card": int, "amount": float, "at": "timestamp[ms]"}, event_time="at", key="card")
RUNS, FEW_RUNS = 5, 3  # the latter with DuckDB, which takes its time


def view_of(windows: Sequence[str | Window]) -> View:
    members = {"n": Count(), "total": Sum("amount"), "low": Min("amount"), "high": Max("amount"), "std": Std("amount")}
    return view(entity=Entity("card", key="card"), source=SOURCE, windows=windows)(type("Spend", (), members))


TILED = view_of(PERIODS)
EXACT = view_of([window(period, exact=True) for period in PERIODS])


def events(count: int, keys: int, *, seed: int = 1, even: bool = False) -> pl.DataFrame:
    """An event frame: offsets and times rise, cards are drawn."""
    rng = np.random.default_rng(seed)
    cards = rng.integers(0, keys, count) if even else zipf(rng, count, keys)
    at = START + 10 * np.arange(count)
    columns = {"card": cards, "amount": rng.lognormal(3, 1, count).round(2), "at": at}
    meta = {"_partition": np.zeros(count, np.int32), "_offset": np.arange(count), "_timestamp": at, "_time": at}
    return pl.DataFrame({**columns, **meta}).cast(pl.Schema(META))


def steps_of(frame: pl.DataFrame, numbers: np.ndarray[Any, np.dtype[np.int64]]) -> Steps:
    partitions = np.zeros(len(frame), np.int64)
    return Steps(np.arange(len(frame)), numbers, partitions, frame["_time"].to_numpy(), frame["_offset"].to_numpy())


def after_each(made: View, frame: pl.DataFrame) -> dict[str, pa.Array]:
    """Features right after every event."""
    state = ViewState(compiled(made), 1)
    codes, keys = entity_codes(frame, ["card"])
    numbers = state.number(keys)[codes]
    results = state.run(steps_of(frame, numbers), lane_inputs(state.plan, frame, state.texts), emit=True)
    return feature_columns(state.plan, results, state.texts)


_AGGREGATES = (
    pl.len().alias("n"),
    pl.col("amount").sum().alias("total"),
    pl.col("amount").min().alias("low"),
    pl.col("amount").max().alias("high"),
    pl.col("amount").std().alias("std"),
)


def with_polars(frame: pl.DataFrame) -> list[pl.DataFrame]:
    timed = _timed(frame)
    return [timed.rolling("at", period=period, group_by="card").agg(*_AGGREGATES) for period in PERIODS]


def asof_with_polars(frame: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """As feature stores do: features after every event are computed first, then joined as of each row's time."""
    asked = _asked(rows)
    for period, features in zip(PERIODS, with_polars(frame), strict=True):
        ready = features.sort("at").rename({name: f"{name}_{period}" for name in ("n", "total", "low", "high", "std")})
        asked = asked.join_asof(ready, on="at", by="card", check_sortedness=False)
    return asked


def _windows_in_sql() -> str:
    """A query of each event's card and time, and its features."""
    parts: list[str] = []
    windows = []
    for period, seconds in zip(PERIODS, (300, 3_600, 86_400), strict=True):
        functions = ("count(*)", "sum(amount)", "min(amount)", "max(amount)", "stddev_samp(amount)")
        parts += [f"{function} over w{period} as c{len(parts) + i}" for i, function in enumerate(functions)]
        before = f"interval {seconds * 1_000 - 1} milliseconds"
        windows.append(
            f'w{period} as (partition by card order by "at" range between {before} preceding and current row)'
        )
    return f'select card, "at", {", ".join(parts)} from events window {", ".join(windows)}'


def _duckdb(**frames: pl.DataFrame) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(config={"threads": 1})
    for name, frame in frames.items():
        connection.register(name, frame.to_arrow())
    return connection


def _timed(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("card", "amount", pl.col("at").cast(pl.Datetime("ms")))


def _asked(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select("card", pl.col("_time").cast(pl.Datetime("ms")).alias("at"))


def with_duckdb(frame: pl.DataFrame) -> pa.Table:
    return _duckdb(events=_timed(frame)).sql(_windows_in_sql()).to_arrow_table()


def asof_with_duckdb(frame: pl.DataFrame, rows: pl.DataFrame) -> pa.Table:
    """As feature stores do: features after every event are computed first, then joined as of each row's time."""
    query = f"""
        select asked.card, asked."at", features.* exclude (card, "at")
        from asked asof left join ({_windows_in_sql()}) as features
        on asked.card = features.card and asked."at" >= features."at"
    """
    return _duckdb(events=_timed(frame), asked=_asked(rows)).sql(query).to_arrow_table()


def seconds_of(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def in_turn(works: Mapping[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of each work, run by run: they take turns, so that a slow moment of the machine strikes all."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            found[name].append(seconds_of(work))
    return found


def ratio(found: Mapping[str, Sequence[float]], slow: str, fast: str) -> float:
    return statistics.median(a / b for a, b in zip(found[slow], found[fast], strict=True))


def _starts() -> tuple[float, float]:
    """Seconds until the kernel has folded a first event, compiled anew and from the cache."""
    code = (
        "import time; begun = time.perf_counter(); from benchmarks import engine; ready = time.perf_counter();"
        "engine.after_each(engine.TILED, engine.events(10, 10)); print(time.perf_counter() - ready)"
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        runs = [
            subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
            for _ in range(2)
        ]
    first, second = (float(run.stdout) for run in runs)
    return first, second


def measure(count: int = 1_000_000, runs: int = RUNS) -> dict[str, float]:
    """All figures, by name."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    frame, even, few_keys = events(count, 100_000), events(count, 100_000, even=True), events(count, 1_000)
    rows = events(count // 5, 100_000, seed=2).with_columns((pl.col("_time") - START) * 5 + START)
    after_each(TILED, frame[:100]), after_each(EXACT, frame[:100])
    found = in_turn(
        {
            "tiled": lambda: after_each(TILED, frame),
            "exact": lambda: after_each(EXACT, frame),
            "even": lambda: after_each(TILED, even),
            "few keys": lambda: after_each(TILED, few_keys),
            "a quarter": lambda: after_each(TILED, frame[: count // 4]),
            "at rows": lambda: at_rows(TILED, frame, rows.select("card", "_time")),
            "Polars": lambda: with_polars(frame),
            "Polars as of": lambda: asof_with_polars(frame, rows),
        },
        runs,
    )
    few = in_turn(
        {
            "tiled": lambda: after_each(TILED, frame),
            "DuckDB": lambda: with_duckdb(frame),
            "at rows": lambda: at_rows(TILED, frame, rows.select("card", "_time")),
            "DuckDB as of": lambda: asof_with_duckdb(frame, rows),
        },
        FEW_RUNS,
    )
    first, second = _starts()
    return {
        "events/s, tiled windows": count / statistics.median(found["tiled"]),
        "events/s, exact windows": count / statistics.median(found["exact"]),
        "events/s, tiled windows, even keys": count / statistics.median(found["even"]),
        "events/s, Polars": count / statistics.median(found["Polars"]),
        "events/s, DuckDB": count / statistics.median(few["DuckDB"]),
        "tiled, times Polars' rolling": ratio(found, "Polars", "tiled"),
        "exact, times Polars' rolling": ratio(found, "Polars", "exact"),
        "tiled, times DuckDB's range windows": ratio(few, "DuckDB", "tiled"),
        "time of exact over tiled": ratio(found, "exact", "tiled"),
        "at 200,000 rows, times Polars' as-of join": ratio(found, "Polars as of", "at rows"),
        "the same, times DuckDB's as-of join": ratio(few, "DuckDB as of", "at rows"),
        "time of 4 times the events": ratio(found, "tiled", "a quarter"),
        "time of 100,000 keys over 1,000": ratio(found, "tiled", "few keys"),
        "s to compile the kernel": first,
        "s to load it from the cache": second,
    }


def main() -> None:
    alone = {**os.environ, "POLARS_MAX_THREADS": "1"}  # Polars takes its threads when it is imported
    code = "from benchmarks import engine; import json; print(json.dumps(engine.measure()))"
    done = subprocess.run([sys.executable, "-c", code], env=alone, stdout=subprocess.PIPE, text=True, check=True)
    table = Table("engine, one core, medians", "", title_justify="left")
    for name, value in json.loads(done.stdout.splitlines()[-1]).items():
        table.add_row(name, f"{value:,.0f}" if value > 1_000 else f"{value:,.2f}")
    Console().print(table)
