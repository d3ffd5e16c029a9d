"""A service's predictions and labels as they lie in Kafka, for the tests of the learner process."""

import json

import numpy as np
import polars as pl
from confluent_kafka import Producer

from featurestore import Source
from featurestore.align import merged
from featurestore.frames import event_frame
from learner import Label, snapshot
from learner.loop import ServiceLoop
from onceflow.produce import ensure_topics
from streams.messages import prediction_messages
from tests.learner.late_arrivals import HOUR, OriginDelays, OriginTraffic, arrivals, col, departures, plain, service

PARTITIONS = 3


def made(prefix, **changes):
    """The service over topics of its own."""
    told = Source(prefix + "arrivals", dict(arrivals.schema), event_time="at", key="flight")
    asked = Source(
        prefix + "departures", dict(departures.schema), event_time="at", key="origin", derive=dict(departures.derive)
    )
    label = Label(told, "flight", col("delay") > 15, "36h")
    features = [OriginDelays, "distance", OriginTraffic.departures_1h, "far"]
    return service(name=prefix + "late", on=asked, label=label, features=features, model=plain(), **changes)


def logs(rows, given, seed=1):
    """Predictions and labels by partition, in offset order, a little out of order in time; frames."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.integers(0, 20 * HOUR, rows)) + rng.integers(0, HOUR // 6, rows)
    X = rng.normal(size=(rows, len(given.inputs)))
    late = X[:, 0] + X[:, 3] + rng.normal(size=rows) > 0
    X[rng.random(X.shape) < 0.1] = np.nan
    ids = [f"flight {i}" for i in rng.integers(0, rows, rows)]
    place = rng.integers(0, PARTITIONS, rows).astype(np.int32)
    predictions = pl.DataFrame(
        {
            "_partition": place,
            "_time": at,
            "_effective": at,
            "id": ids,
            "probability": rng.random(rows),
            "model_version": np.arange(rows) // 100,
            "variant": "champion",
        }
        | {name: X[:, i] for i, name in enumerate(given.inputs)}
    )
    predictions = predictions.with_columns(
        pl.int_range(pl.len(), dtype=pl.Int64).over("_partition").alias("_offset"),
        (pl.col("probability") >= 0.5).alias("prediction"),
    )
    told = at + rng.integers(1, 40 * HOUR, rows)
    labels = pl.DataFrame(
        {
            "_partition": rng.integers(0, PARTITIONS, rows).astype(np.int32),
            "flight": ids,
            "origin": "JFK",
            "at": told,
            "delay": np.where(late, 20.0, 0.0),
        }
    ).filter(pl.Series(rng.random(rows) < 0.9))
    return predictions, labels.sort(pl.col("at") + pl.Series(rng.integers(0, HOUR, len(labels))))


def prediction_records(given, predictions):
    """(partition, value) of each message."""
    return [(m.partition, m.value) for m in prediction_messages(given.name, predictions)]


def label_records(labels):
    return [(row.pop("_partition"), json.dumps(row).encode()) for row in labels.to_dicts()]


def topics_of(given):
    return f"predictions.{given.name}", given.label.source.name


def make_topics(kafka, given):
    ensure_topics(kafka, dict.fromkeys(topics_of(given), PARTITIONS))


def send(kafka, topic, records):
    """Produce (partition, value) pairs, in order."""
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 1, "enable.idempotence": True, "log_level": 0})
    for at in range(0, len(records), 50_000):
        for partition, value in records[at : at + 50_000]:
            producer.produce(topic, value, partition=partition)
        producer.flush(20)


def expected_loop(given, predictions, labels):
    """What one step over the whole of the merged logs gives."""
    asked, told = topics_of(given)
    frames = {}
    for partition in range(PARTITIONS):
        frames[asked, partition] = predictions.filter(pl.col("_partition") == partition)
        mine = labels.filter(pl.col("_partition") == partition).drop("_partition")
        count = np.arange(len(mine), dtype=np.int64)
        frames[told, partition] = event_frame(given.label.source, mine, partition, count, count)
    chunk = merged({told: 0, asked: 1}, frames)
    loop = ServiceLoop(given)
    loop.step(chunk.frames[asked].fill_nan(None), given.label.read(chunk.frames[told]))
    return loop


def bits(loop):
    return snapshot.encode(loop.dump())
