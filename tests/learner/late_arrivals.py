"""A small service and streams for it: departures predicted, arrivals tell."""

import itertools

import numpy as np
import polars as pl
from river import linear_model, optim, preprocessing

from featurestore import Count, Entity, Last, LastN, Mean, Source, col, derived, view
from learner import Label, Service

HOUR = 3_600_000

departures = Source(
    "departures",
    schema={
        "flight": str,
        "origin": str,
        "at": "timestamp[ms]",
        "distance": float,
        "seats": int,
        "night": bool,
        "id": int,
    },
    event_time="at",
    key="origin",
    derive={"far": col("distance") > 1000},
)
arrivals = Source(
    "arrivals",
    schema={"flight": str, "origin": str, "at": "timestamp[ms]", "delay": float},
    event_time="at",
    key="flight",
)


@view(entity=Entity("origin", "origin"), source=arrivals, windows=["1h"])
class OriginDelays:
    flights = Count()
    delay = Mean("delay")
    busy = derived(col("flights_1h") > 10)


@view(entity=Entity("origin", "origin"), source=departures, windows=["1h"])
class OriginTraffic:
    departures = Count()


@view(entity=Entity("flight", "flight"), source=arrivals, windows=["1d"])
class Seen:
    last = Last("at")
    times = Count()
    numbers = LastN("delay", n=3)


@view(
    entity=Entity("delay", "delay_code"),
    source=Source("codes", schema={"delay_code": str, "at": "timestamp[ms]"}, event_time="at", key="delay_code"),
    windows=["1d"],
)
class Codes:
    times = Count()


def plain(**parameters):
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.05), **parameters)


def service(**changes):
    given = {
        "name": "late_arrival",
        "on": departures,
        "id": "flight",
        "features": [OriginDelays, "distance", OriginTraffic.departures_1h, "far"],
        "label": Label(arrivals, "flight", col("delay") > 15, "36h"),
        "model": plain(),
        "batch": 16,
    } | changes
    return Service(given.pop("name"), **given)


def streams(rows, made, *, seed=1, partitions=3):
    """A year in small: predictions and labels of `rows` flights in aligned order; some labels never come."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.integers(0, 20 * HOUR, rows))
    arrived = at + rng.integers(0, 50 * HOUR, rows)
    X = rng.normal(size=(rows, len(made.inputs)))
    late = (X[:, 0] + X[:, 3] + rng.normal(size=rows) > 0).astype(float)
    X[rng.random(X.shape) < 0.1] = np.nan
    ids = np.array([f"flight {i}" for i in rng.integers(0, max(rows - rows // 20, 1), rows)], object)
    told = np.flatnonzero(rng.random(rows) < 0.9)
    order = np.argsort(np.concatenate([at, arrived[told]]), kind="stable")
    steps = np.empty(len(order), np.int64)
    steps[order] = np.arange(len(order))

    def frame(steps, times, keys, more):
        partition = rng.integers(0, partitions, len(steps)).astype(np.int32)
        ranked = pl.DataFrame(
            {"_step": steps, "_partition": partition, "_time": times, "id": keys.tolist(), **more},
            schema_overrides={"id": pl.String},
        ).sort("_step")
        return ranked.with_columns(_offset=pl.int_range(pl.len(), dtype=pl.Int64).over("_partition"))

    predictions = frame(steps[:rows], at, ids, {name: X[:, i] for i, name in enumerate(made.inputs)})
    values = pl.Series("value", late[told]).set(pl.Series(rng.random(len(told)) < 0.05), None)
    labels = frame(steps[rows:], arrived[told], ids[told], {"value": values})
    return predictions.fill_nan(None), labels


def cut(predictions, labels, edges):
    """The same rows in steps: (predictions, labels) between each two of `edges`, all rows in the end."""
    bounds = [0, *sorted(edges), len(predictions) + len(labels)]
    for low, high in itertools.pairwise(bounds):
        inside = (pl.col("_step") >= low) & (pl.col("_step") < high)
        yield predictions.filter(inside), labels.filter(inside)
