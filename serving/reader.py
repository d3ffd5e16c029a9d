"""Features read from the online store and finished, as of any time, by the kernel that folded the events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from featurestore.definitions import View
from featurestore.engine import NO_ENTITY, ViewState
from featurestore.errors import ConfigError, DataError, FormatError, StateError
from featurestore.frames import feature_frame
from featurestore.kernel import Inputs, Steps
from featurestore.keys import encode_entity
from featurestore.partitioners import places_of
from featurestore.plan import compiled
from featurestore.planned import Plan
from featurestore.stores import OnlineStore, Request

Key: TypeAlias = tuple[str | int | bool | None, ...]

#: What was found of an entity: its state; none; one that no window can see any more, soon to be deleted.
PRESENT, NOT_FOUND, OUTSIDE_MAX_AGE = "PRESENT", "NOT_FOUND", "OUTSIDE_MAX_AGE"


@dataclass(frozen=True, slots=True)
class Lookup:
    """Entities of a view, as tuples of the values of its key columns; one with a null among them is never found.

    `as_of` is a time in ms, or one for each entity; None leaves it to the reader's clock.
    """

    view: View
    keys: Sequence[Key]
    as_of: int | Sequence[int] | None = None


class FeatureReader:
    """Reads `views` from `store`. `partitions` gives the number of partitions of every topic.

    Where a lookup names no time, it is `now()` (ms) or, with `stream_time`, the view's own: the time of the newest
    event stored on any of its partitions. Raises ConfigError when the topic of a view is not among `partitions`.
    """

    def __init__(
        self,
        views: Sequence[View],
        store: OnlineStore,
        partitions: Mapping[str, int],
        now: Callable[[], int],
        *,
        stream_time: bool = False,
    ) -> None:
        missing = sorted({view.source.name for view in views} - set(partitions))
        if missing:
            raise ConfigError(
                f"topic {missing[0]!r} does not exist: start a worker, which creates it, or produce to it"
            )
        self._views = {view.key: view for view in views}
        self._plans = {view.key: compiled(view) for view in views}
        self._counts = {view.key: [*view.source.grown_from, partitions[view.source.name]] for view in views}
        self._store, self._now, self._stream_time = store, now, stream_time

    async def read(self, lookups: Sequence[Lookup]) -> list[pl.DataFrame]:
        """For each lookup a frame with a row an entity: all features of the view, stored and derived, and three more.

        `_effective` is the time that the values are as of: the one asked for, or that of the entity's newest event
        when that is later. `_newest` is the time of that event, 0 without one. `_status` is one of PRESENT, NOT_FOUND
        and OUTSIDE_MAX_AGE. The states of all lookups come in one round trip. Raises UnavailableError and StateError as
        the store does, DataError for a key that no entity can have.
        """
        works: dict[str, _Work] = {}
        spans = []
        clocks = await self._clocks(lookups)
        for lookup in lookups:
            key = lookup.view.key
            work = works.get(key)
            if work is None:
                work = works[key] = _Work(self._plans[key], self._counts[key])
            spans.append((key, work.add(lookup, clocks.get(key, 0)), len(lookup.keys)))
        requests = [work.requests() for work in works.values()]
        answers = iter(await self._store.read_many([request for group in requests for request in group]))
        for work, group in zip(works.values(), requests, strict=True):
            work.load(group, [next(answers) for _ in group])
        frames = {key: work.frame() for key, work in works.items()}
        return [frames[key].slice(begin, size) for key, begin, size in spans]

    def grow(self, partitions: Mapping[str, int]) -> None:
        """Take note of how many partitions each topic has by now: those that were added are read from now on."""
        for key, counts in self._counts.items():
            found = partitions.get(self._views[key].source.name, 0)
            if found > counts[-1]:
                self._counts[key] = [*counts, found]

    def warm(self) -> None:
        """Have the kernel compiled and every expression planned before the first caller has to wait for it."""
        for key, plan in self._plans.items():
            work = _Work(plan, self._counts[key])
            work.add(Lookup(plan.view, [(0,)]), 0)
            [number] = work.state.number([encode_entity((0,))]).tolist()
            with suppress(FormatError):
                work.state.load(number, 0, b"no state")
            work.state.load(number, 0, None)
            work.frame()

    async def _clocks(self, lookups: Sequence[Lookup]) -> dict[str, int]:
        """The time to read as of, by view, where a lookup leaves it open."""
        open_ = {lookup.view.key for lookup in lookups if lookup.as_of is None}
        if not self._stream_time:
            return dict.fromkeys(open_, self._now())
        found = await asyncio.gather(*(self._stream_clock(self._views[key]) for key in open_))
        return dict(zip(open_, found, strict=True))

    async def _stream_clock(self, view: View) -> int:
        positions = await self._store.positions(view.key, view.source.name, self._counts[view.key][-1])
        return max((position.clock for position in positions if position is not None), default=0)


class SharedReader:
    """A reader whose callers share round trips: what is asked while one is under way goes with the next."""

    def __init__(self, reader: FeatureReader) -> None:
        self._reader = reader
        self._turn = asyncio.Lock()
        self._next: _Round | None = None

    async def read(self, lookups: Sequence[Lookup]) -> list[pl.DataFrame]:
        """As FeatureReader.read."""
        if self._next is None:
            self._next = _Round()
            self._next.task = asyncio.create_task(self._run(self._next))
        mine = self._next
        begin = len(mine.lookups)
        mine.lookups += lookups
        assert mine.task is not None
        try:
            answers = await asyncio.shield(mine.task)
        except (StateError, DataError):
            if len(mine.lookups) == len(lookups):
                raise
            return await self._reader.read(lookups)  # the fault may be another caller's
        return answers[begin : begin + len(lookups)]

    async def _run(self, current: _Round) -> list[pl.DataFrame]:
        async with self._turn:
            self._next = None
            return await self._reader.read(current.lookups)


@dataclass(slots=True)
class _Round:
    lookups: list[Lookup] = field(default_factory=list)
    task: asyncio.Task[list[pl.DataFrame]] | None = None


class _Work:
    """All that is asked of one view in a round trip, and a scratch state to answer it from."""

    def __init__(self, plan: Plan, counts: Sequence[int]) -> None:
        """`counts`: the numbers of partitions that the topic had, and has."""
        self._plan, self._counts = plan, counts
        self.state = ViewState(plan, counts[-1])
        self._keys: dict[bytes, Key] = {}
        self._entities: list[bytes | None] = []
        self._times: list[int] = []
        self._found: set[int] = set()

    def add(self, lookup: Lookup, clock: int) -> int:
        """Take a lookup in; returns its first row."""
        begin = len(self._entities)
        for key in lookup.keys:
            entity = None if None in key else encode_entity(key)  # type: ignore[arg-type]
            self._entities.append(entity)
            if entity is not None:
                self._keys.setdefault(entity, key)
        as_of = clock if lookup.as_of is None else lookup.as_of
        self._times += [as_of] * len(lookup.keys) if isinstance(as_of, int) else as_of
        return begin

    def requests(self) -> list[Request]:
        """What to ask the store for: every entity once, on those partitions that its key leads to."""
        view = self._plan.view
        places: dict[tuple[int, ...], list[bytes]] = {}
        for entity, key in self._keys.items():
            places.setdefault(self._places(view, key), []).append(entity)
        return [Request(view.key, view.source.name, its, entities) for its, entities in places.items()]

    def _places(self, view: View, key: Key) -> tuple[int, ...]:
        known = places_of(view.source.partitioner, key, self._counts) if view.keyed else None  # type: ignore[arg-type]
        return tuple(range(self._counts[-1]) if known is None else sorted(known))

    def load(self, requests: Sequence[Request], answers: Sequence[list[list[bytes | None]]]) -> None:
        """Take the store's answers."""
        for request, rows in zip(requests, answers, strict=True):
            numbers = self.state.number(request.entities).tolist()
            for number, blobs in zip(numbers, rows, strict=True):
                for partition, blob in zip(request.partitions, blobs, strict=True):
                    if blob is not None:
                        self.state.load(number, partition, blob)
                        self._found.add(number)

    def frame(self) -> pl.DataFrame:
        """The answer, a row for each entity asked for."""
        size = len(self._entities)
        numbers = self._numbers()
        # Read as of time 0, an entity tells the time of its newest event.
        times = np.concatenate([np.array(self._times, np.int64), np.zeros(size, np.int64)])
        nothing = np.full(2 * size, -1)
        steps = Steps(nothing, np.tile(numbers, 2), nothing, times, nothing)
        words = np.zeros((len(self._plan.lanes), 0), np.int64)
        inputs = Inputs(words, words.view(np.float64), np.zeros(words.shape, np.bool_))
        results = self.state.run(steps, inputs, emit=False)
        effective, newest = results.effective[:size], results.effective[size:]
        marks = [
            pl.Series("_effective", effective),
            pl.Series("_newest", newest),
            pl.Series("_status", self._statuses(numbers, effective - newest), pl.String),
        ]
        return feature_frame(self._plan, results, np.arange(size), self.state.texts).hstack(marks)

    def _numbers(self) -> NDArray[np.int64]:
        known = [entity for entity in self._entities if entity is not None]
        numbers = iter(self.state.number(known).tolist())
        return np.array([NO_ENTITY if entity is None else next(numbers) for entity in self._entities], np.int64)

    def _statuses(self, numbers: NDArray[np.int64], ages: NDArray[np.int64]) -> list[str]:
        return [
            NOT_FOUND if number not in self._found else OUTSIDE_MAX_AGE if age > self._plan.view.keep else PRESENT
            for number, age in zip(numbers.tolist(), ages.tolist(), strict=True)
        ]
