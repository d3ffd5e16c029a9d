"""Kafka through Faust by the batch: a stream element is all that one fetch brought of one partition.

Faust handles records one by one at some 10,000 a second. Topics made by `batch_topic` skip that: the driver hands
whole `Batch`es to Faust's own queues, streams and agents. Whatever is configured under the URL scheme `kafka-batch://`
takes batches only.

Three things differ from Faust's driver on purpose:

- **Where a partition starts** is asked of the app (`Delivery.positions`), never of Kafka: state and offset live
  together in the sink. A position that Kafka no longer has stops the app; it is never moved in silence.
- **Acknowledgements commit nothing.** The group's offsets in Kafka follow `Consumer.done`, and only show the lag.
- **Single partitions can be held** (`Consumer.hold`), so that a merge of several partitions waits for the slowest
  without blocking an agent.

Records of aborted transactions are never seen. Private names of faust-streaming 0.15.3 and aiokafka 0.14.0 are used
here and nowhere else; tests/streams/test_contract.py names them.
"""
# ruff: noqa: SLF001 - a driver has no public way to change where fetching starts, or what is fetched.

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types.tuples import ConsumerMessage

from featurestore.errors import ConfigError, StateError
from streams.batches import TP, Batch, BatchSchema, Delivery

__all__ = ["TP", "Batch", "BatchSchema", "Consumer", "Delivery", "Transport", "batch_topic", "end_offsets"]

log = logging.getLogger("streams.kafka")  # Faust logs its services under the names of their modules

COMMIT_TIMEOUT = 2.0
"""Seconds that a commit may take: it only shows the lag, so it must not hold up a rebalance or a stop."""
FETCH_WAIT_MS = 100
"""How long the broker may wait for data: a partition that is released must wait for the request under way."""
FETCH_PATIENCE = 2.0
"""Seconds that a first fetch may take before a position is taken to be refused."""
PREFETCH_BACKOFF = 0.01
"""Seconds that data not taken yet, because its partition is held, delays the others of the same broker."""
BEYOND = 10.0
"""Seconds that a log may end before the position: a new leader may lag, a topic created again is another one."""
RETRY = 1.0
"""Seconds between attempts to reach a broker."""


def batch_topic(app: Any, name: str, *, maxsize: int = 16, headers: bool = False) -> Any:  # noqa: ANN401
    """Return a Faust topic whose stream elements are `Batch`es, of which at most about `maxsize` wait in its queue."""
    # Without acks Faust neither tracks nor commits what an agent has seen: `Consumer.done` does.
    topic = app.topic(name, schema=BatchSchema(headers=headers), acks=False)
    topic.maxsize = maxsize  # the argument of `app.topic` is dropped by Faust
    return topic


async def end_offsets(consumer: Consumer, tps: Iterable[TP]) -> dict[TP, int]:
    """Return the offset after the last readable record of each partition, which must be assigned.

    A partition is drained when a batch with `next` at or above this offset has been handled, or when it starts there:
    batches reach over trailing transaction markers. An open transaction ends the readable part.
    """
    tps = set(tps)
    ends = dict(await consumer.highwaters(*tps))
    for tp in tps:
        # Tansu answers the request for the end with the start of the last batch, but knows better in every fetch.
        while (fetched := consumer.fetched_end(tp)) is None:  # noqa: ASYNC110 - aiokafka has no event for it
            await asyncio.sleep(0.02)
        ends[tp] = max(ends[tp], fetched)
    return ends


def _lost(tp: TP, position: int, first: int, end: int) -> StateError:
    why = (
        "the records in between are gone (retention is shorter than the worker was away)"
        if position < first
        else "the topic was deleted and created again, or its broker lost data"
    )
    return StateError(
        f"{tp.topic}[{tp.partition}]: the stored position is {position}, but Kafka has {first} to {end}: {why}. "
        f"Backfill the views of this topic from its archive, or delete their state to start again at {first}.",
    )


class _Wanted:
    """The partitions to fetch now, looked up in the middle of a fetch: a release takes effect at once."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def __contains__(self, tp: object) -> bool:
        return tp in self._consumer._active_partitions and tp not in self._consumer._held


class ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """The thread that talks to Kafka: it cuts what was fetched to batches that tile their partition."""

    def __init__(self, consumer: Consumer, **options: Any) -> None:  # noqa: ANN401
        self._next: dict[TP, int] = {}  # where the next batch of each partition starts
        self._beyond: dict[TP, float] = {}  # since when the log of a partition has ended before its position
        super().__init__(consumer, **options)

    async def on_start(self) -> None:
        """Connect, however long that takes."""
        while not self.should_stop:
            try:
                await super().on_start()
            except KafkaConnectionError:
                await self._consumer.stop()
                await self.sleep(RETRY)
            else:
                self._consumer._fetcher._prefetch_backoff = PREFETCH_BACKOFF
                return

    async def stop(self) -> None:
        """Stop the thread, also one that has only just begun to start."""
        while self._thread_started.is_set() and not self._started.is_set():  # noqa: ASYNC110 - set by the thread
            await asyncio.sleep(0.01)
        await super().stop()

    async def on_thread_stop(self) -> None:
        """Leave the group and disconnect, also while the broker is away."""
        fetcher = self._consumer and self._consumer._fetcher
        if fetcher is not None:
            # aiokafka's own `close` fails on a request that waits to be tried again, and leaves the thread hanging.
            for task in fetcher._pending_tasks:
                task.cancel()
            await asyncio.gather(*fetcher._pending_tasks, return_exceptions=True)
            fetcher._pending_tasks.clear()
        await super().on_thread_stop()

    def on_crash(self, msg: str, *fmt: object, **kwargs: object) -> None:
        """Print nothing: the error reaches the caller of `run`."""

    def _create_worker_consumer(self, transport: Any) -> Any:  # noqa: ANN401
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        consumer._auto_offset_reset = "none"  # anything else skips what retention took, without a word
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        # Range gives one member the same partition numbers of all topics, whose keys often agree.
        consumer._partition_assignment_strategy = (RangePartitionAssignor,)
        return consumer

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group, or take all partitions."""
        if self.app.alone:
            await self.call_thread(self._take_all, sorted(topics))
        else:
            await super().subscribe(topics)

    def _take_all(self, topics: list[str]) -> None:
        self.add_future(self._own(topics))

    async def _own(self, topics: list[str]) -> None:
        """Take all partitions, and again whenever there are more."""
        consumer, owned = self._ensure_consumer(), set[TP]()
        while not self.should_stop:
            await consumer._client.set_topics(topics)
            found = {TP(topic, at) for topic in topics for at in consumer.partitions_for_topic(topic) or ()}
            if found != owned:
                await self._reassign(consumer, owned, found)
                owned = found
            await self.sleep(RETRY)

    async def _reassign(self, consumer: Any, old: set[TP], new: set[TP]) -> None:  # noqa: ANN401
        self.app.on_rebalance_start()
        if old:
            await self.on_partitions_revoked(old)
        consumer.assign([driver.ensure_aiokafka_TP(tp) for tp in new])
        self.app.consumer_generation_id += 1
        await self.on_partitions_assigned(new, self.app.consumer_generation_id)

    async def _seek_wait(self, consumer: Any, partitions: Mapping[TP, int]) -> None:  # noqa: ANN401
        self._next = dict(partitions)
        self._beyond.clear()
        await super()._seek_wait(consumer, partitions)

    async def _fetch_records(
        self,
        consumer: Any,  # noqa: ANN401
        active_partitions: Any,  # noqa: ANN401
        timeout: float | None = None,  # noqa: ASYNC109 - Faust's signature
        max_records: int | None = None,
    ) -> dict[TP, list[Batch]]:
        try:
            records = await super()._fetch_records(consumer, active_partitions, timeout, max_records)
        except NoOffsetForPartitionError:
            return {}  # left from before the partition was sought
        except OffsetOutOfRangeError as error:
            await self._refuse(consumer, error.args[0])
            return {}
        return self._cut(consumer._subscription.subscription, records)

    async def _refuse(self, consumer: Any, positions: Mapping[TP, int]) -> None:  # noqa: ANN401
        """Fail on positions that Kafka has lost, unless they are Kafka's own, from before the seek."""
        for tp, position in positions.items():
            if self._next.get(tp) == position:
                first, end = await consumer.beginning_offsets([tp]), await consumer.end_offsets([tp])
                raise _lost(tp, position, first[tp], end[tp])

    def _cut(self, subscription: Any, records: Mapping[TP, list[Any]]) -> dict[TP, list[Batch]]:  # noqa: ANN401
        """Cut to batches all that lies between the last cut and the position of the fetcher."""
        batches = {}
        for tp, start in self._next.items():
            state = subscription.assignment.state_value(tp)
            if state is None or not state.has_valid_position:
                continue
            self._check_end(tp, state)
            if state.position > start:
                batches[tp] = list(self._batches(tp, start, state.position, records.get(tp, [])))
                self._next[tp] = state.position
        return batches

    def _check_end(self, tp: TP, state: Any) -> None:  # noqa: ANN401
        """Fail when the log has ended before the position for long: not all brokers say that this is out of range."""
        if state.lso is None or state.lso >= state.position:
            self._beyond.pop(tp, None)
        elif time.monotonic() - self._beyond.setdefault(tp, time.monotonic()) > BEYOND:
            raise _lost(tp, state.position, 0, state.lso)

    def fetched_end(self, tp: TP) -> int | None:
        """Return the end of the readable log as the last fetch saw it; None before the first fetch."""
        subscription = self._consumer and self._consumer._subscription.subscription
        assignment = subscription and subscription.assignment
        state = assignment and assignment.state_value(tp)
        end: int | None = state and state.lso
        return end

    def _batches(self, tp: TP, start: int, end: int, rows: list[Any]) -> Iterator[Batch]:
        size = self.app.delivery.max_records
        headers = tp.topic in self.consumer.header_topics
        for at in range(0, max(len(rows), 1), size):
            part = rows[at : at + size]
            stop = end if at + size >= len(rows) else rows[at + size].offset
            yield Batch(
                tp.topic,
                tp.partition,
                start,
                stop,
                np.array([row.offset for row in part], np.int64),
                np.array([row.timestamp for row in part], np.int64),
                [row.key for row in part],
                [row.value for row in part],
                [row.headers for row in part] if headers else None,
            )
            start = stop

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        consumer = self._ensure_consumer()
        places = {driver.ensure_aiokafka_TP(tp): offset for tp, offset in offsets.items()}
        try:
            await asyncio.wait_for(consumer.commit(places), COMMIT_TIMEOUT)
        except (KafkaError, TimeoutError) as error:
            log.debug("commit: %r", error)
            return False
        return True

    def wake(self) -> None:
        """Make a fetch under way look again at which partitions are wanted. May be called from any thread."""
        self.thread_loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        fetcher = self._consumer and self._consumer._fetcher
        for waiter in list(fetcher._fetch_waiters) if fetcher else ():
            fetcher._notify(waiter)


class Consumer(driver.Consumer):  # type: ignore[misc]
    """Faust's consumer, delivering batches from the app's own positions. Its methods belong to the app's event loop."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        self.header_topics: frozenset[str] = frozenset()
        self._wanted = _Wanted(self)
        self._held: set[TP] = set()
        self._done: dict[TP, int] = {}
        self._starting: asyncio.Future[Mapping[TP, int]] | None = None
        self._fetched_at = 0.0
        super().__init__(*args, **options)

    def hold(self, tp: TP) -> None:
        """Stop delivering a partition, but for what is on its way already (one fetch at most)."""
        self._held.add(tp)

    def release(self, tp: TP) -> None:
        """Deliver a held partition again."""
        self._held.discard(tp)
        self._thread.wake()

    def fetched_end(self, tp: TP) -> int | None:
        """Return the end of the readable log as the last fetch saw it; None before the first fetch."""
        end: int | None = self._thread.fetched_end(tp)
        return end

    def done(self, tp: TP, next_offset: int) -> None:
        """Say that all before `next_offset` is safe in the sink: committed to Kafka within about a second."""
        self._done[tp] = next_offset

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Subscribe, once all topics are known to take batches."""
        with_headers = set()
        for topic in self.app.topics:
            if not isinstance(topic.schema, BatchSchema):
                raise ConfigError(f"{topic}: kafka-batch:// delivers batches only: make the topic with batch_topic()")
            if topic.schema.headers:
                with_headers.update(topic.topics)
        self.header_topics = frozenset(with_headers)
        await super().subscribe(topics)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to where the app says that each partition starts; called before flow resumes after a rebalance."""
        self._starting = asyncio.ensure_future(self._start(frozenset(self.assignment())))
        try:
            return await self._starting
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise IllegalStateError("revoked before it started") from None  # to Faust: another rebalance began
        finally:
            self._starting = None

    async def _start(self, tps: frozenset[TP]) -> Mapping[TP, int]:
        stored = await self.app.delivery.positions(tps)
        first, end = await self._bounds(tps)
        starts = {tp: first[tp] if (at := stored.get(tp)) is None else at for tp in tps}
        await self.seek_wait(starts)
        for tp, at in starts.items():
            if at < first[tp] or (at > end[tp] and at > await self._seen_end(tp, end[tp])):
                raise _lost(tp, at, first[tp], end[tp])
        await self.app.delivery.assigned(starts)
        return starts

    async def _bounds(self, tps: frozenset[TP]) -> tuple[Mapping[TP, int], Mapping[TP, int]]:
        while True:
            try:
                return await self.earliest_offsets(*tps), await self.highwaters(*tps)
            except KafkaTimeoutError:
                log.debug("no offsets yet")  # the broker is away: the next attempt waits for it

    async def _seen_end(self, tp: TP, listed: int) -> int:
        """Return the end that a fetch sees, or the listed one where Kafka refuses the fetch (see `end_offsets`)."""
        try:
            return (await asyncio.wait_for(end_offsets(self, [tp]), FETCH_PATIENCE))[tp]
        except TimeoutError:
            return listed

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Stop the flow, let the app finish, then give the partitions away."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await super().on_partitions_revoked(revoked)
        await self._give_away(revoked)

    async def on_stop(self) -> None:
        """Let the app finish, then leave the group."""
        if self._thread._consumer is not None:
            await self._give_away(self.assignment())
        await super().on_stop()

    async def _give_away(self, tps: set[TP]) -> None:
        if tps and not self.app.crashed:
            await self.add_future(self.app.delivery.revoked(frozenset(tps)))  # its error stops the app
            await self.force_commit()
        self._held -= tps
        for tp in tps:
            self._done.pop(tp, None)

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:  # noqa: ANN401, ARG002
        """Tell Kafka what is done; what fails is tried again at the next interval."""
        assigned = self.assignment()
        ahead = {tp: at for tp, at in self._done.items() if tp in assigned and at != self._committed_offset[tp]}
        if not ahead or not await self._commit(ahead):
            return False
        self._committed_offset.update(ahead)
        return True

    def on_buffer_drop(self, tp: TP) -> None:
        """Fetch a partition again whose queue has room."""
        super().on_buffer_drop(tp)
        self._thread.wake()

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Check nothing: a partition that is held or silent is not stuck."""

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _wait_next_records(
        self,
        timeout: float,  # noqa: ASYNC109 - Faust's signature
    ) -> tuple[Mapping[TP, list[Batch]] | None, None]:
        # Replaces a loop which sleeps for a second when every partition is buffered, and which seeks, beside the seek
        # that ends every rebalance, when a fetch returns while flow is stopped.
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        await asyncio.sleep(self._fetched_at + self.app.delivery.interval - self.loop.time())
        self._fetched_at = self.loop.time()
        batches = await self._getmany(self._wanted, timeout)
        return (batches if self.flow_active else None), None

    def _to_message(self, tp: TP, batch: Batch) -> ConsumerMessage:
        stamp = float(batch.timestamps[-1]) / 1000 if len(batch) else 0.0
        return ConsumerMessage(
            batch.topic,
            batch.partition,
            batch.next - 1,
            stamp,
            0,
            None,
            None,
            batch,
            None,
            tp=ensure_TP(tp),
            generation_id=self.app.consumer_generation_id,
        )


class Transport(driver.Transport):  # type: ignore[misc]
    """Registered as `kafka-batch://` by the package's entry point."""

    Consumer = Consumer
