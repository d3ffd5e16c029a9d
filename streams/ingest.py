"""From a batch of records to an event frame: decoded, checked, and what was refused set apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from featurestore.decoding import decode_json
from featurestore.frames import event_frame
from featurestore.keys import MAX_VALUE_BYTES
from featurestore.sources import Source
from streams.messages import Message, Record, rejected
from streams.transport import Batch


@dataclass(frozen=True)
class Ingested:
    """A batch's good events (with `_raw`, the record as it came), and the others, by reason and as messages."""

    events: pl.DataFrame
    rejects: list[tuple[str, Message]]


def ingested(source: Source, batch: Batch, now: int | None, entities: Sequence[str] = ()) -> Ingested:
    """Decode a batch of `source`. `entities` are text columns that become keys, and may be only so long.

    An event later than `now` plus the source's lead is refused as from the future. Without `now` (in a replay) the
    record's own Kafka timestamp stands for it: a year of history has silent hours, so that the newest event seen so
    far says nothing about how far ahead the next one may honestly be.
    """
    decoded = decode_json(source.schema, source.required, source.event_time, batch.values)
    refused = [(row, error, detail) for row, error, detail in decoded.rejects]
    times = decoded.frame[source.event_time].to_numpy()
    present = batch.timestamps[decoded.rows] if now is None else np.int64(now)
    future = times > present + source.max_lead_ms
    for row, time in zip(decoded.rows[future].tolist(), times[future].tolist(), strict=True):
        refused.append((row, "future", f"event time {time} is more than {source.max_lead} ahead"))
    bad = future
    for column in entities:
        long = (decoded.frame[column].str.len_bytes().fill_null(0) > MAX_VALUE_BYTES).to_numpy()
        detail = f"{column!r} names an entity and is longer than {MAX_VALUE_BYTES} bytes"
        refused += [(row, "oversized", detail) for row in decoded.rows[long & ~bad].tolist()]
        bad = bad | long
    rows = decoded.rows[~bad]
    good = decoded.frame.filter(pl.Series(~bad)) if bad.any() else decoded.frame
    events = event_frame(source, good, batch.partition, batch.offsets[rows], batch.timestamps[rows])
    raw = pl.Series("_raw", [batch.values[row] for row in rows.tolist()], dtype=pl.Binary)
    return Ingested(
        events.with_columns(raw), [(error, _message(batch, row, error, detail)) for row, error, detail in refused]
    )


def _message(batch: Batch, row: int, error: str, detail: str) -> Message:
    return rejected(Record(batch.topic, batch.partition, int(batch.offsets[row]), batch.values[row]), error, detail)
