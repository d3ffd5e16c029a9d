"""The worker: batches in, features and predictions out, states and offsets stored together.

One loop does the work; Faust's agents only hand it batches. A turn of the loop takes a stretch of the merged order and
goes through the same steps: load states, fold and read, predict, send, wait until it has arrived, checkpoint the
processors, commit states with their offsets. Whatever dies in between is done again from the stored offsets, with the
same result. The processors' checkpoint comes before the commit of the views they read: a view that ran ahead of a
prediction that must be made again would show it the future.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from featurestore.align import Aligner, Chunk, Partition
from featurestore.definitions import View
from featurestore.errors import GapError
from featurestore.flow import Flow, ViewOutput
from featurestore.offline import GridWriter
from featurestore.sources import Source
from featurestore.stores import Commit, OnlineStore, Request
from featurestore.times import ENDLESS
from streams.ingest import ingested
from streams.messages import Message, feature_messages, late, prediction_messages, rejected
from streams.mirror import Mirror, archive_table
from streams.processor import Processor
from streams.publisher import Publisher
from streams.stats import Stats
from streams.transport import TP, Batch, end_offsets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.app import App


@dataclass(frozen=True)
class Options:
    """How a worker runs.

    `replay`: history, as fast as it goes; partitions wait for each other without bound, and event time is the clock.
    `until_end` (with replay): stop where the topics ended when the worker began. `max_wait` is how long (seconds) a
    live worker waits for a silent partition before it goes on without it. `chunk` is how many events make a turn,
    about; `buffer` how many of one partition may wait. Where `archive` is a folder, raw events are kept there.
    """

    replay: bool = False
    until_end: bool = False
    max_wait: float = 0.02
    chunk: int = 20_000
    buffer: int = 40_000
    archive: Path | None = None
    grid: int = 65_536


@dataclass
class _Log:
    """Where a source partition stands between Kafka and the merged order."""

    expected: int | None  # next offset to come from Kafka
    end: int | None = None  # in a replay: where it ends
    heard: float = 0.0  # when it last brought something
    held: bool = False
    archive: GridWriter | None = None


@dataclass
class Worker:
    """Views and processors over their topics. `now` gives wall-clock time in ms, `owner` is this worker's token."""

    views: Sequence[View]
    processors: Sequence[Processor]
    partitions: Mapping[str, int]  # of every topic
    store: OnlineStore
    publisher: Publisher
    mirror: Mirror | None
    mirrored: Sequence[str]  # feed topics
    options: Options
    owner: str
    now: Callable[[], int]
    stats: Stats = field(default_factory=Stats)

    def __post_init__(self) -> None:
        read = [read.view for processor in self.processors for read in processor.reads]
        self.all_views = list({view.key: view for view in [*self.views, *read]}.values())
        listed = [view.source for view in self.all_views]
        listed += [source for processor in self.processors for source in processor.sources]
        self.sources: dict[str, Source] = {source.name: source for source in listed}
        predicted = {processor.on.name for processor in self.processors}
        self._ranks = {topic: int(topic in predicted) for topic in self.sources}
        self._logs: dict[Partition, _Log] = {}
        self._feed_ends: dict[Partition, int] = {}
        self._unsent: list[Message] = []
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._reset()

    def _reset(self) -> None:
        reads = [read for processor in self.processors for read in processor.reads]
        self._aligner = Aligner(self._ranks)
        self._flow = Flow(self.all_views, reads, self.partitions)
        self._stored: dict[tuple[str, Partition], int] = {}
        self._logs.clear()

    # --- partitions come and go -------------------------------------------------------------------------------------

    async def positions(self, tps: frozenset[TP]) -> dict[TP, int | None]:
        """Claim partitions and say where each must start; whatever was in memory is forgotten."""
        async with self._turn:
            self._reset()
            if self.mirror is not None:
                self.mirror.forget()
            mine = [(tp.topic, tp.partition) for tp in tps if tp.topic in self.sources]
            starts = await self._claimed(mine)
            for topic, partition in ((tp.topic, tp.partition) for tp in tps if tp.topic in self.mirrored):
                assert self.mirror is not None
                starts[topic, partition] = self.mirror.position(topic, partition)
            return {TP(topic, partition): start for (topic, partition), start in starts.items()}

    async def _claimed(self, partitions: Sequence[Partition]) -> dict[Partition, int | None]:
        keys = [(view.key, p) for p in partitions for view in self.all_views if view.source.name == p[0]]
        keys += [(x.key, p) for p in partitions for x in self.processors if x.key is not None and x.on.name == p[0]]
        found = await asyncio.gather(*(self.store.claim(key, *p, self.owner) for key, p in keys))
        starts: dict[Partition, list[int | None]] = {p: [] for p in partitions}
        clocks: dict[Partition, int | None] = dict.fromkeys(partitions)
        for (key, partition), position in zip(keys, found, strict=True):
            starts[partition].append(position and position.next)
            if position is not None:
                self._stored[key, partition] = position.next
                clocks[partition] = max(position.clock, clocks[partition] or 0)
            if key in self._flow.views:
                self._flow.begin(key, partition, position and (position.next, position.clock))
        for processor in self.processors:
            if processor.key is None:
                kept = processor.positions()
                for source in processor.sources:
                    for p in partitions:
                        if p[0] == source.name:
                            starts[p].append(kept.get(p))
        self._aligner.assign(clocks)
        for partition in partitions:
            self._logs[partition] = _Log(None, archive=self._archive(partition))
        return {p: self._start(p, found_) for p, found_ in starts.items()}

    def _archive(self, partition: Partition) -> GridWriter | None:
        folder = self.options.archive
        return None if folder is None else GridWriter(folder / partition[0], partition[1], self.options.grid)

    def _start(self, partition: Partition, starts: Sequence[int | None]) -> int | None:
        if not starts or None in starts:
            return None
        archive = self._logs[partition].archive
        kept = [archive.next] if archive is not None and archive.started else []
        return min(start for start in [*starts, *kept] if start is not None)

    async def assigned(self, starts: Mapping[TP, int]) -> None:
        """Take note of where partitions start and, to stop there, where they end."""
        for tp, start in starts.items():
            if (tp.topic, tp.partition) in self._logs:
                log = self._logs[tp.topic, tp.partition]
                log.expected, log.heard = start, time.monotonic()
        if self.options.until_end:
            ends = await end_offsets(self.app.consumer, starts)
            for tp, end in ends.items():
                if (tp.topic, tp.partition) in self._logs:
                    self._logs[tp.topic, tp.partition].end = end
                    self._drain_at_end((tp.topic, tp.partition))
        self._wake.set()

    async def revoked(self, _: frozenset[TP]) -> None:
        """Finish the turn under way; what is not done goes to whoever gets the partitions."""
        async with self._turn:
            await self._flush_archives()
            if self.mirror is not None:
                await self.mirror.flush()
            self._reset()

    # --- records come in --------------------------------------------------------------------------------------------

    async def receive(self, batch: Batch) -> None:
        """Take a batch from Kafka."""
        if batch.topic in self.sources:
            self._take(batch)
        elif self.mirror is not None:
            await self.mirror.take(batch)
        self._wake.set()

    def _take(self, batch: Batch) -> None:
        partition = (batch.topic, batch.partition)
        log = self._logs.get(partition)
        if log is None or (log.expected is not None and batch.next <= log.expected):
            return  # from before a rebalance
        if log.expected is not None and batch.start != log.expected:
            raise GapError(
                f"{batch.topic}[{batch.partition}]: expected offset {log.expected}, Kafka gave {batch.start}"
            )
        with self._timed("decode"):
            got = ingested(self.sources[batch.topic], batch, None if self.options.replay else self.now())
        self.stats.rejected.update(error for error, _ in got.rejects)
        self._unsent += [message for _, message in got.rejects]
        log.expected, log.heard = batch.next, time.monotonic()
        self._aligner.push(partition, got.events, batch.start, batch.next)
        if log.archive is not None:
            with self._timed("archive"):
                schema = self.sources[batch.topic].schema
                log.archive.append(archive_table(got.events, list(schema)), batch.next)
        if self.options.replay:
            self._drain_at_end(partition)
        else:
            self._aligner.drain(partition, False)
        if not log.held and self._aligner.buffered(partition) > self.options.buffer:
            log.held = True
            self.app.consumer.hold(TP(*partition))

    def _drain_at_end(self, partition: Partition) -> None:
        log = self._logs[partition]
        if log.end is not None and log.expected is not None and log.expected >= log.end:
            self._aligner.drain(partition)

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def main(self, app: App) -> None:
        """Work until cancelled or, with `until_end`, until all is done."""
        self.app = app
        while not self._finished():
            async with self._turn:
                self._give_up_waiting()
                chunk = self._aligner.take(self.options.chunk)
                if chunk is not None:
                    await self._process(chunk)
            if chunk is None:
                self._wake.clear()
                with_timeout = asyncio.wait_for(
                    self._wake.wait(), 0.2 if self.options.replay else self.options.max_wait
                )
                try:
                    await with_timeout
                except TimeoutError:
                    pass
        await self._flush_archives()
        await self._drain_mirror()

    def _finished(self) -> bool:
        if not self.options.until_end or not self._logs or any(log.end is None for log in self._logs.values()):
            return False
        return all(
            log.expected is not None and log.end is not None and log.expected >= log.end and not self._pending(p)
            for p, log in self._logs.items()
        )

    def _pending(self, partition: Partition) -> bool:
        return self._aligner.buffered(partition) > 0

    def _give_up_waiting(self) -> None:
        """Go on without partitions that have been silent for too long; in a replay, never."""
        if not self.options.replay:
            late_before = time.monotonic() - self.options.max_wait
            for partition, log in self._logs.items():
                if log.heard < late_before and not log.held:
                    self._aligner.drain(partition)

    async def _process(self, chunk: Chunk) -> None:
        if self.stats.first_at is None:
            self.stats.first_at = time.monotonic()
        wanted = {p: at for x in self.processors for p, at in self._wanted(x, chunk).items()}
        with self._timed("prepare"):
            lookups = self._flow.lookups(chunk, wanted)
        if lookups:
            await self._load(lookups)
        starts = {
            (key, p): self._flow.next_offset(key, p)
            for key, view in self._flow.views.items()
            for p in chunk.spans
            if p[0] == view.source.name
        }
        with self._timed("fold"):
            outputs = self._flow.run(chunk, emit=self.mirror is not None)
        predictions = self._predict(chunk, outputs)
        with self._timed("encode"):
            commits = self._commits(chunk, starts)
        with self._timed("send"):
            self._send(chunk, outputs, predictions, starts)
        with self._timed("flush"):
            await self.publisher.flush()
        with self._timed("checkpoint"):
            for processor in self.processors:
                processor.checkpoint()
        with self._timed("commit"):
            await self.store.commit(commits)
        self._committed(chunk, commits)

    def _wanted(self, processor: Processor, chunk: Chunk) -> dict[Partition, int]:
        kept = processor.positions()
        return {p: self._position(processor, kept, p) for p in chunk.spans if p[0] == processor.on.name}

    def _position(self, processor: Processor, kept: Mapping[Partition, int], partition: Partition) -> int:
        if processor.key is None:
            return kept.get(partition, 0)
        return self._stored.get((processor.key, partition), 0)

    async def _load(self, lookups: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        with self._timed("load"):
            requests, places = [], []
            for key, pairs in lookups.items():
                state, topic = self._flow.states[key], self._flow.views[key].source.name
                for partition in sorted({p for _, p in pairs}):
                    entities = [e for e, p in pairs if p == partition]
                    requests.append(Request(key, topic, [partition], [state.names[e] for e in entities]))
                    places.append((state, partition, entities))
            for (state, partition, entities), blobs in zip(places, await self.store.read_many(requests), strict=True):
                for entity, (blob,) in zip(entities, blobs, strict=True):
                    state.load(entity, partition, blob)

    def _predict(self, chunk: Chunk, outputs: Mapping[str, ViewOutput]) -> list[tuple[Processor, pl.DataFrame]]:
        reads = {read: frame for output in outputs.values() for read, frame in output.reads.items()}
        made = []
        with self._timed("predict"):
            for processor in self.processors:
                frame = processor.process(chunk, reads)
                self.stats.predictions += len(frame)
                made.append((processor, frame))
        return made

    def _commits(self, chunk: Chunk, starts: Mapping[tuple[str, Partition], int | None]) -> list[Commit]:
        changed = {
            (key, change.partition): change for key, changes in self._flow.changes().items() for change in changes
        }
        commits = []
        for (key, partition), before in starts.items():
            start, end = self._span(chunk, partition, before)
            change = changed.get((key, partition[1]))
            clock = self._flow.states[key].clock(partition[1])
            if end > start:
                entities, blobs = (change.entities, change.blobs) if change else ([], [])
                ttl = self._ttl(self._flow.views[key], clock)
                commits.append(Commit(key, *partition, self.owner, start, end, clock or 0, entities, blobs, ttl))
        for processor in self.processors:
            if processor.key is not None:
                for partition in (p for p in chunk.spans if p[0] == processor.on.name):
                    start, end = self._span(chunk, partition, self._stored.get((processor.key, partition)))
                    if end > start:
                        commits.append(Commit(processor.key, *partition, self.owner, start, end, 0, [], []))
        return commits

    @staticmethod
    def _span(chunk: Chunk, partition: Partition, before: int | None) -> tuple[int, int]:
        start, end = chunk.spans[partition]
        return (start if before is None else max(start, before)), end

    def _ttl(self, view: View, clock: int | None) -> int | None:
        """How long a state must be kept (ms): while a window can see it. A stream that lags gets its lag on top."""
        longest = max(feature.window.length for feature in view.stored if feature.window is not None)
        if longest >= ENDLESS:
            return None
        lag = max(0, self.now() - clock) if clock is not None else 0
        return longest + view.source.lateness_ms + lag

    def _send(
        self,
        chunk: Chunk,
        outputs: Mapping[str, ViewOutput],
        predictions: Sequence[tuple[Processor, pl.DataFrame]],
        starts: Mapping[tuple[str, Partition], int | None],
    ) -> None:
        self.publisher.send(self._unsent)
        self._unsent = []
        for key, output in outputs.items():
            view = self._flow.views[key]
            self.publisher.send(self._refusals(view, output))
            if self.mirror is not None:
                spans = {p: self._span(chunk, p, starts[key, p]) for k, p in starts if k == key}
                self.publisher.send(
                    feature_messages(view, output.events, {p: s for p, s in spans.items() if s[0] < s[1]})
                )
        for processor, frame in predictions:
            if len(frame):
                self.publisher.send(prediction_messages(processor.name, frame))

    def _refusals(self, view: View, output: ViewOutput) -> Iterator[Message]:
        topic = view.source.name
        for frame, is_late in ((output.late, True), (output.overflowed, False)):
            if not len(frame):
                continue
            for partition, offset, value in frame.select("_partition", "_offset", "_raw").iter_rows():
                if is_late:
                    self.stats.late += 1
                    yield late(topic, partition, offset, value, view.key)
                else:
                    self.stats.rejected["overflow"] += 1
                    yield rejected(topic, partition, offset, value, "overflow", f"an integer sum of {view.key} is full")

    def _committed(self, chunk: Chunk, commits: Sequence[Commit]) -> None:
        stats = self.stats
        for commit in commits:
            self._stored[commit.view_key, (commit.topic, commit.partition)] = commit.next
            stats.states += len(commit.entities)
        wall, monotonic = self.now(), time.monotonic()
        for frame in chunk.frames.values():
            stats.fresh(np.maximum(wall - frame["_timestamp"].to_numpy(), 0))
            stats.stream_time = max(stats.stream_time or 0, int(frame["_time"].to_numpy().max()))
        stats.events += chunk.events
        stats.chunks += 1
        stats.last_at = monotonic
        for partition, (_, end) in chunk.spans.items():
            log = self._logs[partition]
            self.app.consumer.done(TP(*partition), end)
            if log.held and self._aligner.buffered(partition) <= self.options.buffer // 2:
                log.held = False
                log.heard = monotonic
                self.app.consumer.release(TP(*partition))

    # --- files ------------------------------------------------------------------------------------------------------

    async def _flush_archives(self) -> None:
        for log in self._logs.values():
            if log.archive is not None:
                await asyncio.to_thread(log.archive.flush)

    async def _drain_mirror(self) -> None:
        """Wait until the mirror has all that was sent, then write it out."""
        if self.mirror is None:
            return
        tps = [tp for tp in self.app.consumer.assignment() if tp.topic in self.mirrored]
        ends = await end_offsets(self.app.consumer, tps)
        while any(self.mirror.done(tp.topic, tp.partition) < end for tp, end in ends.items() if end):
            await asyncio.sleep(0.02)
        await self.mirror.flush()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.stats.seconds[stage] += time.perf_counter() - begun
