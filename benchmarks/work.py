"""The standard work of the stream: card payments of 110 bytes, Zipf-distributed over 100,000 cards, 10 ms apart.

Beside the usual kind there are less favourable ones: `exact` has amounts of 17 digits and merchants whose names JSON
escapes, `hot` gives nine events in ten to one card. `arrow` is the usual kind, 2,000 events a record.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from confluent_kafka import Producer

from onceflow.produce import ensure_topics

TOPIC, PARTITIONS, CARDS, SKEW = "payments", 4, 100_000, 1.2
START, STEP = 1_700_000_000_000, 10
KINDS = ("json", "exact", "hot", "arrow")
ARROW_ROWS = 2_000


def columns(kind: str, count: int, seed: int = 1) -> dict[str, list[object]]:
    """The events' columns."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, CARDS + 1) ** SKEW
    cards = rng.permutation(CARDS)[rng.choice(CARDS, count, p=weights / weights.sum())]
    if kind == "hot":
        cards[rng.random(count) < 0.9] = 0
    amounts = rng.gamma(2, 30, count)
    shops = "Café \u201c%05d\u201d" if kind == "exact" else "merchant-%05d"
    return {
        "card_id": [f"c{card:08d}" for card in cards.tolist()],
        "amount": (amounts if kind == "exact" else np.round(amounts, 2)).tolist(),
        "merchant": [shops % shop for shop in rng.integers(0, 5_000, count).tolist()],
        "country": [f"C{country:02d}" for country in rng.integers(0, 40, count).tolist()],
        "ts": list(range(START, START + STEP * count, STEP)),
    }


def records(kind: str, count: int) -> Iterator[tuple[int, bytes, bytes, int]]:
    """What is produced: partition, key, value and timestamp of each record."""
    made = columns(kind, count)
    places = [zlib.crc32(card.encode()) % PARTITIONS for card in made["card_id"]]  # type: ignore[attr-defined]
    if kind != "arrow":
        names = list(made)
        for place, row in zip(places, zip(*made.values(), strict=True), strict=True):
            event = dict(zip(names, row, strict=True))
            yield place, event["card_id"].encode(), json.dumps(event, separators=(",", ":")).encode(), event["ts"]
        return
    table, places_of = pa.table(made), np.array(places)
    for place in range(PARTITIONS):
        mine = table.take(np.flatnonzero(places_of == place))
        for at in range(0, len(mine), ARROW_ROWS):
            part = mine.slice(at, ARROW_ROWS)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, part.schema) as writer:
                writer.write_table(part)
            yield place, b"", sink.getvalue().to_pybytes(), part["ts"][-1].as_py()


def produce(address: str, kind: str, count: int) -> None:
    """Send all records, each with its event's time as Kafka's timestamp."""
    ensure_topics(address, {TOPIC: PARTITIONS})
    options = {"linger.ms": 50, "batch.size": 1 << 20, "queue.buffering.max.messages": 1_000_000}
    producer = Producer({"bootstrap.servers": address, "message.max.bytes": 4 << 20, **options})
    for place, key, value, time in records(kind, count):
        while True:
            try:
                producer.produce(TOPIC, value, key, partition=place, timestamp=time)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()
