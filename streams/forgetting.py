"""What a worker writes down of erasures before it erases a state: which events and rows the files must lose."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurestore.align import Chunk, Partition
from featurestore.definitions import View
from featurestore.erasures import Entities, Erasure, entities_of, naming
from featurestore.forgotten import Forgotten, known, remember
from featurestore.offline import GridWriter, partition_folder
from featurestore.sources import Source

Notes = Mapping[Partition, Sequence[Forgotten]]


class Forgetting:
    """The erasures of a worker's topics; those of topics in `read_later` another worker writes down.

    `reads` are views with other topics than their own whose events name their entities. `events` is the folder of the
    archive; None: nothing is written down.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        views: Sequence[View],
        reads: Sequence[tuple[View, str]],
        events: Path | None,
        read_later: Collection[str] = (),
    ) -> None:
        self.entities: dict[str, Entities] = {name: entities_of(name, views, reads) for name in sources}
        self._masked = {
            (name, entity): naming(source, entity, views, reads).masked
            for name, source in sources.items()
            for entity in self.entities[name]
        }
        self._events, self._read_later = events, read_later
        self._reached: dict[Partition, int] = {}
        self._sweeping: asyncio.Task[None] | None = None
        self._left_off = threading.Event()

    def reset(self) -> None:
        """Have no partitions."""
        self._reached.clear()

    def begin(self, place: Partition, offset: int) -> None:
        """Take a partition on at an offset."""
        self._reached[place] = offset

    async def remember(self, chunk: Chunk) -> None:
        """Write the erasures of the next chunk down.

        It comes before anything else of the chunk is stored: who finds a state erased finds that written down. What
        is noted of other partitions comes first: who finds an erasure finds all that was to be noted of it.
        """
        mine = [placed for placed in chunk.erasures if placed[1].topic not in self._read_later]
        if mine and self._events is not None:
            # With a copy: the thread may still be at it when partitions go, should who waits for it be cancelled.
            await asyncio.to_thread(self._write_down, replace(chunk, erasures=mine), dict(self._reached))
        self._reached |= {at: max(end, self._reached.get(at, 0)) for at, (_, end) in chunk.spans.items()}

    async def sweep(self, writers: Sequence[GridWriter], *, wait: bool) -> None:
        """Begin to rewrite the complete files of erased entities, unless that is under way; maybe `wait` for it."""
        if self._sweeping is not None and (wait or self._sweeping.done()):
            task, self._sweeping = self._sweeping, None
            await task
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(asyncio.to_thread(_sweep, writers, self._left_off.is_set))
            if wait:
                await self._sweeping

    async def leave_off(self) -> None:
        """Leave a sweep after the file that it is at: what it has not come to the next one does."""
        if self._sweeping is not None:
            self._left_off.set()
            task, self._sweeping = self._sweeping, None
            await task
            self._left_off.clear()

    def _write_down(self, chunk: Chunk, reached: Mapping[Partition, int]) -> None:
        for by_place in (self._reaches(chunk, reached), self._erasures(chunk)):
            for place, mine in by_place.items():
                remember(self._folder(place), mine)

    def _erasures(self, chunk: Chunk) -> Notes:
        """The erasures themselves, by partition."""
        notes: dict[Partition, list[Forgotten]] = defaultdict(list)
        for _, erasure in chunk.erasures:
            place = (erasure.topic, erasure.partition)
            notes[place].append(self._note(place, erasure.entity, erasure.key, erasure.offset, 0, 0))
        return notes

    def _reaches(self, chunk: Chunk, reached: Mapping[Partition, int]) -> Notes:
        """How far all partitions had come at the erasures; before the chunk they had `reached` these offsets.

        Until all partitions have come to its erasures, rows made of an entity may hold what another partition still
        knew, and predictions what another topic did. An erasure that is written down already, and came again for a
        view that is new, says nothing of them.
        """
        last = {(each.topic, each.entity, each.key): step for step, each in chunk.erasures if not self._is_known(each)}
        notes: dict[Partition, list[Forgotten]] = defaultdict(list)
        steps = np.array(list(last.values()), np.int64)
        for place, uptos in _upto(chunk, reached, steps).items() if last else ():
            for (topic, entity, key), upto in zip(last, uptos.tolist(), strict=True):
                if entity in self.entities[place[0]]:
                    shown = upto if topic == place[0] else 0
                    notes[place].append(self._note(place, entity, key, 0, shown, upto))
        return notes

    def _is_known(self, erasure: Erasure) -> bool:
        offsets = known(self._folder((erasure.topic, erasure.partition))).offsets
        return offsets.get((erasure.entity, erasure.key.decode()), -1) >= erasure.offset

    def _folder(self, place: Partition) -> Path:
        assert self._events is not None
        return partition_folder(self._events / place[0], place[1])

    def _note(self, place: Partition, entity: str, key: bytes, offset: int, shown: int, asked: int) -> Forgotten:
        columns, masked = self.entities[place[0]][entity], self._masked[place[0], entity]
        return Forgotten(entity, key.decode(), columns, masked, offset, shown, asked)


def _upto(
    chunk: Chunk, reached: Mapping[Partition, int], steps: NDArray[np.int64]
) -> dict[Partition, NDArray[np.int64]]:
    """By partition, for each of the steps, the first offset that comes after it."""
    starts = dict(reached) | {place: start for place, (start, _) in chunk.spans.items()}
    upto = {place: np.full(len(steps), start) for place, start in starts.items()}
    for topic, frame in chunk.frames.items():
        partitions, offsets, places = (frame[name].to_numpy() for name in ("_partition", "_offset", "_step"))
        for number in np.unique(partitions).tolist():
            mine = partitions == number
            ends = np.append(starts[topic, number], offsets[mine] + 1)
            upto[topic, number] = ends[np.searchsorted(places[mine], steps)]
    # What is read again, to be joined, has been shown before.
    return {place: np.maximum(each, reached.get(place, 0)) for place, each in upto.items()}


def _sweep(writers: Sequence[GridWriter], left_off: Callable[[], bool]) -> None:
    for writer in writers:
        writer.sweep(left_off)
