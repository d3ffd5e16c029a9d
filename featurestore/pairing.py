"""Which events of two logs make pairs: a join by key within a bounded time, on one partition, batch after batch.

The pairs are a function of the two logs, however these are cut and interleaved: an event is in pairs unless it is late
by its own log, that is, older than the newest before it less its source's lateness. An event waits until none that is
still to come can match it: until the other log's newest less lateness has passed it by `within`. Only where `most`
events of a side wait, for the other is silent, the older half of them stops waiting.

Waiting events lie in runs, each ordered by key and time, of which a new one is merged with those that are not larger
than twice its size, and one of which half waits no more is made anew: so an event is moved a few times, and found by a
binary search in each of a few runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from featurestore.erasures import Erasure
from featurestore.expressions import TYPES
from featurestore.joined import ID, TIME, Joined
from featurestore.keys import decode_entity
from featurestore.sources import Source

MOST = 2_000_000
"""Most events of one side that wait on a partition."""

_NEVER = np.iinfo(np.int64).min // 2  # durations can be taken from it
_SPARE_BITS = 11  # of a hash: a float holds the others

Ints = NDArray[np.int64]
Places = NDArray[np.complex128]


class Paired(NamedTuple):
    """What a batch came to: pairs in order, and of either side the events that came late.

    Pairs have the joined source's schema, and `_left` and `_right`, the offsets of their events. They are in the merged
    order of their later events, then in that of the others.
    """

    pairs: pl.DataFrame
    late: tuple[pl.DataFrame, pl.DataFrame]


@dataclass(frozen=True)
class Place:
    """From where a log must be read again to have all that waits: an offset, and the newest time before it."""

    offset: int
    clock: int | None


class Pairing:
    """The events of both sides that wait on one partition. `begin` says where it goes on, `take` brings it on."""

    def __init__(self, source: Joined, partition: int, most: int = MOST) -> None:
        self._source, self._partition = source, partition
        columns = [name for name in source.left.types if name in source.schema and name not in (ID, TIME)]
        self._sides = (
            _Side(source.left, columns, source.keys, most),
            _Side(source.right, [*source.keys, *source.names], source.keys, most),
        )
        self._step = 0  # above those of all batches so far

    @property
    def dropped(self) -> int:
        """How many events stopped waiting because there were too many."""
        return sum(side.dropped for side in self._sides)

    def begin(self, side: int, clock: int | None) -> None:
        """Go on with a side (0 left, 1 right) where the newest time of its log was `clock`."""
        self._sides[side].clock = _NEVER if clock is None else clock

    def erase(self, side: int, columns: Sequence[str], erasure: Erasure) -> None:
        """Let the events of a side wait no longer that came before the erasure of the entity that `columns` name."""
        self._sides[side].erase(columns, decode_entity(erasure.key), erasure.offset)

    def reached(self, side: int, end: int) -> Place:
        """The place up to which a side was taken, which is before `end`."""
        return self._sides[side].reached(end)

    def place(self, side: int, end: int) -> Place:
        """The place of the oldest event of a side that waits; `end`, up to which it was read, if none does."""
        return self._sides[side].place(end)

    def take(self, left: pl.DataFrame, right: pl.DataFrame) -> Paired:
        """Take the next events of both logs: event frames in order of offset, with `_step`, as those of a chunk."""
        lefts, rights = self._sides
        steps = [frame["_step"].max() for frame in (left, right) if len(frame)]
        new_left, late_left = lefts.admit(left, self._step)
        new_right, late_right = rights.admit(right, self._step)
        self._step += 1 + max(map(int, steps), default=-1)  # type: ignore[arg-type]
        within = self._source.within_ms
        earlier = self._pairs(*rights.matches(new_left, within))
        lefts.add(new_left)
        found, waiting = lefts.matches(new_right, within)
        rights.add(new_right)
        lefts.forget(rights.oldest - within)
        rights.forget(lefts.oldest - within)
        pairs = pl.concat([earlier, self._pairs(waiting, found)]).sort("_later", "_earlier")
        return Paired(pairs.drop("_later", "_earlier"), (late_left, late_right))

    def _pairs(self, left: pl.DataFrame, right: pl.DataFrame) -> pl.DataFrame:
        """One row of a pair for each two rows that stand beside each other."""
        source, both = self._source, pl.DataFrame({"l": left["_offset"], "r": right["_offset"]})
        times = pl.DataFrame({"l": left["_time"], "r": right["_time"]})
        steps = pl.DataFrame({"l": left["_step"], "r": right["_step"]})
        names = both.select(pl.format("{}:{}:{}", pl.lit(self._partition), "l", "r").alias(ID)).to_series()
        taken = left.select(name for name in source.schema if name in left.columns)
        others = right.select(pl.col(name).alias(new) for name, new in source.names.items())
        columns = [names, times.max_horizontal().alias(TIME), *taken, *others]
        meta = [both["l"].alias("_left"), both["r"].alias("_right")]
        order = [steps.max_horizontal().alias("_later"), steps.min_horizontal().alias("_earlier")]
        return pl.DataFrame(columns).select(*source.schema).hstack(meta).hstack(order)


@dataclass(frozen=True)
class _Run:
    """Waiting events by (hash of the key, time): complex numbers are ordered by their real, then imaginary part."""

    keys: Places
    events: pl.DataFrame
    middle: int  # time: half of the events are not newer
    first: Place


class _Side:
    """What waits of one log, and the newest time that the log has shown."""

    def __init__(self, source: Source, columns: Sequence[str], on: Sequence[str], most: int) -> None:
        self._columns, self._on, self._most = list(columns), list(on), most
        self._lateness = source.lateness_ms
        self._runs: list[_Run] = []
        self._since = _NEVER
        meta = dict.fromkeys(("_offset", "_time", "_step", "_before"), TYPES["int"])
        self._nothing = pl.DataFrame(schema={name: TYPES[source.types[name]] for name in columns} | meta)
        self.clock = _NEVER
        self.dropped = 0

    @property
    def oldest(self) -> int:
        """The least time that an event may still come with, unless it is late."""
        return self.clock - self._lateness

    def reached(self, end: int) -> Place:
        return Place(end, None if self.clock == _NEVER else self.clock)

    def place(self, end: int) -> Place:
        return min((run.first for run in self._runs), key=lambda place: place.offset, default=self.reached(end))

    def admit(self, frame: pl.DataFrame, step: int) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The log's next events as they wait, their steps from `step` on, and those that are late."""
        times = frame["_time"].to_numpy()
        newest = np.maximum.accumulate(np.append(self.clock, times))
        self.clock = int(newest[-1])
        late = pl.Series(times < newest[:-1] - self._lateness)
        before = pl.Series("_before", newest[:-1], pl.Int64)
        events = frame.select(*self._columns, "_offset", "_time", pl.col("_step") + step).with_columns(before)
        return events.filter(~late), frame.filter(late)

    def matches(self, events: pl.DataFrame, within: int) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Events of the other side and, beside each, one of those that wait here for it; each as often as need be."""
        low, high = self._places(events, -within), self._places(events, within)
        rows, found = [np.zeros(0, np.int64)], [self._nothing]
        for run in self._runs:
            mine, theirs = _between(run.keys, low, high)
            rows.append(mine)
            found.append(run.events[theirs])
        one, other = events[np.concatenate(rows)], pl.concat(found)
        # Two keys may have one hash.
        same = pl.DataFrame([one[name] == other[name] for name in self._on]).select(pl.all_horizontal(pl.all()))
        return one.filter(same.to_series()), other.filter(same.to_series())

    def add(self, events: pl.DataFrame) -> None:
        """Let events wait."""
        if len(events):
            self._runs.append(_run(self._places(events), events))
        while len(self._runs) > 1 and len(self._runs[-2].events) <= 2 * len(self._runs[-1].events):
            self._merge(2)

    def forget(self, since: int) -> None:
        """Let events before `since` wait no more and, where there are too many, the older half."""
        self._since = since
        self._runs = [run for run in map(self._lively, self._runs) if run is not None]
        if sum(len(run.events) for run in self._runs) > self._most:
            self._merge(len(self._runs), self._most // 2)

    def _lively(self, run: _Run) -> _Run | None:
        """A run without what waits no more, if that is half of it; or it would be kept, and read again, for long."""
        if run.middle >= self._since:
            return run
        kept = run.events["_time"].to_numpy() >= self._since
        return _run(run.keys[kept], run.events.filter(pl.Series(kept))) if kept.any() else None

    def erase(self, columns: Sequence[str], key: Sequence[object], before: int) -> None:
        """Let events before an offset wait no longer whose columns hold the key."""
        if not set(columns) <= set(self._columns):
            return  # id and time of a pair that is joined again name nobody
        gone = pl.all_horizontal(
            pl.col("_offset") < before, *(pl.col(name) == value for name, value in zip(columns, key, strict=True))
        )
        kept = [(run, run.events.select(~gone.fill_null(value=False)).to_series()) for run in self._runs]
        self._runs = [
            run if stays.all() else _run(run.keys[stays.to_numpy()], run.events.filter(stays))
            for run, stays in kept
            if stays.any()
        ]

    def _merge(self, count: int, most: int | None = None) -> None:
        """Make the last runs one, of what still waits, and of that the newest `most`."""
        runs, self._runs = self._runs[-count:], self._runs[:-count]
        events, keys = pl.concat([run.events for run in runs]), np.concatenate([run.keys for run in runs])
        kept = events["_time"].to_numpy() >= self._since
        if most is not None and (waiting := int(kept.sum())) > most:
            offsets = events["_offset"].to_numpy()
            kept &= offsets >= np.partition(offsets[kept], waiting - most)[waiting - most]
            self.dropped += waiting - most
        if kept.any():
            self._runs.append(_run(keys[kept], events.filter(pl.Series(kept))))

    def _places(self, events: pl.DataFrame, shift: int = 0) -> Places:
        places = np.empty(len(events), np.complex128)
        places.real = events.select(self._on).hash_rows().to_numpy() >> np.uint64(_SPARE_BITS)
        places.imag = events["_time"].to_numpy() + shift
        return places


def _run(keys: Places, events: pl.DataFrame) -> _Run:
    order = np.argsort(keys, kind="stable")
    oldest = int(np.argmin(events["_offset"].to_numpy()))
    before = int(events["_before"][oldest])
    first = Place(int(events["_offset"][oldest]), None if before == _NEVER else before)
    half = len(events) // 2
    return _Run(keys[order], events[order], int(np.partition(events["_time"].to_numpy(), half)[half]), first)


def _between(keys: Places, low: Places, high: Places) -> tuple[Ints, Ints]:
    """For each bound the places of the keys between low and high, both included: rows of the bounds, places."""
    begins, ends = np.searchsorted(keys, low), np.searchsorted(keys, high, side="right")
    counts = ends - begins
    rows = np.repeat(np.arange(len(low)), counts)
    skipped = np.cumsum(counts) - counts
    return rows, np.arange(len(rows)) - np.repeat(skipped - begins, counts)
