"""A load of work W at a steady rate, of which sending takes next to nothing.

A client that makes each event when it is due takes more of a core than Kafka and Redis together, and what waits for
that core then is measured instead of a worker. So the record batches are made beforehand, and when they are sent only
the time is written into them: into each event, as thirteen digits, and into the head of the batch.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import polars as pl
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from numpy.typing import NDArray

from benchmarks.work import KEY, by_partition, frame
from featurestore.errors import UnavailableError
from onceflow.produce import encode, ensure_topics

TICK_SECONDS = 0.02
"""Events are handed over so often, as a producer with `linger.ms` of 20 does."""
PREPARED = 1_000_000
"""Events made beforehand, about; they are sent again and again."""
_FEWEST, _MOST = 50, 500  # ticks
_BATCH_BYTES = 1_000_000
_CHECKSUM, _CHECKED_FROM, _TIMES = 17, 21, 27
_TIME_MS = 1_700_000_000_000  # of as many digits as now
_BEHIND, _BEHIND_SECONDS = 0.05, 1.0  # of the time; a moment's delay is made up for


@dataclass(frozen=True)
class Batch:
    """A record batch of one partition; `digits` say where each digit of each event's time lies."""

    partition: int
    data: bytearray
    digits: NDArray[np.int64]

    def at(self, now_ms: int) -> bytes:
        """The batch with events of this time."""
        np.frombuffer(self.data, np.uint8)[self.digits] = np.frombuffer(str(now_ms).encode(), np.uint8)
        struct.pack_into(">qq", self.data, _TIMES, now_ms, now_ms)
        struct.pack_into(">I", self.data, _CHECKSUM, calc_crc32c(memoryview(self.data)[_CHECKED_FROM:]))
        return bytes(self.data)


def batches(events: pl.DataFrame, partitions: int) -> list[Batch]:
    """The events, all of one time of thirteen digits, as a record batch for each partition that has some."""
    made = []
    for place, mine in by_partition(events, partitions):
        if not len(mine):
            continue
        builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, _BATCH_BYTES)
        for count, (card, value) in enumerate(zip(mine[KEY].to_list(), encode(mine), strict=True)):
            if builder.append(count, 0, card.encode(), value, []) is None:
                raise ValueError("so many events do not fit into a record batch: prepare fewer for each tick")
        data = bytearray(builder.build())
        starts = [found.end() for found in re.finditer(rb'"ts":', data)]
        digits = np.array(starts)[:, np.newaxis] + np.arange(len(str(_TIME_MS)))
        made.append(Batch(place, data, digits))
    return made


def prepared(rate: float, partitions: int) -> list[list[Batch]]:
    """By tick, what is to be sent in it."""
    each = max(1, round(rate * TICK_SECONDS))
    rng = np.random.default_rng(1)
    ticks = min(max(PREPARED // each, _FEWEST), _MOST)
    return [batches(frame(rng, np.full(each, _TIME_MS)), partitions) for _ in range(ticks)]


@contextmanager
def load(address: str, topic: str, rate: float, partitions: int) -> Iterator[None]:
    """Send events of now at this rate, from a thread, until the block ends.

    UnavailableError: Kafka took less than 95 % of it, and was more than a second behind.
    """
    ensure_topics(address, {topic: partitions})
    over, failures = threading.Event(), []
    ticks = prepared(rate, partitions)

    def send() -> None:
        try:
            asyncio.run(_sent(address, topic, ticks, over))
        except UnavailableError as error:
            failures.append(error)
        except KafkaError as error:
            failures.append(UnavailableError(f"Kafka at {address} does not take the load: {error!r}"))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]


async def _sent(address: str, topic: str, ticks: Sequence[Sequence[Batch]], over: threading.Event) -> None:
    client = AIOKafkaClient(bootstrap_servers=address)
    await client.bootstrap()
    try:
        await client.set_topics([topic])
        begun, number = time.monotonic(), 0
        for number, tick in enumerate(itertools.cycle(ticks)):
            if over.is_set():
                break
            await asyncio.sleep(max(0.0, begun + number * TICK_SECONDS - time.monotonic()))
            await _hand_over(client, topic, tick)
        elapsed = time.monotonic() - begun
    finally:
        await client.close()
    if elapsed - number * TICK_SECONDS > max(_BEHIND_SECONDS, _BEHIND * elapsed):
        share = 100 * number * TICK_SECONDS / elapsed
        raise UnavailableError(f"Kafka took only {share:.0f} % of the load: measure at a lower rate")


async def _hand_over(client: AIOKafkaClient, topic: str, tick: Sequence[Batch]) -> None:
    now_ms = time.time_ns() // 1_000_000
    leader = client.cluster.leader_for_partition(TopicPartition(topic, tick[0].partition))
    partitions = [(batch.partition, batch.at(now_ms)) for batch in tick]
    answer = await client.send(leader, ProduceRequest(None, 1, 10_000, [(topic, partitions)]))
    for _, answers in answer.topics:
        for place, code, *_ in answers:
            if code:
                raise UnavailableError(f"Kafka refused events for partition {place}: {for_code(code).__name__}")
