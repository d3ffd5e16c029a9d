"""Events of several topics and partitions, merged by event time: the order in which everything happens.

Within a partition events stay in offset order. A record's place in the merged order is its *key*: the newest event
time that its partition has shown up to it. Records are ordered by (key, rank of the topic, topic, partition, offset),
so that the order depends on the logs alone and not on how they were fetched. A topic on which something is predicted
ranks after those that are read there: a prediction at `t` comes after every event with time <= t of these. An erasure
has the place that an event of the newest time would have.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from featurestore.erasures import Erasure

Partition = tuple[str, int]  # topic, partition

_FOREVER = np.iinfo(np.int64).max
_NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Chunk:
    """A stretch of the merged order.

    `frames` holds each topic's events, in merged order, with `_step`: the place of an event in the whole chunk.
    `spans` gives, for every partition that the chunk takes further, the offsets [start, next) that it covers; `clocks`
    the newest event time of its log up to there, to `assign` when the merge goes on from there (none before its first
    event). `erasures` are there with their steps, in order.
    """

    frames: dict[str, pl.DataFrame]
    spans: dict[Partition, tuple[int, int]]
    clocks: dict[Partition, int] = field(default_factory=dict)
    erasures: Sequence[tuple[int, Erasure]] = ()

    @property
    def events(self) -> int:
        """How many events there are."""
        return sum(len(frame) for frame in self.frames.values())


class _Part(NamedTuple):
    """A tile of a log, from `start` up to `next`: events, each with its key; or an erasure, with one."""

    frame: pl.DataFrame
    keys: NDArray[np.int64]
    start: int
    next: int
    erasure: Erasure | None = None

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where what has a key lies."""
        return self.frame["_offset"].to_numpy() if self.erasure is None else np.array([self.erasure.offset])


@dataclass
class _Queue:
    """What is buffered of one partition. A tile of the log may hold no events at all (all bad, or holes)."""

    parts: deque[_Part] = field(default_factory=deque)
    events: int = 0  # erasures count as such
    newest: int = _NEVER  # key of the newest record seen
    taken: int = _NEVER  # key of the newest record handed out
    drained: bool = False  # no more is to come: nothing waits for it


class Aligner:
    """Buffers batches by partition and hands out the merged order as far as it is certain."""

    def __init__(self, ranks: Mapping[str, int], *, in_order: bool = True) -> None:
        """`ranks`: the topics, with their ranks (see `ranks_of`).

        Where nothing depends on the order between partitions, and so not `in_order`, none waits for another.
        """
        self._ranks, self._in_order = dict(ranks), in_order
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

    def push(
        self, partition: Partition, frame: pl.DataFrame, start: int, end: int, erasures: Sequence[Erasure] = ()
    ) -> None:
        """Add a tile of the log: the events and erasures (in offset order) that offsets [start, end) hold."""
        for erasure in erasures:
            count = int(np.searchsorted(frame["_offset"].to_numpy(), erasure.offset))
            if count:
                self._push(partition, frame[:count], start, erasure.offset)
                start = erasure.offset
            keys = np.array([self._queues[partition].newest])
            self._add(partition, _Part(frame[:0], keys, start, erasure.offset + 1, erasure))
            frame, start = frame[count:], erasure.offset + 1
        if start < end or not erasures:
            self._push(partition, frame, start, end)

    def _push(self, partition: Partition, frame: pl.DataFrame, start: int, end: int) -> None:
        newest, times = self._queues[partition].newest, frame["_time"].to_numpy()
        keys = np.maximum(np.maximum.accumulate(times), newest) if len(times) else times
        self._add(partition, _Part(frame, keys, start, end))

    def _add(self, partition: Partition, part: _Part) -> None:
        queue = self._queues[partition]
        if len(part.keys):
            queue.newest = int(part.keys[-1])
        queue.events += len(part.keys)
        queue.parts.append(part)

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
        return [p for p, queue in self._queues.items() if self._in_order and not queue.events and not queue.drained]

    def take(self, limit: int) -> Chunk | None:
        """The next stretch of the merged order, about `limit` events of it; None when nothing is certain yet.

        Certain is what lies before the oldest key that a partition could still show. Keys are never torn apart.
        """
        waiting = [queue for queue in self._queues.values() if queue.parts]
        common = _frontier(waiting, self._certain(), limit) if self._in_order else None
        taken: list[tuple[Partition, _Part]] = []
        spans: dict[Partition, tuple[int, int]] = {}
        for partition, queue in self._queues.items():
            frontier = _frontier([queue], _FOREVER, limit // max(len(waiting), 1)) if common is None else common
            span = self._take_from(partition, queue, frontier, taken)
            if span is not None:
                spans[partition] = span
        clocks = {at: self._queues[at].taken for at in spans if self._queues[at].taken != _NEVER}
        if not spans:
            return None
        frames, erasures = self._merged(taken)
        return Chunk(frames, spans, clocks, erasures)

    def _certain(self) -> int:
        """The oldest key that a partition could still show."""
        return min((_FOREVER if queue.drained else queue.newest for queue in self._queues.values()), default=_NEVER)

    @staticmethod
    def _take_from(
        partition: Partition, queue: _Queue, frontier: int, taken: list[tuple[Partition, _Part]]
    ) -> tuple[int, int] | None:
        begin = end = None
        while queue.parts:
            part = queue.parts[0]
            frame, keys = part.frame, part.keys
            count = int(np.searchsorted(keys, frontier))
            begin = part.start if begin is None else begin
            if count == len(keys):
                queue.parts.popleft()
                end = part.next
            elif count:
                cut = int(frame["_offset"][count])
                queue.parts[0] = _Part(frame[count:], keys[count:], cut, part.next)
                end = cut
            if count:
                taken.append((partition, part._replace(frame=frame[:count], keys=keys[:count])))
                queue.events -= count
                queue.taken = int(keys[count - 1])
            if count < len(keys):
                break
        return None if begin is None or end is None else (begin, end)

    def _merged(
        self, taken: list[tuple[Partition, _Part]]
    ) -> tuple[dict[str, pl.DataFrame], list[tuple[int, Erasure]]]:
        if not taken:
            return {}, []
        keys = np.concatenate([part.keys for _, part in taken])
        order = np.empty(len(keys), np.int64)
        order[self._order(taken, keys)] = np.arange(len(keys))
        pieces: dict[str, list[pl.DataFrame]] = {}
        erasures: list[tuple[int, Erasure]] = []
        at = 0
        for (topic, _), part in taken:
            if part.erasure is not None:
                erasures.append((int(order[at]), part.erasure))
            else:
                steps = pl.Series("_step", order[at : at + len(part.keys)])
                pieces.setdefault(topic, []).append(part.frame.with_columns(steps))
            at += len(part.keys)
        erasures.sort(key=lambda placed: placed[0])
        return {topic: pl.concat(parts).sort("_step") for topic, parts in pieces.items()}, erasures

    def _order(self, taken: list[tuple[Partition, _Part]], keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of the records in merged order."""
        lengths = [len(part.keys) for _, part in taken]
        topics = np.repeat([self._ranks[t] * len(self._topics) + self._topics.index(t) for (t, _), _ in taken], lengths)
        partitions = np.repeat([p for (_, p), _ in taken], lengths)
        offsets = np.concatenate([part.offsets for _, part in taken])
        return np.lexsort((offsets, partitions, topics, keys))


def ranks_of(topics: Iterable[str], reads: Mapping[str, Collection[str]]) -> dict[str, int]:
    """The topics' ranks; `reads` has those on which something is predicted, each with those whose views are read there.

    They are 0 where nothing is predicted. Of two topics that are read at each other's events none comes first.
    """

    def rank(topic: str, above: frozenset[str]) -> int:
        above |= {topic}
        return (
            1 + max((rank(each, above) for each in reads[topic] if each not in above), default=0)
            if topic in reads
            else 0
        )

    return {topic: rank(topic, frozenset()) for topic in topics}


def _frontier(queues: Sequence[_Queue], certain: int, limit: int) -> int:
    """The key below which about `limit` events of the queues lie, and all are certain."""
    keys = [part.keys[part.keys < certain] for queue in queues for part in queue.parts]
    if sum(map(len, keys)) <= limit:
        return certain
    return min(certain, int(np.partition(np.concatenate(keys), limit)[limit]) + 1)


def merged(ranks: Mapping[str, int], logs: Mapping[Partition, pl.DataFrame]) -> Chunk:
    """Whole logs in merged order, at once."""
    aligner = Aligner(ranks)
    aligner.assign(dict.fromkeys(logs))
    for partition, frame in logs.items():
        end = int(frame["_offset"][-1]) + 1 if len(frame) else 0
        aligner.push(partition, frame, 0, end)
        aligner.drain(partition)
    return aligner.take(sum(map(len, logs.values())) + 1) or Chunk({}, {})
