"""The views of the flights example, without its service: what the stream alone folds."""

from examples.flights.features import (
    AircraftArrivals,
    AircraftDepartures,
    CarrierArrivals,
    CarrierDepartures,
    DestinationArrivals,
    DestinationDepartures,
    LineArrivals,
    OriginArrivals,
    OriginDepartures,
    OriginWeather,
)

__all__ = [
    "AircraftArrivals",
    "AircraftDepartures",
    "CarrierArrivals",
    "CarrierDepartures",
    "DestinationArrivals",
    "DestinationDepartures",
    "LineArrivals",
    "OriginArrivals",
    "OriginDepartures",
    "OriginWeather",
]
