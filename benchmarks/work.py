"""Work W, on which streaming systems are compared: card payments as JSON events of some 110 bytes.

100,000 cards drawn by Zipf's law with exponent 1.2; event time rises by 10 ms an event; amounts in cents, as prices
are. Variants make one thing harder each. Seeded, so that two runs get the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from featurestore.partitioners import partition_of

TOPIC = "payments"
KEY = "card_id"
PARTITIONS = 4
CARDS = 100_000
MANY_CARDS = 10_000_000
STEP_MS = 10
START = 1_700_000_000_000
COUNTRIES = ("DE", "FR", "US", "JP", "BR", "IN", "NG", "SE")
SLICE = 250_000

Ints = npt.NDArray[np.int64]
VARIANTS = {
    "cents": "amounts in cents",
    "digits": "amounts of 17 digits",
    "texts": "merchants with quotes, backslashes and letters beyond ASCII",
    "hot": "90 % of events of one card",
    "arrow": "2,000 events in a record of Arrow",
}
ARROW_ROWS = 2_000


def zipf(rng: np.random.Generator, count: int, keys: int) -> Ints:
    """Numbers below `keys`, drawn by Zipf's law with exponent 1.2."""
    found = np.zeros(0, np.int64)
    while len(found) < count:
        drawn = rng.zipf(1.2, 2 * count)
        found = np.concatenate([found, drawn[drawn <= keys] - 1])
    return found[:count]


def frame(rng: np.random.Generator, at: Ints, variant: str = "cents", cards: int = CARDS) -> pl.DataFrame:
    """The events at the given times (ms)."""
    count = len(at)
    card = zipf(rng, count, cards)
    if variant == "hot":
        card[rng.random(count) < 0.9] = 0
    if variant == "many":  # each fourth event is of the next of all cards
        number = (at - START) // STEP_MS
        card = np.where(number % 4, card, number // 4 % MANY_CARDS)
    amount = rng.lognormal(3, 1, count)
    merchant = pl.Series("merchant", rng.integers(0, 10_000, count))
    template = 'shop "Café\\Größe" {} 東京' if variant == "texts" else "merchant-{}"
    country = np.array(COUNTRIES)[rng.integers(0, len(COUNTRIES), count)]
    columns = {"card": card, "amount": amount if variant == "digits" else amount.round(2), "merchant": merchant}
    return pl.DataFrame({**columns, "country": country, "ts": at}).select(
        pl.format("card-{}", pl.col("card").cast(pl.String).str.zfill(10)).alias(KEY),
        "amount",
        pl.format(template, pl.col("merchant").cast(pl.String).str.zfill(5)).alias("merchant"),
        "country",
        "ts",
    )


def frames(count: int, variant: str = "cents", seed: int = 1) -> Iterator[pl.DataFrame]:
    """`count` events of history, in slices."""
    rng = np.random.default_rng(seed)
    for first in range(0, count, SLICE):
        numbers = np.arange(first, min(first + SLICE, count), dtype=np.int64)
        yield frame(rng, START + STEP_MS * numbers, variant)


def by_partition(events: pl.DataFrame, partitions: int) -> Iterator[tuple[int, pl.DataFrame]]:
    """The events of each partition, as librdkafka spreads keys."""
    places = pl.Series([partition_of("crc32", card.encode(), partitions) for card in events[KEY]])
    for place in range(partitions):
        yield place, events.filter(places == place)


def arrow_records(events: pl.DataFrame, partitions: int) -> Iterator[tuple[int, bytes, int]]:
    """The events as records of Arrow: partition, value, and the time of the last event, in order of time."""
    made = []
    for place, mine in by_partition(events, partitions):
        for at in range(0, len(mine), ARROW_ROWS):
            part = mine[at : at + ARROW_ROWS].to_arrow()
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, part.schema) as writer:
                writer.write_table(part)
            made.append((place, sink.getvalue().to_pybytes(), part["ts"][-1].as_py()))
    yield from sorted(made, key=lambda record: record[2])
