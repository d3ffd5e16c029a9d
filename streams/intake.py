"""What comes in: batches of source partitions decoded, checked, archived and put into the merged order."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import polars as pl

from featurestore.align import Aligner, Chunk, Partition
from featurestore.confluent import Loads
from featurestore.definitions import View
from featurestore.erasures import Entities
from featurestore.errors import GapError
from featurestore.forgotten import archive_revision
from featurestore.offline import GridWriter
from featurestore.pairing import Place
from featurestore.repeats import Repeats
from featurestore.sources import Source
from featurestore.stores import Position
from streams.batches import TP, Batch
from streams.ingest import Ingested, Refused, ingested
from streams.messages import Message
from streams.mirror import archive_table
from streams.notes import Refusals
from streams.options import Options
from streams.stats import Stats
from streams.transport import FEW

PATIENCE = 1.0
"""Seconds after which who waits for records looks whether there is anything else to do."""


class Holding(Protocol):
    """What can be told to bring no more of a partition for a while."""

    def hold(self, tp: TP) -> None:
        """Bring no more."""

    def release(self, tp: TP) -> None:
        """Go on."""


@dataclass
class _Log:
    """Where a source partition stands between Kafka and the merged order.

    Offsets are those of records but for `begin` and `back`, which are events'.
    """

    begin: int = 0  # first offset that is new to a view, a processor or a join
    back: int = 0  # first offset that a join needs again; what is before only the archive does
    expected: int | None = None  # next offset to come from Kafka
    stored: int = 0  # all before it has been stored
    end: int | None = None  # in a replay: where it ends
    heard: float = 0.0  # when it last brought something
    held: bool = False
    archive: GridWriter | None = None
    repeats: Repeats | None = None

    @property
    def at_end(self) -> bool:
        """Whether, in a replay that ends, all of it has come."""
        return self.end is not None and self.expected is not None and self.expected >= self.end


class Intake:
    """The source partitions of a worker. `ranks` order topics (see `Aligner`), `now` gives wall-clock time in ms.

    `erasable` are the entities that records of a topic may erase. `refused` is what is to go to dead letters; what has
    brought too much is told so by `holding`, which is to be set before anything comes. Live, partitions wait for each
    other only where `in_order` says that something depends on the order of theirs. Topics that are `made` here are not
    waited for; of those that another worker is to `read_later` that one sets aside what is refused.
    """

    holding: Holding

    def __init__(
        self,
        sources: Mapping[str, Source],
        views: Sequence[View],
        ranks: Mapping[str, int],
        erasable: Mapping[str, Entities],
        options: Options,
        stats: Stats,
        now: Callable[[], int],
        *,
        in_order: bool,
        made: Collection[str] = (),
        read_later: Collection[str] = (),
    ) -> None:
        self._sources, self._ranks, self._erasable = sources, ranks, erasable
        self._options, self._stats, self._now = options, stats, now
        self._in_order = options.replay or in_order
        self._made, self._read_later = made, read_later
        self._keys = {name: _entity_columns(name, views) for name in sources}
        self._logs: dict[Partition, _Log] = {}
        self._loads: dict[int, Loads] = {}  # what reads the records of each schema
        self._refusals = Refusals()
        self.refused: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Have no partitions, and nothing of them."""
        self._aligner = Aligner(self._ranks, in_order=self._in_order)
        self._logs.clear()
        self._inbox: defaultdict[str, list[Batch]] = defaultdict(list)  # by topic: what has come, not decoded yet

    # --- partitions ---------------------------------------------------------------------------------------------

    def begin(self, partition: Partition, stored: Position | None, back: Place) -> int | None:
        """Take a partition on that was `stored` so far; returns the first record that something here still needs.

        It is read from `back` on, for what waits there to be joined.
        """
        source, folder = self._sources[partition[0]], self._options.archive
        self._aligner.assign({partition: back.clock})
        log = self._logs[partition] = _Log(0 if stored is None else stored.next, back.offset)
        if source.id is not None:
            log.repeats = Repeats(source)
        if folder is not None:
            revision, grid = archive_revision(folder, source, partition[1]), source.grid(self._options.grid)
            log.archive = GridWriter(folder / partition[0], partition[1], grid, revision=revision)
        if stored is None or (log.archive is not None and not log.archive.next):
            return None
        return (stored.next if log.archive is None else min(stored.next, log.archive.next)) >> source.row_bits

    def lead(self, partition: Partition) -> int:
        """How many records before a partition's position are read again: for their ids, or to be joined."""
        log, source = self._logs.get(partition), self._sources.get(partition[0])
        if log is None or source is None:
            return 0
        joined = (log.begin >> source.row_bits) - (log.back >> source.row_bits)
        return joined if source.id is None else joined + source.dedup

    def start(self, partition: Partition, start: int, end: int | None) -> None:
        """Expect records from `start` on; in a replay that ends, up to `end`."""
        log = self._logs[partition]
        log.expected, log.stored, log.heard, log.end = start, start, time.monotonic(), end
        if partition[0] in self._made:
            self._aligner.drain(partition)
        self._drain_at_end(partition)

    @property
    def partitions(self) -> Sequence[Partition]:
        """The partitions taken on. For any thread."""
        return list(self._logs)

    @property
    def archives(self) -> list[GridWriter]:
        """The files of raw events."""
        return [log.archive for log in self._logs.values() if log.archive is not None]

    def lag(self, partition: Partition, end: int | None) -> int | None:
        """How many of its offsets before `end` are still to be stored; None before it has begun. For any thread."""
        log = self._logs.get(partition)
        return None if log is None or log.expected is None or end is None else max(0, end - log.stored)

    # --- records ------------------------------------------------------------------------------------------------

    def take(self, batch: Batch, loads: Mapping[int, Loads]) -> None:
        """Take a batch, of which `loads` reads the schemas, and decode it if much has come."""
        log = self._logs.get((batch.topic, batch.partition))
        if log is None or log.expected is None or batch.next <= log.expected:
            return  # from before a rebalance
        if batch.start != log.expected:
            raise GapError(
                f"{batch.topic}[{batch.partition}]: expected offset {log.expected}, Kafka gave {batch.start}"
            )
        self._stats.fetched(len(batch), batch.nbytes)
        self._loads.update(loads)
        log.expected, log.heard = batch.next, time.monotonic()
        self._inbox[batch.topic].append(batch)
        if sum(map(len, self._inbox[batch.topic])) >= FEW:
            self._decode(batch.topic)

    def _decode(self, topic: str) -> None:
        """Decode what has come of the topic: few records of several partitions cost little more than those of one."""
        batches, source = self._inbox.pop(topic), self._sources[topic]
        now = None if self._options.replay else self._now()
        with self._stats.timed("decode"):
            found = ingested(source, batches, now, self._keys[topic], self._loads, self._erasable[topic])
        for batch, got in zip(batches, found, strict=True):
            self._push(batch, got)
            self._hold_if_full((batch.topic, batch.partition))

    def _push(self, batch: Batch, got: Ingested) -> None:
        partition, source = (batch.topic, batch.partition), self._sources[batch.topic]
        log = self._logs[partition]
        if log.repeats is not None:
            got = self._told_apart(log.repeats, got, log.begin)
        start, end = batch.start << source.row_bits, batch.next << source.row_bits
        self._align(partition, got, start, end)
        if log.archive is not None:
            with self._stats.timed("archive"):
                begins = start if log.archive.next else 0  # an archive may begin in the middle of a topic
                log.archive.append(archive_table(got.events, list(source.schema)), end, start=begins)
        self._drain_at_end(partition)

    def _told_apart(self, known: Repeats, got: Ingested, begin: int) -> Ingested:
        """What was ingested without the repeats, of which those are counted that are new here."""
        with self._stats.timed("repeats"):
            events, repeats = known.sort_out(got.events)
        self._stats.repeats += int((repeats >= begin).sum())
        return replace(got, events=events)

    def _align(self, partition: Partition, got: Ingested, start: int, end: int) -> None:
        log, events, erasures = self._logs[partition], got.events, got.erasures
        if end <= log.back:
            return
        if start < log.back:
            events = events.filter(pl.col("_offset") >= log.back)
            erasures = [erasure for erasure in erasures if erasure.offset >= log.back]
        if partition[0] not in self._read_later:
            self._set_aside(partition, [refused for refused in got.rejects if refused.offset >= log.begin])
        self._aligner.push(partition, events, max(start, log.back), end, erasures)
        if not self._options.replay and partition[0] not in self._made:
            self._aligner.drain(partition, drained=False)

    def _set_aside(self, partition: Partition, rejects: Sequence[Refused]) -> None:
        self._stats.rejected.update(refused.error for refused in rejects)
        self._refusals.note(partition, rejects)
        self.refused += [refused.message for refused in rejects]

    # --- the merged order ---------------------------------------------------------------------------------------

    def chunk(self) -> Chunk | None:
        """The next stretch of the merged order; None if nothing may go on yet."""
        for topic in list(self._inbox):
            self._decode(topic)
        self._give_up_waiting()
        return self._aligner.take(self._options.chunk)

    @property
    def patience(self) -> float:
        """Seconds until something may go on though nothing new has come."""
        waits = not self._aligner.empty
        return max(self._options.max_wait / 2, 0.001) if waits else PATIENCE

    @property
    def finished(self) -> bool:
        """Whether, in a replay that ends, every partition has come to its end and nothing is left of it."""
        logs = self._logs.values()
        waiting = self._inbox or not self._aligner.empty
        return self._options.until_end and bool(logs) and all(log.at_end for log in logs) and not waiting

    def stored(self, partition: Partition, end: int) -> int:
        """Take note that all before an event's offset is stored; returns the first record that is not."""
        log = self._logs[partition]
        log.stored = end >> self._sources[partition[0]].row_bits
        if log.held and self._aligner.buffered(partition) <= self._options.buffer // 2:
            log.heard = time.monotonic()
            self._release(partition, log)
        return log.stored

    def make_room(self) -> None:
        """Let held partitions bring more when nothing else would: all that they have brought may share one key."""
        if not self._aligner.waiting():
            for partition, log in self._logs.items():
                if log.held:
                    self._release(partition, log)

    def _hold_if_full(self, partition: Partition) -> None:
        log = self._logs[partition]
        if not log.held and self._aligner.buffered(partition) > self._options.buffer:
            log.held = True
            self.holding.hold(TP(*partition))

    def _release(self, partition: Partition, log: _Log) -> None:
        log.held = False
        self.holding.release(TP(*partition))

    def _give_up_waiting(self) -> None:
        """Go on without partitions that have been silent for too long; in a replay, never, nor while one is reread."""
        if self._in_order and not self._options.replay:
            silent_since = time.monotonic() - self._options.max_wait
            for partition, log in self._logs.items():
                again = log.expected is not None and log.expected << self._sources[partition[0]].row_bits < log.begin
                if log.heard < silent_since and not log.held and not again:
                    self._aligner.drain(partition)

    def _drain_at_end(self, partition: Partition) -> None:
        if self._logs[partition].at_end:
            self._aligner.drain(partition)


def _entity_columns(topic: str, views: Sequence[View]) -> list[str]:
    """The text columns of a topic that name entities of views."""
    named = [(view.source, key) for view in views if view.source.name == topic for key in view.entity.keys]
    return sorted({key for source, key in named if source.types[key] == "str"})
