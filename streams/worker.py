"""The worker: batches in, features and predictions out, states and offsets stored together.

One loop does the work; Faust's agents only hand it batches. A turn of the loop takes a stretch of the merged order and
goes through the same steps: load states, fold and read, predict, send, wait until it has arrived, checkpoint the
processors, commit states with their offsets. Whatever dies in between is done again from the stored offsets, with the
same result. The processors' checkpoint comes before the commit of the views they read: a view that ran ahead of a
prediction that must be made again would show it the future.

Turns overlap by one: while the outcome of one is stored, the next is computed, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl

from featurestore.align import Aligner, Chunk, Partition
from featurestore.confluent import Loads, Schemas
from featurestore.definitions import View
from featurestore.errors import FencedError, GapError, StateError
from featurestore.joined import Joined
from featurestore.offline import GridWriter
from featurestore.repeats import Repeats
from featurestore.sources import Source
from featurestore.stores import OnlineStore, Request
from streams.ingest import Ingested, ingested
from streams.joins import Ends
from streams.messages import Message
from streams.mirror import Mirror, archive_table
from streams.processor import Processor
from streams.publisher import Publisher
from streams.schemas import known_schemas
from streams.stats import Stats
from streams.transport import FEW, TP, Batch, end_offsets
from streams.work import Turn, Work

if TYPE_CHECKING:
    from streams.app import App


T = TypeVar("T")

Sent = Callable[[Joined, Sequence[int]], Mapping[int, Ends]]
"""Asks the topic of a join how far pairs of some partitions were delivered."""

FLUSH_SECONDS = 5.0
"""How long what has come may be missing from the files of a live worker."""


def _nothing_sent(_source: Joined, _partitions: Sequence[int]) -> Mapping[int, Ends]:
    return {}


@dataclass(frozen=True)
class Options:
    """How a worker runs.

    `replay`: history, as fast as it goes; partitions wait for each other without bound, and event time is the clock.
    `until_end` (with replay): stop where the topics ended when the worker began. `max_wait` is how long (seconds) a
    live worker waits for a silent partition before it goes on without it. `chunk` is how many events make a turn,
    about; `buffer` how many of one partition may wait. Where `archive` is a folder, raw events are kept there. `memory`
    is how many bytes of states are held, about: the online store has them all.
    """

    replay: bool = False
    until_end: bool = False
    max_wait: float = 0.02
    chunk: int = 100_000
    buffer: int = 200_000
    archive: Path | None = None
    grid: int = 65_536
    memory: int = 2 << 30


@dataclass
class _Log:
    """Where a source partition stands between Kafka and the merged order.

    Offsets are those of records but for `begin` and `back`, which are events'.
    """

    begin: int = 0  # first offset that is new to a view, a processor or a join
    back: int = 0  # first offset that a join needs again; what is before only the archive does
    expected: int | None = None  # next offset to come from Kafka
    end: int | None = None  # in a replay: where it ends
    heard: float = 0.0  # when it last brought something
    held: bool = False
    archive: GridWriter | None = None
    repeats: Repeats | None = None

    @property
    def at_end(self) -> bool:
        """Whether, in a replay that ends, all of it has come."""
        return self.end is not None and self.expected is not None and self.expected >= self.end


@dataclass
class Worker:
    """Views, processors and joins over their topics.

    `now` gives wall-clock time in ms, `owner` is this worker's token.
    """

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
    schemas: Schemas | None = None
    joins: Sequence[Joined] = ()
    sent: Sent = _nothing_sent
    first: Sequence[Worker] = ()  # to be run to their end before this one begins
    set_aside_later: Collection[str] = ()  # topics whose refused records another worker sets aside, after this one
    stats: Stats = field(default_factory=Stats)

    def __post_init__(self) -> None:
        read = [read.view for processor in self.processors for read in processor.reads]
        self._views = list({view.key: view for view in [*self.views, *read]}.values())
        listed = [view.source for view in self._views]
        listed += [source for processor in self.processors for source in processor.sources]
        listed += [side for source in self.joins for side in source.sides]
        self.sources: dict[str, Source] = {source.name: source for source in listed}
        predicted = {processor.on.name for processor in self.processors}
        self._ranks = {topic: int(topic in predicted) for topic in self.sources}
        self._made = {source.name for source in self.joins}  # what is made here is not waited for
        self._keys = {name: _entity_columns(name, self._views) for name in self.sources}
        self._logs: dict[Partition, _Log] = {}
        self._refused: list[Message] = []
        self._wake = asyncio.Event()
        self._turning = asyncio.Lock()
        self._flush_at = 0.0
        self._storing: asyncio.Task[None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._aligner = Aligner(self._ranks)
        options = self.options
        self._work = Work(
            self._views, self.processors, self.partitions, self.owner, self.stats, options.memory, self.joins
        )
        self._logs.clear()

    # --- partitions come and go ---------------------------------------------------------------------------------

    async def positions(self, tps: frozenset[TP]) -> dict[TP, int | None]:
        """Claim partitions and say where each must start; whatever was in memory is forgotten."""
        async with self._turning:
            await self._stored()
            self._reset()
            if self.mirror is not None:
                await self.mirror.forget()
            starts: dict[TP, int | None] = {}
            mine = [(tp.topic, tp.partition) for tp in tps if tp.topic in self.sources]
            self._check_known(mine)
            for partition, start in zip(mine, await asyncio.gather(*map(self._claim, mine)), strict=True):
                starts[TP(*partition)] = start
            await self._begin_joins(mine)
            for tp in tps:
                if self.mirror is not None and tp.topic in self.mirrored:
                    starts[tp] = self.mirror.position(tp.topic, tp.partition)
            return starts

    async def _begin_joins(self, partitions: Sequence[Partition]) -> None:
        """Let joins go on with the partitions of both their topics, as far as these were joined already."""
        for source in self.joins:
            mine = [{p for topic, p in partitions if topic == side.name} for side in source.sides]
            if mine[0] != mine[1]:
                raise StateError(
                    f"{source.name}: this worker got partitions {sorted(mine[0])} of {source.left.name} and "
                    f"{sorted(mine[1])} of {source.right.name}, which are joined; start all workers again"
                )
            sent = await asyncio.to_thread(self.sent, source, sorted(mine[0]))
            for partition in mine[0]:
                self._work.begin_join(source, partition, sent.get(partition))

    def _check_known(self, partitions: Sequence[Partition]) -> None:
        """Refuse partitions that were added while this worker ran: keys have moved to them, and states have not."""
        for topic, partition in partitions:
            if partition >= self.partitions[topic]:
                raise StateError(
                    f"{topic} had {self.partitions[topic]} partitions when this worker started, and has more now: "
                    "events of a key may lie in another partition than its state. Stop the workers; start them again "
                    "where the source has no partitioner, for then reads merge all partitions, or else replay the "
                    "topic into one with the new number of partitions"
                )

    async def _claim(self, partition: Partition) -> int | None:
        """Take a source partition on; returns the first offset that something here still needs."""
        keys = self._work.keys(partition)
        found = await asyncio.gather(*(self.store.claim(key, *partition, self.owner) for key in keys))
        begin = self._work.begin(partition, dict(zip(keys, found, strict=True)))
        back = self._work.reread(partition, begin)
        self._aligner.assign({partition: back.clock})
        folder = self.options.archive
        source = self.sources[partition[0]]
        grid = source.grid(self.options.grid)
        archive = None if folder is None else GridWriter(folder / partition[0], partition[1], grid)
        repeats = None if source.id is None else Repeats(source)
        self._logs[partition] = _Log(0 if begin is None else begin.next, back.offset, archive=archive, repeats=repeats)
        if begin is None or (archive is not None and not archive.next):
            return None
        return (begin.next if archive is None else min(begin.next, archive.next)) >> source.row_bits

    def lead(self, tp: TP) -> int:
        """How many records before a partition's position are read again: for their ids, or to be joined."""
        log, source = self._logs.get((tp.topic, tp.partition)), self.sources.get(tp.topic)
        if log is None or source is None:
            return 0
        joined = (log.begin >> source.row_bits) - (log.back >> source.row_bits)
        return joined if source.id is None else joined + source.dedup

    async def assigned(self, starts: Mapping[TP, int]) -> None:
        """Take note of where partitions start and, to stop there, where they end."""
        mine = {tp: start for tp, start in starts.items() if (tp.topic, tp.partition) in self._logs}
        ends = await end_offsets(self.app.consumer, mine) if self.options.until_end else {}
        for tp, start in mine.items():
            log = self._logs[tp.topic, tp.partition]
            log.expected, log.heard, log.end = start, time.monotonic(), ends.get(tp)
            if tp.topic in self._made:
                self._aligner.drain((tp.topic, tp.partition))
            self._drain_at_end((tp.topic, tp.partition))
        for tp, start in starts.items():
            if self.mirror is not None and tp.topic in self.mirrored:
                self.mirror.begin(tp.topic, tp.partition, start)
        self._wake.set()

    async def revoked(self, _: frozenset[TP]) -> None:
        """Finish what is under way; what is not done goes to whoever gets the partitions."""
        async with self._turning:
            await self._stored()
            self._flush_archives()
            if self.mirror is not None:
                await self.mirror.flush()
            self._reset()

    # --- records come in ----------------------------------------------------------------------------------------

    async def receive(self, batch: Batch) -> None:
        """Take a batch from Kafka."""
        if batch.topic in self.sources:
            self._take(batch, await known_schemas(self.schemas, self.sources[batch.topic], batch))
        elif self.mirror is not None:
            await self.mirror.take(batch)
        self._wake.set()

    def _take(self, batch: Batch, schemas: Mapping[int, Loads]) -> None:
        partition = (batch.topic, batch.partition)
        log, source = self._logs.get(partition), self.sources[batch.topic]
        if log is None or log.expected is None or batch.next <= log.expected:
            return  # from before a rebalance
        if batch.start != log.expected:
            raise GapError(
                f"{batch.topic}[{batch.partition}]: expected offset {log.expected}, Kafka gave {batch.start}"
            )
        with self._work.timed("decode"):
            got = ingested(source, batch, None if self.options.replay else self.now(), self._keys[batch.topic], schemas)
        if log.repeats is not None:
            with self._work.timed("repeats"):
                got = self._told_apart(log.repeats, got, log.begin)
        log.expected, log.heard = batch.next, time.monotonic()
        start, end = batch.start << source.row_bits, batch.next << source.row_bits
        self._push(partition, got, start, end)
        if log.archive is not None:
            with self._work.timed("archive"):
                begins = start if log.archive.next else 0  # an archive may begin in the middle of a topic
                log.archive.append(archive_table(got.events, list(source.schema)), end, start=begins)
        self._drain_at_end(partition)
        if not log.held and self._aligner.buffered(partition) > self.options.buffer:
            log.held = True
            self.app.consumer.hold(TP(*partition))

    def _told_apart(self, known: Repeats, got: Ingested, begin: int) -> Ingested:
        """What was ingested without the repeats, of which those are counted that are new here."""
        events, repeats = known.sort_out(got.events)
        self.stats.repeats += int((repeats >= begin).sum())
        return Ingested(events, got.rejects)

    def _push(self, partition: Partition, got: Ingested, start: int, end: int) -> None:
        log, events = self._logs[partition], got.events
        if end <= log.back:
            return
        if start < log.back:
            events = events.filter(pl.col("_offset") >= log.back)
        rejects = [refused for refused in got.rejects if refused.offset >= log.begin]
        if partition[0] in self.set_aside_later:
            rejects = []
        self.stats.rejected.update(refused.error for refused in rejects)
        self._refused += [refused.message for refused in rejects]
        self._aligner.push(partition, events, max(start, log.back), end)
        if not self.options.replay and partition[0] not in self._made:
            self._aligner.drain(partition, drained=False)

    def _drain_at_end(self, partition: Partition) -> None:
        if self._logs[partition].at_end:
            self._aligner.drain(partition)

    # --- the loop -----------------------------------------------------------------------------------------------

    async def main(self, app: App) -> None:
        """Work until cancelled or, with `until_end`, until all is done."""
        self.app = app
        try:
            await self._work_through()
        finally:
            await self.store.close()

    async def _work_through(self) -> None:
        while not self._finished():
            async with self._turning:
                self._give_up_waiting()
                chunk = self._aligner.take(self.options.chunk)
                if chunk is not None:
                    await self._begin(chunk)
                else:
                    await self._stored()
                    self._make_room()
                    await self._flush_now_and_then()
            if chunk is None:
                self._wake.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), max(self.options.max_wait / 2, 0.001))
        async with self._turning:
            await self._stored()
        self._flush_archives()
        await self._drain_mirror()

    def _finished(self) -> bool:
        """Whether, with `until_end`, every partition has come to its end and nothing is left of it."""
        logs = self._logs.values()
        return self.options.until_end and bool(logs) and all(log.at_end for log in logs) and self._aligner.empty

    def _make_room(self) -> None:
        """Let held partitions bring more when nothing else would: all that they have brought may share one key."""
        if not self._aligner.waiting():
            for partition, log in self._logs.items():
                if log.held:
                    log.held = False
                    self.app.consumer.release(TP(*partition))

    def _give_up_waiting(self) -> None:
        """Go on without partitions that have been silent for too long; in a replay, never, nor while one is reread."""
        if not self.options.replay:
            silent_since = time.monotonic() - self.options.max_wait
            for partition, log in self._logs.items():
                again = log.expected is not None and log.expected << self.sources[partition[0]].row_bits < log.begin
                if log.heard < silent_since and not log.held and not again:
                    self._aligner.drain(partition)

    async def _begin(self, chunk: Chunk) -> None:
        """Compute a turn while the one before is being stored, then store it in turn."""
        stats = self.stats
        if stats.first_at is None:
            stats.first_at, stats.cpu_first = time.monotonic(), time.process_time()
        requests, load = await self._apart(self._work.lookups, chunk)
        if requests:
            await self._stored()  # or what is read may be older than what is being written
            with self._work.timed("load"):
                answers = await self.store.read_many(requests)
                await self._check(requests)
                load(answers)
        publish = self.mirror is not None
        turn = await self._apart(self._work.turn, chunk, self.now(), publish=publish)
        if stats.first_fold is None:
            stats.first_fold = self.now()
        await self._stored()
        self._storing = asyncio.create_task(self._store(turn))

    async def _apart(self, function: Callable[..., T], chunk: Chunk, *args: Any, **options: Any) -> T:  # noqa: ANN401
        """Compute in a thread, so that others go on; but not of few events without a model: a thread costs more."""
        if chunk.events < FEW and not self.processors:
            return function(chunk, *args, **options)
        return await asyncio.to_thread(function, chunk, *args, **options)

    async def _check(self, requests: Sequence[Request]) -> None:
        """Make sure that what was just read is as new as this worker.

        States that a store has lost would be folded on as if they had never been, and what is predicted from them could
        be learnt before the commit is refused.
        """
        for key, topic in dict.fromkeys((request.view_key, request.topic) for request in requests):
            for partition, found in enumerate(await self.store.positions(key, topic, self.partitions[topic])):
                mine = self._work.next_offset(key, (topic, partition))
                if (topic, partition) in self._logs and mine != (stored := found and found.next):
                    raise FencedError(
                        f"view {key} on {topic}:{partition}: the store stands at offset {stored}, this one at {mine}: "
                        "the store was emptied or rolled back, or another worker has taken over. Start this one again"
                    )

    async def _stored(self) -> None:
        """Wait for the turn that is being stored."""
        if self._storing is not None:
            task, self._storing = self._storing, None
            await task

    async def _store(self, turn: Turn) -> None:
        with self._work.timed("send"):
            messages, self._refused = [*self._refused, *turn.messages], []
            if messages:
                await asyncio.to_thread(self.publisher.send, messages)
                await self.publisher.flush()
        with self._work.timed("checkpoint"):
            for write in turn.checkpoints:
                await asyncio.to_thread(write)
        with self._work.timed("commit"):
            await self.store.commit(turn.commits)
        self._committed(turn)

    def _committed(self, turn: Turn) -> None:
        stats = self.stats
        stats.states += sum(len(commit.entities) for commit in turn.commits)
        stats.turned(turn.chunk.events)
        stats.last_at, stats.cpu_last = time.monotonic(), time.process_time()
        wall = self.now()
        for frame in turn.chunk.frames.values():
            stats.fresh(np.maximum(wall - frame["_timestamp"].to_numpy(), 0))
            stats.stream_time = max(stats.stream_time or 0, int(frame["_time"].to_numpy().max()))
        for partition, (_, end) in turn.chunk.spans.items():
            self.app.consumer.done(TP(*partition), end >> self.sources[partition[0]].row_bits)
            log = self._logs[partition]
            if log.held and self._aligner.buffered(partition) <= self.options.buffer // 2:
                log.held, log.heard = False, stats.last_at
                self.app.consumer.release(TP(*partition))

    # --- files --------------------------------------------------------------------------------------------------

    async def _flush_now_and_then(self) -> None:
        """Live, let files follow within seconds; a flush rewrites them, so that it may take a twentieth of the time."""
        begun = time.monotonic()
        if not self.options.replay and begun >= self._flush_at:
            self._flush_archives()
            if self.mirror is not None:
                await self.mirror.flush()
            ended = time.monotonic()
            self._flush_at = ended + max(FLUSH_SECONDS, 20 * (ended - begun))

    def _flush_archives(self) -> None:
        for log in self._logs.values():
            if log.archive is not None:
                log.archive.flush()

    async def _drain_mirror(self) -> None:
        """Wait until the mirror has all that was sent, then write it out."""
        if self.mirror is None:
            return
        tps = [tp for tp in self.app.consumer.assignment() if tp.topic in self.mirrored]
        ends = await end_offsets(self.app.consumer, tps)
        # Brokers may know less of the end of a log than who has written it: Tansu lists the last batch's beginning.
        ends = {tp: max(end, self.publisher.ends.get((tp.topic, tp.partition), 0)) for tp, end in ends.items()}
        while any(self.mirror.done(tp.topic, tp.partition) < end for tp, end in ends.items()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await self.mirror.flush()


def _entity_columns(topic: str, views: Sequence[View]) -> list[str]:
    """The text columns of a topic that name entities of views."""
    named = [(view.source, key) for view in views if view.source.name == topic for key in view.entity.keys]
    return sorted({key for source, key in named if source.types[key] == "str"})
