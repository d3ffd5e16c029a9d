"""A service's predictions and labels, from two topics into one order.

The order is that of `featurestore.align`: by event time, a label before a prediction of the same time. In a replay
partitions wait for each other without bound, so that the order is a function of the logs alone. Live, a partition that
has come to its end and stays silent is not waited for, and what overtakes its prediction is held (`learner.early`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from featurestore.align import Aligner, Chunk, Partition
from featurestore.confluent import Schemas, ids_of
from featurestore.errors import DataError, GapError
from featurestore.formats import decode
from featurestore.frames import event_frame
from featurestore.predictions import Prediction, decode_prediction, prediction_table, prediction_topic
from learner.reader import Reader, Records
from learner.service import Service

_POLL = 10_000


@dataclass(frozen=True)
class Options:
    """How a learner runs.

    `replay`: history, in an order that depends on the logs alone. `until_end`: stop at the present end of the topics.
    `max_wait`: how long (seconds) a live learner waits for a partition that has come to its end. A step takes about
    `chunk` rows, fewer where the model is slow; `buffer` is how many of one partition may wait.
    A snapshot is due after `every` seconds or `events` rows; a model is published at most every `publish` seconds.
    `schemas` are those that records of labels may name.
    """

    replay: bool = False
    until_end: bool = False
    max_wait: float = 0.02
    chunk: int = 20_000
    buffer: int = 40_000
    every: float = 5.0
    events: int = 200_000
    publish: float = 5.0
    schemas: Schemas | None = None


@dataclass(frozen=True)
class Place:
    """How far a partition has been taken: `next` offset and newest event time, `clock` (ms).

    A worker that died before it could commit sends predictions once more, which shows in the offsets of their events:
    what lies below `source`, the highest so far plus one, was there before.
    """

    next: int | None = None
    clock: int | None = None
    source: int = 0


@dataclass
class _Log:
    """What was read of a partition, ahead of what was taken."""

    expected: int | None
    source: int
    room: int  # how many events may be buffered
    heard: float = 0.0
    ended: bool = False
    paused: bool = False


class Inputs:
    """Buffers records of a service's topics and hands out chunks of the merged order.

    `skipped` counts, by topic and reason, records that are no labels, no predictions, or predictions sent again.
    """

    def __init__(
        self, service: Service, partitions: Mapping[str, int], places: Mapping[Partition, Place], options: Options
    ) -> None:
        self.asked, self.told = topics(service)
        self.skipped: Counter[tuple[str, str]] = Counter()
        self.read: Counter[str] = Counter()
        self._service, self._options = service, options
        self._places = {
            (t, p): places.get((t, p), Place()) for t in (self.asked, self.told) for p in range(partitions[t])
        }
        self._check(places)
        self._logs = {at: _Log(place.next, place.source, options.buffer) for at, place in self._places.items()}
        self._aligner = Aligner({self.told: 0, self.asked: 1})
        self._aligner.assign({at: place.clock for at, place in self._places.items()})

    @property
    def places(self) -> Mapping[Partition, Place]:
        """How far each partition has been taken."""
        return self._places

    @property
    def finished(self) -> bool:
        """Whether, with `until_end`, all has been taken."""
        return self._options.until_end and all(log.ended for log in self._logs.values()) and self._aligner.empty

    def receive(self, reader: Reader, now: float, wall: int) -> bool:
        """Buffer what the reader has. `now` is a monotonic time (s), `wall` the clock (ms). Says whether any came."""
        batches = reader.poll(min(_POLL, self._options.buffer))
        for records in batches:
            log = self._logs[records.partition]
            if self._options.until_end and log.ended:
                continue
            if records.values:
                self._push(log, records, None if self._options.replay else wall)
                log.heard = now
            log.ended = records.ended
        self._control(reader, now)
        return any(records.values for records in batches)

    def take(self, limit: int) -> Chunk | None:
        """The next chunk that is certain, about `limit` rows of it; it counts as taken."""
        chunk = self._aligner.take(limit)
        if chunk is not None:
            for at, (_, end) in chunk.spans.items():
                self._places[at] = _moved(self._places[at], chunk.frames.get(at[0]), at[1], end)
        elif not self._aligner.waiting():
            self._make_room()
        return chunk

    def labels(self, chunk: Chunk) -> pl.DataFrame:
        """The labels of a chunk, for `ServiceLoop.step`."""
        frame = chunk.frames.get(self.told)
        if frame is None:
            return pl.DataFrame(schema={**_META, "id": pl.String, "value": pl.Float64})
        return self._service.label.read(frame)

    def predictions(self, chunk: Chunk) -> pl.DataFrame:
        """The predictions of a chunk, for `ServiceLoop.step`."""
        frame = chunk.frames.get(self.asked)
        return self._prediction_frame([], 0, []).with_columns(_step=pl.lit(0, pl.Int64)) if frame is None else frame

    def _check(self, places: Mapping[Partition, Place]) -> None:
        for topic, partition in places:
            if (topic, partition) not in self._places:
                raise GapError(
                    f"{topic}[{partition}] is gone, and the learner's snapshot has a place in it: the topic was made "
                    "anew; move the snapshot away to start from what is there"
                )

    def _control(self, reader: Reader, now: float) -> None:
        """Who is waited for, and who must wait."""
        for at, log in self._logs.items():
            silent = not self._options.replay and log.heard + self._options.max_wait <= now
            self._aligner.drain(at, log.ended and (silent or self._options.until_end))
            buffered = self._aligner.buffered(at)
            if log.paused and buffered <= log.room // 2:
                reader.resume(at)
                log.paused = False
            elif not log.paused and buffered > log.room:
                reader.pause(at)
                log.paused = True
            if buffered <= self._options.buffer // 2:
                log.room = self._options.buffer

    def _make_room(self) -> None:
        """Let more in where all that is buffered has one key: only what follows tells that no more of it comes."""
        for log in self._logs.values():
            if log.paused:
                log.room *= 2

    def _push(self, log: _Log, records: Records, wall: int | None) -> None:
        topic = records.partition[0]
        offsets, end = np.array(records.offsets, np.int64), records.offsets[-1] + 1
        self.read[topic] += len(offsets)
        if topic == self.asked:
            frame = self._predicted(log, records, offsets)
        else:
            frame = self._labelled(records, offsets, wall)
        start = offsets[0] if log.expected is None else log.expected
        self._aligner.push(records.partition, frame, int(start), end)
        log.expected = end

    def _labelled(self, records: Records, offsets: np.ndarray, wall: int | None) -> pl.DataFrame:
        """The good events: the worker quarantines the others. From the future is what the worker takes for it."""
        source, timestamps = self._service.label.source, np.array(records.timestamps, np.int64)
        schemas = self._options.schemas if source.registered else None
        loaders = schemas.loaders(ids_of(records.values)) if schemas else {}
        decoded = decode(source, records.values, loaders, records.headers)
        present = timestamps[decoded.rows] if wall is None else np.int64(wall)
        good = decoded.frame[source.event_time].to_numpy() <= present + source.max_lead_ms
        self.skipped.update((source.name, reject.error) for reject in decoded.rejects)
        self.skipped[source.name, "future"] += int((~good).sum())
        rows = decoded.rows[good]
        return event_frame(
            source, decoded.frame.filter(pl.Series(good)), records.partition[1], offsets[rows], timestamps[rows]
        )

    def _predicted(self, log: _Log, records: Records, offsets: np.ndarray) -> pl.DataFrame:
        kept, rows = [], []
        for offset, value in zip(offsets.tolist(), records.values, strict=True):
            try:
                row = decode_prediction(value or b"")
            except DataError:
                self.skipped[self.asked, "malformed"] += 1
                continue
            if row.offset < log.source:
                self.skipped[self.asked, "repeated"] += 1
                continue
            log.source = row.offset + 1
            kept.append(offset)
            rows.append(row)
        return self._prediction_frame(rows, records.partition[1], kept)

    def _prediction_frame(self, rows: Sequence[Prediction], partition: int, offsets: Sequence[int]) -> pl.DataFrame:
        table = pl.DataFrame(prediction_table(rows, partition, self._service.inputs))
        return table.rename({"_offset": "_source"}).with_columns(pl.Series("_offset", offsets, pl.Int64))


_META = {"_partition": pl.Int32, "_offset": pl.Int64, "_time": pl.Int64, "_step": pl.Int64}


def topics(service: Service) -> tuple[str, str]:
    """Where a service's predictions are, and what its labels come from."""
    return prediction_topic(service.name), service.label.source.name


def _moved(place: Place, frame: pl.DataFrame | None, partition: int, end: int) -> Place:
    mine = None if frame is None else frame.filter(pl.col("_partition") == partition)
    if mine is None or mine.is_empty():
        return Place(end, place.clock, place.source)
    newest = int(mine["_time"].to_numpy().max())
    source = int(mine["_source"].to_numpy().max()) + 1 if "_source" in mine.columns else place.source
    return Place(end, newest if place.clock is None else max(newest, place.clock), source)
