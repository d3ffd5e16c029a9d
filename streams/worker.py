"""The worker: batches in, features and predictions out, states and offsets stored together.

One loop does the work; Faust's agents only hand it batches. A turn of the loop takes a stretch of the merged order and
goes through the same steps: load states, fold and read, predict, write erasures down, send, wait until it has arrived,
checkpoint the processors, commit states with their offsets. Whatever dies in between is done again from the stored
offsets, with the same result. The processors' checkpoint comes before the commit of the views they read: a view that
ran ahead of a prediction that must be made again would show it the future.

Turns overlap by one: while the outcome of one is stored, the next is computed, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from featurestore.align import Chunk, Partition, ranks_of
from featurestore.confluent import Schemas
from featurestore.definitions import View
from featurestore.errors import FencedError, GapError, StateError
from featurestore.joined import Joined
from featurestore.sources import Source
from featurestore.stores import OnlineStore, Request
from streams.files import Files
from streams.forgetting import Forgetting
from streams.intake import Intake
from streams.joins import Ends, Join
from streams.mirror import Mirror
from streams.notes import given_away, taken
from streams.options import Options
from streams.processor import Processor
from streams.publisher import Publisher
from streams.schemas import known_schemas
from streams.stats import Stats
from streams.transport import FEW, TP, Batch, end_offsets
from streams.work import Turn, Work

if TYPE_CHECKING:
    from streams.app import App


log = logging.getLogger(__name__)

T = TypeVar("T")

Sent = Callable[[Joined, Sequence[int]], Mapping[int, Ends]]
"""Asks the topic of a join how far pairs of some partitions were delivered."""

TOGETHER = 0.002
"""Seconds in which the partitions of one fetch come one after another: they are decoded together."""
FENCED_AGAIN = 5.0
"""Who is fenced once more within so many seconds fights with another group, and stops."""


def _nothing_sent(_source: Joined, _partitions: Sequence[int]) -> Mapping[int, Ends]:
    return {}


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
    named: Sequence[tuple[View, str]] = ()  # beside topics, not its own, that name the view's entity
    read_later: Collection[str] = ()  # topics that another worker reads after this one, and writes down
    stats: Stats = field(default_factory=Stats)

    def __post_init__(self) -> None:
        reads = [read for processor in self.processors for read in processor.reads]
        self._views = list({view.key: view for view in [*self.views, *(read.view for read in reads)]}.values())
        listed = [view.source for view in self._views]
        listed += [source for processor in self.processors for source in processor.sources]
        listed += [side for source in self.joins for side in source.sides]
        self.sources: dict[str, Source] = {source.name: source for source in listed}
        asked: defaultdict[str, set[str]] = defaultdict(set)  # by topic those of which something is read at its events
        for processor in self.processors:
            asked[processor.on.name] |= {each.view.source.name for each in processor.reads}
        gathers = self.mirror is not None and not all(view.apart for view in self._views)
        self._in_order = bool(self.processors) or bool(self.joins) or gathers
        read = [*self.named, *((each.view, each.topic) for each in reads)]
        self._forgetting = Forgetting(self.sources, self._views, read, self.options.forgotten, self.read_later)
        self._intake = Intake(
            self.sources,
            self._views,
            ranks_of(self.sources, asked),
            self._forgetting.entities,
            self.options,
            self.stats,
            self.now,
            in_order=self._in_order,
            made={source.name for source in self.joins},
            read_later=self.read_later,
        )
        self._files = Files(self._intake, self.mirror, self._forgetting)
        self._wake = asyncio.Event()
        self._turning = asyncio.Lock()
        self._fenced_at = -FENCED_AGAIN
        self._storing: asyncio.Task[None] | None = None
        self._overtaken: FencedError | GapError | None = None
        self._reset()

    def _reset(self) -> None:
        self._intake.reset()
        joins = [Join(source, self._forgetting.entities) for source in self.joins]
        self._work = Work(
            self._views,
            self.processors,
            self.partitions,
            self.owner,
            self.stats,
            self.options.memory,
            joins,
            publish=self.mirror is not None,
        )
        self._forgetting.reset()
        self._overtaken = None

    @property
    def gather(self) -> float:
        """Seconds for which brokers may wait for records: less than partitions wait for each other, if they do."""
        waits = self._in_order and not self.options.replay
        return min(self.options.gather, self.options.max_wait / 2) if waits else self.options.gather

    # --- partitions come and go ---------------------------------------------------------------------------------

    async def positions(self, tps: frozenset[TP]) -> dict[TP, int | None]:
        """Claim partitions and say where each must start; whatever was in memory is forgotten."""
        async with self._turning:
            with self._giving_way():
                await self._stored()
            await self._begin_anew()
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
                    "start it again. Where the source has a partitioner, first add the old number to its grown_from, "
                    "so that lookups find what lies where keys were before"
                )

    async def _claim(self, partition: Partition) -> int | None:
        """Take a source partition on; returns the first offset that something here still needs."""
        keys = self._work.keys(partition)
        found = await asyncio.gather(*(self.store.claim(key, *partition, self.owner) for key in keys))
        begin = self._work.begin(partition, dict(zip(keys, found, strict=True)))
        self._forgetting.begin(partition, 0 if begin is None else begin.next)
        return self._intake.begin(partition, begin, self._work.reread(partition, begin))

    def lead(self, tp: TP) -> int:
        """How many records before a partition's position are read again: for their ids, or to be joined."""
        return self._intake.lead((tp.topic, tp.partition))

    async def assigned(self, starts: Mapping[TP, int]) -> None:
        """Take note of where partitions start and, to stop there, where they end."""
        taken_on = set(self._intake.partitions)
        mine = {tp: start for tp, start in starts.items() if (tp.topic, tp.partition) in taken_on}
        ends = await end_offsets(self.app.consumer, mine) if self.options.until_end else {}
        taken(mine)
        for tp, start in mine.items():
            self._intake.start((tp.topic, tp.partition), start, ends.get(tp))
        for tp, start in starts.items():
            if self.mirror is not None and tp.topic in self.mirrored:
                self.mirror.begin(tp.topic, tp.partition, start)
        self._wake.set()

    async def revoked(self, _: frozenset[TP]) -> None:
        """Finish what is under way; what is not done goes to whoever gets the partitions."""
        async with self._turning:
            with self._giving_way():
                await self._stored()
                await self._files.flush()
            given_away(self._intake.partitions)
            await self._begin_anew()

    async def _begin_anew(self) -> None:
        """Forget what is in memory: the stores and the files say where to go on."""
        await self._files.leave_off()
        self._reset()

    def lag(self) -> dict[Partition, int]:
        """How many offsets of its partitions are still to be stored, as of the last fetches. For any thread."""
        ends = {at: self.app.consumer.fetched_end(TP(*at)) for at in self._intake.partitions}
        lags = {at: self._intake.lag(at, end) for at, end in ends.items()}
        return {at: lag for at, lag in lags.items() if lag is not None}

    async def receive(self, batch: Batch) -> None:
        """Take a batch from Kafka."""
        try:
            if batch.topic in self.sources:
                self._intake.take(batch, await known_schemas(self.schemas, self.sources[batch.topic], batch))
            elif self.mirror is not None:
                await self.mirror.take(batch)
        except (FencedError, GapError) as error:
            self._overtaken = error  # for the loop, which has no turn under way when it gives way
        self._wake.set()

    # --- the loop -----------------------------------------------------------------------------------------------

    async def main(self, app: App) -> None:
        """Work until cancelled or, with `until_end`, until all is done."""
        self.app, self._intake.holding = app, app.consumer
        try:
            await self._work_through()
        finally:
            await self.store.close()
            await self._files.leave_off()

    async def _work_through(self) -> None:
        while not self._intake.finished:
            async with self._turning:
                try:
                    busy = await self._turn()
                except (FencedError, GapError) as error:
                    self._give_way(error)
                    with suppress(FencedError, GapError):  # what is being stored meanwhile may be refused as well
                        await self._stored()
                    await self._begin_anew()
                    self.app.consumer.rejoin()
                    busy = False
            if not busy:
                self._wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._intake.patience):
                        await self._wake.wait()
                    await asyncio.sleep(TOGETHER)
        async with self._turning:
            await self._stored()
        await self._drain_mirror()
        await self._files.finish()

    async def _turn(self) -> bool:
        """Begin the next turn, if there is anything to do; returns whether there was."""
        if self._overtaken is not None:
            raise self._overtaken
        chunk = self._intake.chunk()
        await (self._stored() if chunk is None else self._begin(chunk))
        if chunk is None:
            self._intake.make_room()
        if not self.options.replay:
            await self._files.follow()
        return chunk is not None

    async def _begin(self, chunk: Chunk) -> None:
        """Compute a turn while the one before is being stored, then store it in turn."""
        stats = self.stats
        if stats.first_at is None:
            stats.first_at, stats.cpu_first = time.monotonic(), time.process_time()
        requests, load = await self._apart(self._work.lookups, chunk)
        if requests:
            await self._stored()  # or what is read may be older than what is being written
            with self.stats.timed("load"):
                answers = await self.store.read_many(requests)
                await self._check(requests)
                load(answers)
        turn = await self._apart(self._work.turn, chunk, self.now())
        if stats.first_fold is None:
            stats.first_fold = self.now()
        await self._stored()
        self._storing = asyncio.create_task(self._store(turn))

    async def _apart(self, function: Callable[..., T], chunk: Chunk, *args: Any) -> T:  # noqa: ANN401
        """Compute in a thread, so that others go on; but not of few events without a model: a thread costs more."""
        if chunk.events < FEW and not self.processors:
            return function(chunk, *args)
        return await asyncio.to_thread(function, chunk, *args)

    async def _check(self, requests: Sequence[Request]) -> None:
        """Make sure that what was just read is as new as this worker.

        States that a store has lost would be folded on as if they had never been, and what is predicted from them could
        be learnt before the commit is refused.
        """
        held = set(self._intake.partitions)
        for key, topic in dict.fromkeys((request.view_key, request.topic) for request in requests):
            for partition, found in enumerate(await self.store.positions(key, topic, self.partitions[topic])):
                mine = self._work.next_offset(key, (topic, partition))
                if (topic, partition) in held and mine != (stored := found and found.next):
                    raise FencedError(
                        f"view {key} on {topic}:{partition}: the store stands at offset {stored}, this one at {mine}: "
                        "the store was emptied or rolled back, or another worker has taken over. Start this one again"
                    )

    async def _stored(self) -> None:
        """Wait for the turn that is being stored."""
        if self._storing is not None:
            task, self._storing = self._storing, None
            await task

    @contextmanager
    def _giving_way(self) -> Iterator[None]:
        """Within the block, what another worker has taken over is that one's to do."""
        try:
            yield
        except (FencedError, GapError) as error:
            self._give_way(error)

    def _give_way(self, error: StateError) -> None:
        """Accept, in a group, that the store holds another state than this worker's: it must begin anew from that.

        A group may have given partitions away before the one who had them hears of it. In a replay the services have
        seen already what was not stored.
        """
        now = time.monotonic()
        if self.options.replay or self.app.alone or now < self._fenced_at + FENCED_AGAIN:
            raise error
        self._fenced_at = now
        log.warning("%s; asking the group again", error)

    async def _store(self, turn: Turn) -> None:
        await self._forgetting.remember(turn.chunk)
        with self.stats.timed("send"):
            messages, self._intake.refused = [*self._intake.refused, *turn.messages], []
            if messages:
                await asyncio.to_thread(self.publisher.send, messages)
                await self.publisher.flush()
        with self.stats.timed("checkpoint"):
            for write in turn.checkpoints:
                await asyncio.to_thread(write)
        with self.stats.timed("commit"):
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
            self.app.consumer.done(TP(*partition), self._intake.stored(partition, end))

    async def _drain_mirror(self) -> None:
        """Wait until the mirror has all that was sent."""
        if self.mirror is None:
            return
        tps = [tp for tp in self.app.consumer.assignment() if tp.topic in self.mirrored]
        ends = await end_offsets(self.app.consumer, tps)
        # Brokers may know less of the end of a log than who has written it: Tansu lists the last batch's beginning.
        ends = {tp: max(end, self.publisher.ends.get((tp.topic, tp.partition), 0)) for tp, end in ends.items()}
        while any(self.mirror.done(tp.topic, tp.partition) < end for tp, end in ends.items()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
