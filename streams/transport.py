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
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiokafka.errors import (
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from faust import Schema
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from featurestore.errors import ConfigError, StateError

__all__ = ["TP", "Batch", "BatchSchema", "Consumer", "Delivery", "Transport", "batch_topic", "end_offsets"]

log = logging.getLogger(__name__)

COMMIT_TIMEOUT = 2.0
"""Seconds that a commit may take: it only shows the lag, so it must not hold up a rebalance or a stop."""
FETCH_WAIT_MS = 100
"""How long the broker may wait for data: a partition that is released must wait for the request under way."""
PREFETCH_BACKOFF = 0.01
"""Seconds that data not taken yet, because its partition is held, delays the others of the same broker."""
RETRY = 1.0
"""Seconds between attempts to reach a broker."""


@dataclass(slots=True)
class Batch:
    """What one fetch brought of one partition: rows in offset order, possibly none.

    `start <= offset < next` for every row. The intervals `[start, next)` tile the partition in delivery order, also
    where offsets are missing (compaction, transaction markers), so a sink that stores `next` can tell a batch that
    was replayed from one that was lost. A batch without rows says that nothing readable lies in its interval.
    """

    topic: str
    partition: int
    start: int
    next: int
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    timestamps: np.ndarray[Any, np.dtype[np.int64]]
    """Kafka's record timestamps, ms."""
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[tuple[tuple[str, bytes], ...]] | None = None
    """One tuple of pairs a row; None unless the topic asks for headers."""

    def __len__(self) -> int:
        return len(self.values)


async def _from_the_beginning(_tps: frozenset[TP]) -> Mapping[TP, int | None]:
    return {}


async def _nothing(_tps: Any) -> None:  # noqa: ANN401 - stands in for two different callbacks
    pass


@dataclass(slots=True)
class Delivery:
    """What the app has to say about the delivery of its partitions. All callbacks run in the app's event loop."""

    positions: Callable[[frozenset[TP]], Awaitable[Mapping[TP, int | None]]] = _from_the_beginning
    """Asked for newly assigned partitions: the offset to start each one at; None or absent: the start of its log.

    May be cancelled when another rebalance begins. An error stops the app with that error.
    """
    assigned: Callable[[Mapping[TP, int]], Awaitable[None]] = _nothing
    """Told where each newly assigned partition starts, before the first batch flows. Errors as above."""
    revoked: Callable[[frozenset[TP]], Awaitable[None]] = _nothing
    """Told of partitions about to be given away, after the last batch: at every rebalance (of all partitions, also of
    those that come back) and at a clean stop, not when the app fails. `Consumer.done` still counts until it returns.
    """
    max_records: int = 20_000
    """Rows in a batch, at most."""
    interval: float = 0.01
    """Seconds between fetches, at least: what it adds to latency at low rates it saves in CPU time."""


class BatchSchema(Schema):  # type: ignore[misc]
    """Marks a topic as delivered by the batch; `headers` says whether record headers are kept."""

    def __init__(self, *, headers: bool = False) -> None:
        super().__init__(key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
        self.headers = headers

    def compile(self, app: Any, **_: Any) -> Callable[..., Awaitable[Any]]:  # noqa: ANN401 - Faust is untyped
        """Return Faust's decoder: the value is a `Batch` already."""

        async def decode(message: Any, *, propagate: bool = False) -> Any:  # noqa: ANN401, ARG001
            return app.create_event(None, message.value, message.headers, message)

        return decode


def batch_topic(app: Any, name: str, *, maxsize: int = 16, headers: bool = False) -> Any:  # noqa: ANN401
    """Return a Faust topic whose stream elements are `Batch`es, of which at most about `maxsize` wait in its queue."""
    # Without acks Faust neither tracks nor commits what an agent has seen: `Consumer.done` does.
    topic = app.topic(name, schema=BatchSchema(headers=headers), acks=False)
    topic.maxsize = maxsize  # the argument of `app.topic` is dropped by Faust
    return topic


async def end_offsets(consumer: Consumer, tps: Iterable[TP]) -> dict[TP, int]:
    """Return the offset after the last readable record of each partition.

    A partition is drained when a batch with `next` at or above this offset has been handled, or when it starts there:
    batches reach over trailing transaction markers. An open transaction ends the readable part.
    """
    ends: Mapping[TP, int] = await consumer.highwaters(*tps)
    return dict(ends)


def _checked(tp: TP, stored: int | None, first: int, end: int) -> int:
    if stored is None:
        return first
    if first <= stored <= end:
        return stored
    why = (
        "the records in between are gone (retention is shorter than the worker was away)"
        if stored < first
        else "the topic was deleted and created again, or lost its newest records"
    )
    raise StateError(
        f"{tp.topic}[{tp.partition}]: the stored position is {stored}, but Kafka has offsets {first} to {end}: {why}. "
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

    logger = driver.logger

    def __init__(self, consumer: Consumer, **options: Any) -> None:  # noqa: ANN401
        self._next: dict[TP, int] = {}  # where the next batch of each partition starts
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

    def on_crash(self, msg: str, *fmt: object, **kwargs: object) -> None:
        """Print nothing: the error reaches the caller of `run`."""

    def _create_worker_consumer(self, transport: Any) -> Any:  # noqa: ANN401
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        consumer._auto_offset_reset = "none"  # anything else skips what retention took, without a word
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def _seek_wait(self, consumer: Any, partitions: Mapping[TP, int]) -> None:  # noqa: ANN401
        self._next = dict(partitions)
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
            self._refuse(error)
            return {}
        return self._cut(consumer._subscription.subscription, records)

    def _refuse(self, error: OffsetOutOfRangeError) -> None:
        """Fail on a position that Kafka has lost, unless it is not ours (Kafka's own, from before the seek)."""
        for tp, offset in error.args[0].items():
            if self._next.get(tp) == offset:
                raise StateError(
                    f"{tp.topic}[{tp.partition}]: Kafka no longer has offset {offset}, which comes next: retention "
                    "overtook the worker, or the topic was recreated. Start the worker again: it will say which.",
                )

    def _cut(self, subscription: Any, records: Mapping[TP, list[Any]]) -> dict[TP, list[Batch]]:  # noqa: ANN401
        """Cut to batches all that lies between the last cut and the position of the fetcher."""
        batches = {}
        for tp, start in self._next.items():
            state = subscription.assignment.state_value(tp)
            if state is not None and state.has_valid_position and state.position > start:
                batches[tp] = list(self._batches(tp, start, state.position, records.get(tp, [])))
                self._next[tp] = state.position
        return batches

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

    logger = driver.logger

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
        starts = {tp: _checked(tp, stored.get(tp), first[tp], end[tp]) for tp in tps}
        await self.seek_wait(starts)
        await self.app.delivery.assigned(starts)
        return starts

    async def _bounds(self, tps: frozenset[TP]) -> tuple[Mapping[TP, int], Mapping[TP, int]]:
        while True:
            try:
                return await self.earliest_offsets(*tps), await self.highwaters(*tps)
            except KafkaTimeoutError:
                log.debug("no offsets yet")  # the broker is away: the next attempt waits for it

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
