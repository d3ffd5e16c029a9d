"""The definitions of the flights example: what is known one hour before departure, and who predicts with it.

Delays are folded in as signed logarithms: an hour more means much to a flight on time and little to one six hours late.
"""

from __future__ import annotations

import math

from river import linear_model, optim, preprocessing

from featurestore import Count, Entity, Last, Max, Mean, Source, Std, Sum, col, derived, view
from learner import Label, Service

_DAY = col("hour") * (2 * math.pi / 24)
_WEEK = col("weekday") * (2 * math.pi / 7)

schedule = Source(
    "schedule",
    schema={
        "flight_id": str,
        "carrier": str,
        "flight": int,
        "tail": str,
        "origin": str,
        "dest": str,
        "distance": float,
        "departs_at": "timestamp[ms]",
        "hour": float,
        "weekday": int,
        "month": int,
        "at": "timestamp[ms]",
    },
    event_time="at",
    key="flight_id",
    derive={"hour_sin": _DAY.sin(), "hour_cos": _DAY.cos(), "week_sin": _WEEK.sin(), "week_cos": _WEEK.cos()},
)

departures = Source(
    "departures",
    schema={
        "flight_id": str,
        "carrier": str,
        "flight": int,
        "tail": str,
        "origin": str,
        "dest": str,
        "dep_delay": float,
        "at": "timestamp[ms]",
    },
    event_time="at",
    key="flight_id",
    derive={"delay": col("dep_delay").sign() * col("dep_delay").abs().log1p()},
)

arrivals = Source(
    "arrivals",
    schema={
        "flight_id": str,
        "carrier": str,
        "flight": int,
        "tail": str,
        "origin": str,
        "dest": str,
        "arr_delay": float,
        "at": "timestamp[ms]",
    },
    event_time="at",
    key="flight_id",
    derive={"delay": col("arr_delay").sign() * col("arr_delay").abs().log1p()},
)

weather = Source(
    "weather",
    schema={
        "origin": str,
        "temp": float,
        "dewp": float,
        "humid": float,
        "wind_speed": float,
        "wind_gust": float,
        "precip": float,
        "pressure": float,
        "visib": float,
        "at": "timestamp[ms]",
    },
    event_time="at",
    key="origin",
    derive={"wind": col("wind_speed").clip(0, 60)},  # one observation says 1048 mph
)

origin = Entity("origin", key="origin")
carrier = Entity("carrier", key="carrier")
destination = Entity("destination", key="dest")
aircraft = Entity("aircraft", key="tail")
line = Entity("line", key=("carrier", "flight"))


@view(entity=origin, source=departures, windows=["1h"])
class OriginDepartures:
    """How the airport of departure is running."""

    flights = Count()
    late = Count(where=col("dep_delay") > 15)
    late_share = derived(col("late_1h") / col("flights_1h"))
    delay = Mean("delay", windows=["1h", "3h", "1d"])
    spread = Std("delay", windows=["3h"])


@view(entity=origin, source=arrivals, windows=["1h", "3h", "1d"])
class OriginArrivals:
    """How late flights from this airport reach their destinations."""

    delay = Mean("delay")


@view(entity=carrier, source=departures, windows=["1h", "3h", "1d"])
class CarrierDepartures:
    """How late the carrier leaves New York."""

    delay = Mean("delay")


@view(entity=carrier, source=arrivals, windows=["1h", "3h", "1d"])
class CarrierArrivals:
    """How late the carrier's flights from New York arrive."""

    delay = Mean("delay")


@view(entity=destination, source=departures, windows=["1h", "3h", "1d"])
class DestinationDepartures:
    """How late flights to this destination leave: traffic held on the ground for it shows here first."""

    delay = Mean("delay")


@view(entity=destination, source=arrivals, windows=["1h", "3h", "1d"])
class DestinationArrivals:
    """How late flights reach this destination."""

    delay = Mean("delay")


@view(entity=aircraft, source=departures, windows=["12h"])
class AircraftDepartures:
    """What this very aircraft did earlier in the day: its delay travels with it."""

    delay = Last("delay", windows=["6h"])
    worst = Max("delay")


@view(entity=aircraft, source=arrivals, windows=["6h"])
class AircraftArrivals:
    """How late this aircraft came to where it flew before."""

    delay = Last("delay")


@view(entity=line, source=arrivals, windows=["30d"])
class LineArrivals:
    """How punctual this flight number was in the last month."""

    delay = Mean("delay")


@view(entity=origin, source=weather, windows=["3h"])
class OriginWeather:
    """The latest weather at the airport of departure."""

    visib = Last("visib")
    humid = Last("humid")
    wind = Last("wind")
    rain = Sum("precip", windows=["6h"])


late = Service(
    "late_arrival",
    on=schedule,
    id="flight_id",
    features=[
        OriginDepartures,
        OriginArrivals,
        CarrierDepartures,
        CarrierArrivals,
        DestinationDepartures,
        DestinationArrivals,
        AircraftDepartures,
        AircraftArrivals,
        LineArrivals,
        OriginWeather,
        *("hour", "hour_sin", "hour_cos", "week_sin", "week_cos", "distance"),
    ],
    label=Label(arrivals, id="flight_id", value=col("arr_delay") > 15, wait="36h"),
    # Labels come 512 at a time and much alike, so the steps are small.
    model=preprocessing.StandardScaler()
    | linear_model.LogisticRegression(optimizer=optim.SGD(0.0003), intercept_lr=0.001),
    batch=512,
)
