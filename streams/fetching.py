"""The thread that talks to Kafka: what it fetches is cut to batches that tile their partition."""
# ruff: noqa: SLF001 - see transport.py

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import KafkaConnectionError, KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from faust.transport.drivers import aiokafka as driver

from featurestore.errors import StateError
from streams.batches import TP, Batch
from streams.records import COLUMNS, headers_of, slab_of

log = logging.getLogger("streams.kafka")  # Faust logs its services under the names of their modules

COMMIT_TIMEOUT = 2.0
"""Seconds that a commit may take: it only shows the lag, so it must not hold up a rebalance or a stop."""
PREFETCH_BACKOFF = 0.05
"""Seconds that data not taken yet, because its partition is held, delays the others of the same broker."""
BEYOND = 10.0
"""Seconds that a log may end before the position: a new leader may lag, a topic created again is another one."""
RETRY = 1.0
"""Seconds between attempts to reach a broker."""
FETCH_BYTES = 4 << 20
"""Bytes that one fetch brings of a partition, at most: with fewer, a worker that is behind waits for the next one."""
FETCH_WAIT_MS = 50
"""How long the broker may wait for data: a partition that is released must wait for the request under way."""


def lost(tp: TP, position: int, first: int, end: int) -> StateError:
    """Return the error for a position that the log, now from `first` to `end`, does not have."""
    why = (
        "the records in between are gone (retention is shorter than the worker was away)"
        if position < first
        else "the topic was deleted and created again, or its broker lost data"
    )
    return StateError(
        f"{tp.topic}[{tp.partition}]: the stored position is {position}, but Kafka has {first} to {end}: {why}. "
        f"Backfill the views of this topic from its archive, or delete their state to start again at {first}.",
    )


def _unasked(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Print nothing of a request that fails when nobody waits for it any more: aiokafka goes on with such a commit."""
    if not isinstance(context.get("exception"), KafkaError):
        loop.default_exception_handler(context)


class ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust's thread, with batches for records, and patience with a broker that is away."""

    def __init__(self, consumer: Any, **options: Any) -> None:  # noqa: ANN401
        self._next: dict[TP, int] = {}  # where the next batch of each partition starts
        self._beyond: dict[TP, float] = {}  # since when the log of a partition has ended before its position
        super().__init__(consumer, **options)

    async def on_start(self) -> None:
        """Connect, however long that takes."""
        self.thread_loop.set_exception_handler(_unasked)
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

    def _stopped_set(self) -> None:
        with suppress(RuntimeError):  # its loop is closed: it has crashed, and nothing in it waits any more
            super()._stopped_set()

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
        consumer._max_partition_fetch_bytes = FETCH_BYTES
        if self.app.delivery.columns:
            consumer._value_deserializer = COLUMNS
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

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Cut no more batches until the next seek, then tell the app."""
        self._next = {}
        await super().on_partitions_revoked(revoked)

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
                raise lost(tp, position, first[tp], end[tp])

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
            raise lost(tp, state.position, 0, state.lso)

    def fetched_end(self, tp: TP) -> int | None:
        """Return the end of the readable log as the last fetch saw it; None before the first fetch."""
        subscription = self._consumer and self._consumer._subscription.subscription
        assignment = subscription and subscription.assignment
        state = assignment and assignment.state_value(tp)
        end: int | None = state and state.lso
        return end

    def _batches(self, tp: TP, start: int, end: int, found: list[Any]) -> Iterator[Batch]:
        size = self.app.delivery.max_records
        headers = tp.topic in self.consumer.header_topics
        slab = found[0] if self.app.delivery.columns and found else slab_of(found, end)
        for at in range(0, max(len(slab), 1), size):
            part = slice(at, at + size)
            stop = end if at + size >= len(slab) else int(slab.offsets[at + size])
            empty = np.flatnonzero(slab.values.lengths[part] < 0).tolist()
            yield Batch(
                tp.topic,
                tp.partition,
                start,
                stop,
                slab.offsets[part],
                slab.timestamps[part],
                slab.keys[part],
                slab.values[part],
                [headers_of(each) for each in slab.headers[part]] if headers else None,
                {row: headers_of(slab.headers[at + row]) for row in empty},
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

    def rejoin(self) -> None:
        """Join the group once more. May be called from any thread."""
        self.thread_loop.call_soon_threadsafe(self._ensure_consumer()._coordinator.request_rejoin)

    def wake(self) -> None:
        """Make a fetch under way look again at which partitions are wanted. May be called from any thread."""
        with suppress(RuntimeError):  # the thread has ended
            self.thread_loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        fetcher = self._consumer and self._consumer._fetcher
        for waiter in list(fetcher._fetch_waiters) if fetcher else ():
            fetcher._notify(waiter)
