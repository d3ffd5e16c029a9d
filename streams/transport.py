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
here, in fetching.py and in app.py, and nowhere else; tests/streams/test_contract.py names them.
"""
# ruff: noqa: SLF001 - a driver has no public way to change where fetching starts, or what is fetched.

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.errors import IllegalStateError, KafkaTimeoutError
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types.tuples import ConsumerMessage

from featurestore.errors import ConfigError
from streams.batches import TP, Batch, BatchSchema, Delivery
from streams.fetching import ConsumerThread, lost

__all__ = ["TP", "Batch", "BatchSchema", "Consumer", "Delivery", "Transport", "batch_topic", "end_offsets"]

log = logging.getLogger("streams.kafka")  # Faust logs its services under the names of their modules

FEW = 1_000
"""Fewer rows than these cost about as much as one: more of them are waited for, if for a moment only."""
FETCH_PATIENCE = 2.0
"""Seconds that a first fetch may take before a position is taken to be refused."""


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


class _Wanted:
    """The partitions to fetch now, looked up in the middle of a fetch: a release takes effect at once.

    A fetch may be under way while partitions are sought anew. Nobody would take what it brings before flow resumes.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def __contains__(self, tp: object) -> bool:
        consumer = self._consumer
        return consumer.flow_active and tp in consumer._active_partitions and tp not in consumer._held


class Consumer(driver.Consumer):  # type: ignore[misc]
    """Faust's consumer, delivering batches from the app's own positions. Its methods belong to the app's event loop."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        self.header_topics: frozenset[str] = frozenset()
        self._wanted = _Wanted(self)
        self._held: set[TP] = set()
        self._done: dict[TP, int] = {}
        self._starting: asyncio.Future[Mapping[TP, int]] | None = None
        self._started = False  # whether the app has heard where its partitions start
        self._fetched_at = 0.0
        super().__init__(*args, **options)

    def hold(self, tp: TP) -> None:
        """Stop delivering a partition, but for what is on its way already (one fetch at most)."""
        self._held.add(tp)

    def release(self, tp: TP) -> None:
        """Deliver a held partition again."""
        self._held.discard(tp)
        self._thread.wake()

    def rejoin(self) -> None:
        """Ask the group anew for partitions, which are then taken on as after every rebalance."""
        self._thread.rejoin()

    def resume_flow(self) -> None:
        """Deliver again, also by a fetch that is under way.

        Faust may end one rebalance in the middle of the next, which then has this to do: what came before the app has
        heard where its partitions start would be lost.
        """
        if self._started:
            super().resume_flow()
            self._thread.wake()

    def fetched_end(self, tp: TP) -> int | None:
        """Return the end of the readable log as the last fetch saw it; None before the first fetch."""
        end: int | None = self._thread.fetched_end(tp)
        return end

    def done(self, tp: TP, next_offset: int) -> None:
        """Say that all before `next_offset` is safe in the sink: committed to Kafka within about a second."""
        self._done[tp] = next_offset

    def assignment(self) -> set[TP]:
        """Return the partitions that this consumer has; none before it has reached the broker."""
        return set() if self._thread._consumer is None else super().assignment()

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
        # A position that the log no longer has stays as it is: no lead may hide that.
        begins = {tp: max(at - self.app.delivery.lead(tp), min(at, first[tp])) for tp, at in starts.items()}
        await self.seek_wait(begins)
        for tp, at in starts.items():
            if at < first[tp] or (at > end[tp] and at > await self._seen_end(tp, end[tp])):
                raise lost(tp, at, first[tp], end[tp])
        await self.app.delivery.assigned(begins)
        self._started = True
        return begins

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
        self._started = False
        self.stop_flow()  # Faust leaves it on where there was nothing to revoke
        await super().on_partitions_revoked(revoked)
        await self._give_away(revoked)

    async def on_stop(self) -> None:
        """Let the app finish, then leave the group."""
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
