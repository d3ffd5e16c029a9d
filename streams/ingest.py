"""From batches of records to event frames: decoded, checked, and what was refused set apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from featurestore.confluent import NO_SCHEMAS, Loads
from featurestore.decoding import MAX_DETAIL, Decoded, Reject, Wrong, set_apart
from featurestore.erasures import HEADER, NO_ENTITIES, Entities, Erasure, check_erasure
from featurestore.errors import DataError
from featurestore.formats import decode
from featurestore.frames import event_frame, with_derived
from featurestore.keys import MAX_VALUE_BYTES
from featurestore.sources import Source
from featurestore.values import Values
from streams.messages import Message, Record, rejected
from streams.transport import Batch


@dataclass(frozen=True)
class Ingested:
    """A batch's good events (with `_raw`, the record as it came), its erasures, and the others with the reasons."""

    events: pl.DataFrame
    rejects: list[Refused]
    erasures: list[Erasure] = field(default_factory=list)


class Refused(NamedTuple):
    """A record that is no good event: where, why, and what goes to <topic>.dlq."""

    offset: int
    error: str
    message: Message


class _Records(NamedTuple):
    """The records of some batches of a topic, one after another."""

    partitions: NDArray[np.int32]
    offsets: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    values: Values[bytes | None]


def ingested(
    source: Source,
    batches: Sequence[Batch],
    now: int | None,
    entities: Sequence[str] = (),
    schemas: Mapping[int, Loads] = NO_SCHEMAS,
    erasable: Entities = NO_ENTITIES,
) -> list[Ingested]:
    """Decode batches of `source`, all at once: few records take about as long as one.

    `entities` are text columns that become keys, and may be only so long. `schemas` are those that the records name
    (see `formats.decode`), `erasable` the entities that records without a value may erase.

    An event later than `now` plus the source's lead is refused as from the future. Without `now` (in a replay) the
    record's own Kafka timestamp stands for it: a year of history has silent hours, so that the newest event seen so
    far says nothing about how far ahead the next one may honestly be. Where ids tell events apart the earlier of both
    counts: whether an event was accepted, and so bears its id, must not depend on when it is read.
    """
    records = _joined(batches)
    headers = [each for batch in batches for each in batch.headers or ()] if source.headers else None
    decoded = decode(source, records.values, schemas, headers)
    try:
        events = _event_frame(source, records, decoded)
    except pl.exceptions.PolarsError:
        decoded = _derivable(source, decoded)
        events = _event_frame(source, records, decoded)
    good = set_apart(decoded._replace(frame=events), _wrong(source, events, now, entities))
    raw = pl.Series("_raw", records.values.taken(good.rows).to_arrow())
    return list(_parted(source, batches, erasable, good._replace(frame=good.frame.hstack([raw]))))


def _erasures(
    source: Source, batch: Batch, rejects: Sequence[Reject], erasable: Entities
) -> tuple[list[Erasure], list[Reject]]:
    """The erasures among what holds no event, and the rest."""
    erasures, rest = [], []
    for reject in rejects:
        name = dict(batch.tombstones.get(reject.row, ())).get(HEADER)
        if name is None:
            rest.append(reject)
            continue
        key, offset = batch.keys[reject.row], int(batch.offsets[reject.row]) << source.row_bits
        try:
            check_erasure(source, erasable, name, key)
        except DataError as error:
            rest.append(reject._replace(error="erasure", detail=str(error)[:MAX_DETAIL]))
        else:
            erasures.append(Erasure(batch.topic, batch.partition, offset, name.decode(), key or b""))
    return erasures, rest


def _joined(batches: Sequence[Batch]) -> _Records:
    partitions = np.array([batch.partition for batch in batches], np.int32)
    return _Records(
        np.repeat(partitions, [len(batch) for batch in batches]),
        np.concatenate([batch.offsets for batch in batches]),
        np.concatenate([batch.timestamps for batch in batches]),
        Values.joined([batch.values for batch in batches]),
    )


def _parted(source: Source, batches: Sequence[Batch], erasable: Entities, good: Decoded) -> Iterator[Ingested]:
    """What of all records came of each batch."""
    ends = np.cumsum([0, *map(len, batches)])
    cuts = pairwise(np.searchsorted(good.rows, ends).tolist())
    refusals = pairwise(np.searchsorted([each.row for each in good.rejects], ends).tolist())
    for batch, first, cut, refused in zip(batches, ends.tolist(), cuts, refusals, strict=False):
        own = [each._replace(row=each.row - first) for each in good.rejects[slice(*refused)]]
        erasures, rejects = _erasures(source, batch, own, erasable)
        yield Ingested(good.frame[slice(*cut)], [_refused(source, batch, each) for each in rejects], erasures)


def _event_frame(source: Source, records: _Records, decoded: Decoded) -> pl.DataFrame:
    offsets = records.offsets[decoded.rows]
    if decoded.places is not None:
        offsets = (offsets << source.row_bits) + decoded.places
    partitions, timestamps = records.partitions[decoded.rows], records.timestamps[decoded.rows]
    return event_frame(source, decoded.frame, partitions, offsets, timestamps)


def _wrong(source: Source, events: pl.DataFrame, now: int | None, entities: Sequence[str]) -> Iterator[Wrong]:
    """What well-formed events may not be: error, detail, and whether each one is."""
    arrived = events["_timestamp"].to_numpy()
    present = arrived if now is None else np.int64(now) if source.id is None else np.minimum(arrived, now)
    ahead = f"the event time is more than {source.max_lead} ahead"
    yield "future", ahead, events["_time"].to_numpy() > present + source.max_lead_ms
    for column in entities:
        long = events[column].str.len_bytes() > MAX_VALUE_BYTES
        if long.any():
            detail = f"{column!r} names an entity and is longer than {MAX_VALUE_BYTES} bytes"
            yield "oversized", detail, long.fill_null(False).to_numpy()


def _derivable(source: Source, decoded: Decoded) -> Decoded:
    """Without the events that the source's derived columns cannot be computed of."""
    failing = dict(_underivable(source, decoded.frame, 0))
    bad = np.zeros(len(decoded.frame), np.bool_)
    bad[list(failing)] = True
    return decoded.without(bad, [decoded.reject(at, "derive", detail) for at, detail in failing.items()])


def _underivable(source: Source, frame: pl.DataFrame, first: int) -> Iterator[tuple[int, str]]:
    """The places, from `first` on, of the events of which derived columns cannot be computed, and what Polars says."""
    try:
        with_derived(source, frame)
    except pl.exceptions.PolarsError as error:
        if len(frame) == 1:
            yield first, str(error)[:MAX_DETAIL]
        else:
            half = len(frame) // 2
            yield from _underivable(source, frame[:half], first)
            yield from _underivable(source, frame[half:], first + half)


def _refused(source: Source, batch: Batch, reject: Reject) -> Refused:
    at = int(batch.offsets[reject.row])
    given = [] if batch.headers is None else batch.headers[reject.row]
    headers = [pair for pair in given if pair[0] in source.headers.values()]
    # Without it, an erasure that is sent back would be a mere tombstone.
    headers += [pair for pair in batch.tombstones.get(reject.row, ()) if pair[0] == HEADER]
    record = Record(batch.topic, batch.partition, at, batch.values[reject.row], batch.keys[reject.row], headers)
    detail = f"row {reject.place}: {reject.detail}" if source.row_bits else reject.detail
    offset = (record.offset << source.row_bits) + reject.place
    return Refused(offset, reject.error, rejected(record, reject.error, detail))
