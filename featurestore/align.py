"""Events of several topics and partitions, merged by event time: the order in which everything happens.

Within a partition events stay in offset order. A record's place in the merged order is its *key*: the newest event
time that its partition has shown up to it. Records are ordered by (key, rank of the topic, topic, partition, offset),
so that the order depends on the logs alone and not on how they were fetched. Topics on which something is predicted
rank last: a prediction at `t` comes after every event with time <= t of the other topics.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

Partition = tuple[str, int]  # topic, partition

_FOREVER = np.iinfo(np.int64).max
_NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Chunk:
    """A stretch of the merged order.

    `frames` holds each topic's events, in merged order, with `_step`: the place of an event in the whole chunk.
    `spans` gives, for every partition that the chunk takes further, the offsets [start, next) that it covers; `clocks`
    the newest event time of its log up to there, to `assign` when the merge goes on from there (none before its first
    event).
    """

    frames: dict[str, pl.DataFrame]
    spans: dict[Partition, tuple[int, int]]
    clocks: dict[Partition, int] = field(default_factory=dict)

    @property
    def events(self) -> int:
        """How many events there are."""
        return sum(len(frame) for frame in self.frames.values())


@dataclass
class _Queue:
    """What is buffered of one partition. A tile of the log may hold no events at all (all bad, or holes)."""

    parts: deque[tuple[pl.DataFrame, NDArray[np.int64], int, int]] = field(
        default_factory=deque
    )  # frame, keys, start, next
    events: int = 0
    newest: int = _NEVER  # key of the newest record seen
    taken: int = _NEVER  # key of the newest record handed out
    drained: bool = False  # no more is to come: nothing waits for it


class Aligner:
    """Buffers batches by partition and hands out the merged order as far as it is certain."""

    def __init__(self, ranks: Mapping[str, int]) -> None:
        """`ranks`: the topics, with 1 for those on which something is predicted and 0 for the others."""
        self._ranks = dict(ranks)
        self._topics = sorted(ranks)
        self._queues: dict[Partition, _Queue] = {}

    def assign(self, partitions: Mapping[Partition, int | None]) -> None:
        """Take partitions on; a clock (newest event time so far) goes on from where it was."""
        for partition, clock in partitions.items():
            known = _NEVER if clock is None else clock
            self._queues[partition] = _Queue(newest=known, taken=known)

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """Forget partitions and what is buffered of them."""
        for partition in partitions:
            self._queues.pop(partition, None)

    def push(self, partition: Partition, frame: pl.DataFrame, start: int, end: int) -> None:
        """Add a tile of the log: the events (in offset order) that offsets [start, end) hold."""
        queue = self._queues[partition]
        times = frame["_time"].to_numpy()
        keys = np.maximum(np.maximum.accumulate(times), queue.newest) if len(times) else times
        if len(keys):
            queue.newest = int(keys[-1])
        queue.events += len(keys)
        queue.parts.append((frame, keys, start, end))

    def drain(self, partition: Partition, drained: bool = True) -> None:
        """Say that no more is to come (for now), so that others need not wait for the partition."""
        self._queues[partition].drained = drained

    def buffered(self, partition: Partition) -> int:
        """How many events of the partition are waiting."""
        return self._queues[partition].events

    @property
    def empty(self) -> bool:
        """Whether everything that was pushed has been taken."""
        return not any(queue.parts for queue in self._queues.values())

    def waiting(self) -> list[Partition]:
        """Partitions with nothing buffered on which the rest waits."""
        return [p for p, queue in self._queues.items() if not queue.events and not queue.drained]

    def take(self, limit: int) -> Chunk | None:
        """The next stretch of the merged order, about `limit` events of it; None when nothing is certain yet.

        Certain is what lies before the oldest key that a partition could still show. Keys are never torn apart.
        """
        frontier = min((_FOREVER if queue.drained else queue.newest for queue in self._queues.values()), default=_NEVER)
        keys = [keys[keys < frontier] for queue in self._queues.values() for _, keys, _, _ in queue.parts]
        total = sum(map(len, keys))
        if total > limit:
            sample = np.partition(np.concatenate(keys), limit)
            frontier = min(frontier, int(sample[limit]) + 1)
        taken: list[tuple[Partition, pl.DataFrame, NDArray[np.int64]]] = []
        spans: dict[Partition, tuple[int, int]] = {}
        for partition, queue in self._queues.items():
            span = self._take_from(partition, queue, frontier, taken)
            if span is not None:
                spans[partition] = span
        clocks = {at: self._queues[at].taken for at in spans if self._queues[at].taken != _NEVER}
        return Chunk(self._merged(taken), spans, clocks) if spans else None

    @staticmethod
    def _take_from(
        partition: Partition,
        queue: _Queue,
        frontier: int,
        taken: list[tuple[Partition, pl.DataFrame, NDArray[np.int64]]],
    ) -> tuple[int, int] | None:
        begin = end = None
        while queue.parts:
            frame, keys, start, stop = queue.parts[0]
            count = int(np.searchsorted(keys, frontier))
            begin = start if begin is None else begin
            if count == len(keys):
                queue.parts.popleft()
                end = stop
            elif count:
                cut = int(frame["_offset"][count])
                queue.parts[0] = (frame[count:], keys[count:], cut, stop)
                end = cut
            if count:
                taken.append((partition, frame[:count], keys[:count]))
                queue.events -= count
                queue.taken = int(keys[count - 1])
            if count < len(keys):
                break
        return None if begin is None or end is None else (begin, end)

    def _merged(self, taken: list[tuple[Partition, pl.DataFrame, NDArray[np.int64]]]) -> dict[str, pl.DataFrame]:
        if not taken:
            return {}
        keys = np.concatenate([keys for _, _, keys in taken])
        order = np.empty(len(keys), np.int64)
        order[self._order(taken, keys)] = np.arange(len(keys))
        frames, at = {}, 0
        pieces: dict[str, list[pl.DataFrame]] = {}
        for (topic, _), frame, _ in taken:
            steps = pl.Series("_step", order[at : at + len(frame)])
            pieces.setdefault(topic, []).append(frame.with_columns(steps))
            at += len(frame)
        for topic, parts in pieces.items():
            frames[topic] = pl.concat(parts).sort("_step")
        return frames

    def _order(
        self, taken: list[tuple[Partition, pl.DataFrame, NDArray[np.int64]]], keys: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Positions of the records in merged order."""
        lengths = [len(frame) for _, frame, _ in taken]
        topics = np.repeat(
            [self._ranks[t] * len(self._topics) + self._topics.index(t) for (t, _), _, _ in taken], lengths
        )
        partitions = np.repeat([p for (_, p), _, _ in taken], lengths)
        offsets = np.concatenate([frame["_offset"].to_numpy() for _, frame, _ in taken])
        return np.lexsort((offsets, partitions, topics, keys))


def merged(ranks: Mapping[str, int], logs: Mapping[Partition, pl.DataFrame]) -> Chunk:
    """Whole logs in merged order, at once."""
    aligner = Aligner(ranks)
    aligner.assign(dict.fromkeys(logs))
    for partition, frame in logs.items():
        end = int(frame["_offset"][-1]) + 1 if len(frame) else 0
        aligner.push(partition, frame, 0, end)
        aligner.drain(partition)
    return aligner.take(sum(map(len, logs.values())) + 1) or Chunk({}, {})
