"""From a batch of records to an event frame: decoded, checked, and what was refused set apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from featurestore.decoding import decode_json
from featurestore.frames import event_frame, with_derived
from featurestore.keys import MAX_VALUE_BYTES
from featurestore.sources import Source
from featurestore.values import Values
from streams.messages import Message, Record, rejected
from streams.transport import Batch

_MAX_DETAIL = 200


@dataclass(frozen=True)
class Ingested:
    """A batch's good events (with `_raw`, the record as it came), and the others, by reason and as messages."""

    events: pl.DataFrame
    rejects: list[Refused]


class Refused(NamedTuple):
    """A record that is no good event: where, why, and what goes to <topic>.dlq."""

    offset: int
    error: str
    message: Message


def ingested(source: Source, batch: Batch, now: int | None, entities: Sequence[str] = ()) -> Ingested:
    """Decode a batch of `source`. `entities` are text columns that become keys, and may be only so long.

    An event later than `now` plus the source's lead is refused as from the future. Without `now` (in a replay) the
    record's own Kafka timestamp stands for it: a year of history has silent hours, so that the newest event seen so
    far says nothing about how far ahead the next one may honestly be.
    """
    decoded = decode_json(source.schema, source.required, source.event_time, batch.values)
    refused = [(reject.row, reject.error, reject.detail) for reject in decoded.rejects]
    columns, rows = decoded.frame, decoded.rows
    try:
        events = event_frame(source, columns, batch.partition, batch.offsets[rows], batch.timestamps[rows])
    except pl.exceptions.PolarsError:
        columns, rows, failing = _derivable(source, columns, rows)
        refused += [(row, "derive", detail) for row, detail in failing]
        events = event_frame(source, columns, batch.partition, batch.offsets[rows], batch.timestamps[rows])
    bad = np.zeros(len(rows), np.bool_)
    for error, detail, wrong in _wrong(source, events, now, entities):
        refused += [(row, error, detail) for row in rows[wrong & ~bad].tolist()]
        bad |= wrong
    if bad.any():
        rows, events = rows[~bad], events.filter(pl.Series(~bad))
    raw = pl.Series("_raw", Values.of(batch.values).taken(rows).to_arrow())
    return Ingested(events.with_columns(raw), [_refused(batch, *each) for each in refused])


def _wrong(
    source: Source, events: pl.DataFrame, now: int | None, entities: Sequence[str]
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """What well-formed events may not be: error, detail, and whether each one is."""
    present = events["_timestamp"].to_numpy() if now is None else np.int64(now)
    ahead = f"the event time is more than {source.max_lead} ahead"
    yield "future", ahead, events["_time"].to_numpy() > present + source.max_lead_ms
    for column in entities:
        detail = f"{column!r} names an entity and is longer than {MAX_VALUE_BYTES} bytes"
        yield "oversized", detail, (events[column].str.len_bytes().fill_null(0) > MAX_VALUE_BYTES).to_numpy()


def _derivable(
    source: Source, frame: pl.DataFrame, rows: NDArray[np.int64]
) -> tuple[pl.DataFrame, NDArray[np.int64], list[tuple[int, str]]]:
    """The rows that the source's derived columns can be computed of, and the others, with what Polars says of them."""
    try:
        with_derived(source, frame)
    except pl.exceptions.PolarsError as error:
        if len(frame) == 1:
            return frame.clear(), rows[:0], [(int(rows[0]), str(error)[:_MAX_DETAIL])]
        half = len(frame) // 2
        first, second = (_derivable(source, frame[part], rows[part]) for part in (slice(half), slice(half, None)))
        return first[0].vstack(second[0]), np.concatenate([first[1], second[1]]), first[2] + second[2]
    return frame, rows, []


def _refused(batch: Batch, row: int, error: str, detail: str) -> Refused:
    record = Record(batch.topic, batch.partition, int(batch.offsets[row]), batch.values[row], batch.keys[row])
    return Refused(record.offset, error, rejected(record, error, detail))
