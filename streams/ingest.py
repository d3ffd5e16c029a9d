"""From a batch of records to an event frame: decoded, checked, and what was refused set apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from featurestore.confluent import Loads
from featurestore.decoding import Reject
from featurestore.formats import decode
from featurestore.frames import event_frame, with_derived
from featurestore.keys import MAX_VALUE_BYTES
from featurestore.sources import Source
from featurestore.values import Values
from streams.messages import Message, Record, rejected
from streams.transport import Batch

_MAX_DETAIL = 200
_NO_SCHEMAS: Mapping[int, Loads] = MappingProxyType({})


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


def ingested(
    source: Source,
    batch: Batch,
    now: int | None,
    entities: Sequence[str] = (),
    schemas: Mapping[int, Loads] = _NO_SCHEMAS,
) -> Ingested:
    """Decode a batch of `source`. `entities` are text columns that become keys, and may be only so long.

    `schemas` are those that its records name (see `formats.decode`).

    An event later than `now` plus the source's lead is refused as from the future. Without `now` (in a replay) the
    record's own Kafka timestamp stands for it: a year of history has silent hours, so that the newest event seen so
    far says nothing about how far ahead the next one may honestly be.
    """
    decoded = decode(source, batch.values, schemas)
    places = np.zeros(len(decoded.rows), np.int64) if decoded.places is None else decoded.places
    refused = list(decoded.rejects)
    columns, rows = decoded.frame, np.column_stack([decoded.rows, places])
    try:
        events = _event_frame(source, batch, columns, rows)
    except pl.exceptions.PolarsError:
        columns, rows, failing = _derivable(source, columns, rows)
        refused += failing
        events = _event_frame(source, batch, columns, rows)
    bad = np.zeros(len(rows), np.bool_)
    for error, detail, wrong in _wrong(source, events, now, entities):
        refused += [Reject(row, error, detail, place) for row, place in rows[wrong & ~bad].tolist()]
        bad |= wrong
    if bad.any():
        rows, events = rows[~bad], events.filter(pl.Series(~bad))
    raw = pl.Series("_raw", Values.of(batch.values).taken(rows[:, 0]).to_arrow())
    return Ingested(events.hstack([raw]), [_refused(source, batch, each) for each in refused])


def _event_frame(source: Source, batch: Batch, columns: pl.DataFrame, rows: NDArray[np.int64]) -> pl.DataFrame:
    """The event frame of decoded columns; `rows` are the records of the events, and their rows in these."""
    records, places = rows[:, 0], rows[:, 1]
    offsets = (batch.offsets[records] << source.row_bits) + places
    return event_frame(source, columns, batch.partition, offsets, batch.timestamps[records])


def _wrong(
    source: Source, events: pl.DataFrame, now: int | None, entities: Sequence[str]
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """What well-formed events may not be: error, detail, and whether each one is."""
    present = events["_timestamp"].to_numpy() if now is None else np.int64(now)
    ahead = f"the event time is more than {source.max_lead} ahead"
    yield "future", ahead, events["_time"].to_numpy() > present + source.max_lead_ms
    for column in entities:
        long = events[column].str.len_bytes() > MAX_VALUE_BYTES
        if long.any():
            detail = f"{column!r} names an entity and is longer than {MAX_VALUE_BYTES} bytes"
            yield "oversized", detail, long.fill_null(False).to_numpy()


def _derivable(
    source: Source, frame: pl.DataFrame, rows: NDArray[np.int64]
) -> tuple[pl.DataFrame, NDArray[np.int64], list[Reject]]:
    """The rows that the source's derived columns can be computed of, and the others, with what Polars says of them."""
    try:
        with_derived(source, frame)
    except pl.exceptions.PolarsError as error:
        if len(frame) == 1:
            [(row, place)] = rows.tolist()
            return frame.clear(), rows[:0], [Reject(row, "derive", str(error)[:_MAX_DETAIL], place)]
        half = len(frame) // 2
        first, second = (_derivable(source, frame[part], rows[part]) for part in (slice(half), slice(half, None)))
        return first[0].vstack(second[0]), np.concatenate([first[1], second[1]]), first[2] + second[2]
    return frame, rows, []


def _refused(source: Source, batch: Batch, reject: Reject) -> Refused:
    at = int(batch.offsets[reject.row])
    record = Record(batch.topic, batch.partition, at, batch.values[reject.row], batch.keys[reject.row])
    detail = f"row {reject.place}: {reject.detail}" if source.row_bits else reject.detail
    offset = (record.offset << source.row_bits) + reject.place
    return Refused(offset, reject.error, rejected(record, reject.error, detail))
