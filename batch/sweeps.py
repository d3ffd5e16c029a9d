"""One sweep over history: entity by entity, its events and the rows that ask for it in order of time.

Within a partition an entity's events must be folded in offset order. So an event's place in the sweep is the newest
time that its entity has shown on its partition up to it, and a row's place is its own time. Then a row finds exactly
the events with time <= t, unless one of them came after an event newer than t. Such rows are *torn*: each gets a copy
of its entity, made of its own events only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch.events import partitions_of
from featurestore import kernel
from featurestore.definitions import View
from featurestore.engine import NO_ENTITY, ViewState
from featurestore.expressions import FEATURE_TYPES
from featurestore.frames import feature_frame, inputs_of, lane_values
from featurestore.growing import flagged, vector
from featurestore.kernel import Results, Steps, layout
from featurestore.planned import Plan
from featurestore.times import ENDLESS
from featurestore.values import frozen

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Steps that the kernel is given at a time: it finds them in a processor's cache.
_SWEPT = 1 << 14
_NEVER = np.iinfo(np.int64).min
#: Copies of events that torn rows may need at a time.
_COPIES = 2_000_000


@dataclasses.dataclass(frozen=True)
class Log:
    """Events in offset order by partition, the entity of each, and the column of the time from which each counts.

    Those that no row sees are of NO_ENTITY.
    """

    events: pl.DataFrame
    entities: Ints
    column: str

    @cached_property
    def partitions(self) -> NDArray[np.int32]:
        """The partition of each event."""
        return self.events["_partition"].to_numpy()

    @cached_property
    def values(self) -> Ints:
        """The time from which each counts."""
        return self.events[self.column].to_numpy()

    @cached_property
    def times(self) -> Ints:
        """The event time of each."""
        return self.values if self.column == "_time" else self.events["_time"].to_numpy()

    @cached_property
    def keys(self) -> Ints:
        """The newest value that the entity has shown on the partition up to each event."""
        if kernel.ascends(frozen(self.values), self.partitions):
            return self.values
        frame = pl.DataFrame({"e": self.entities, "p": self.partitions, "v": self.values})
        return frame.select(pl.col("v").cum_max().over("e", "p")).to_series().to_numpy()

    def __getitem__(self, rows: Ints) -> Log:
        return Log(self.events[rows], self.entities[rows], self.column)


def seen(log: Log, asked: Ints, times: Ints, count: int) -> Log:
    """The log, of entities below `count`, as rows see it that ask for entities at times, in order of both."""
    last = np.full(count + 1, _NEVER)  # when each entity is asked for the last time; at the end, NO_ENTITY
    last[asked] = times
    entities = vector(len(log.entities), np.int64)
    kernel.until_last(log.entities, frozen(log.values), last, entities)
    return dataclasses.replace(log, entities=entities)


def places(entities: Ints, keys: Ints, least: int = 0) -> tuple[Ints, Ints]:
    """Where entities from `least` on go, in order of entity, key, then their own, and others to -1; where each ends."""
    out, ends = vector(len(keys), np.int64), np.zeros(int(entities.max(initial=NO_ENTITY)) + 2 - least, np.int64)
    if kernel.ascends(frozen(keys), frozen(np.zeros(len(keys), np.int32))):
        kernel.places_by_group(entities, least, ends, out)
        return out, ends[:-1]
    by_key = np.argsort(keys, kind="stable")
    found = np.empty(len(keys), np.int64)
    kernel.places_by_group(entities[by_key], least, ends, found)
    out[by_key] = found
    return out, ends[:-1]


def features_at(plan: Plan, log: Log, entities: Ints, times: Ints, place: Ints) -> pl.DataFrame:
    """`_effective` and features; row i is of `entities[place[i]]` at `times[place[i]]`.

    Entities and times are in order of entity, then time.
    """
    torn = _torn(log, entities, times)
    if torn.any():
        whole, copies = entities[~torn], entities[torn]
        found = [_swept(plan, log, whole, times[~torn], np.arange(len(whole)))]
        found.append(_copied(plan, log, copies, times[torn]))
        return pl.concat(found, rechunk=True)[np.argsort(np.argsort(torn, kind="stable"))[place]]
    return _swept(plan, log, entities, times, place)


def _torn(log: Log, entities: Ints, times: Ints) -> Bools:
    """The rows for which an event counts that came after one that does not count yet."""
    keys, out = log.keys, np.zeros(len(times), np.bool_)
    if keys is log.values:
        return out
    behind = (log.values < keys) & (log.entities != NO_ENTITY)
    if not behind.any():
        return out
    # An event that came late counts from its value on, but has its place in the sweep at its key: in between, it lacks.
    who = np.concatenate([log.entities[behind], log.entities[behind], entities])
    when = np.concatenate([log.values[behind], keys[behind], times])
    change = np.repeat([1, -1, 0], [behind.sum(), behind.sum(), len(times)])
    order = np.lexsort((change == 0, when, who))
    lacking = np.empty(len(order), np.int64)
    lacking[order] = np.cumsum(change[order])
    return lacking[2 * int(behind.sum()) :] > 0


def _swept(plan: Plan, log: Log, entities: Ints, times: Ints, place: Ints) -> pl.DataFrame:
    """As `features_at`, each row read after the events of its entity with key <= time.

    One entity is done after the other, while its state is at hand.
    """
    if not len(place):
        return _no_features(plan.view)
    count = int(max(log.entities.max(initial=NO_ENTITY), entities.max())) + 1
    state = ViewState(plan, partitions_of(log.events), count)
    results = _taken(_read(state, log, entities, times), place)
    effective = pl.Series("_effective", results.effective)
    return pl.DataFrame([effective]).hstack(feature_frame(plan, results, slice(None), state.texts))


def _read(state: ViewState, log: Log, entities: Ints, times: Ints) -> Results:
    """What each of the entities has at its time, a column each."""
    plan, (to, ends) = state.plan, places(log.entities, log.keys)
    count = int(ends[-1]) if len(ends) else 0
    keys = moved(log.keys, to, count)
    moments = keys if log.keys is log.times else moved(log.times, to, count)
    partitions = np.zeros(count, np.int32) if state.partitions == 1 else moved(log.partitions, to, count)
    lanes = (lane_values(lane, log.events, state.texts) for lane in plan.lanes)
    inputs = inputs_of(plan, count, ([moved(each, to, count) for each in lane] for lane in lanes))
    results = state.sweep(_parts(ends, keys, partitions, moments, entities, times), inputs, len(entities))
    nobody = slice(0, _nameless(entities))
    results.words[:, nobody], results.valid[:, nobody], results.effective[nobody] = 0, False, times[nobody]
    return results


def _parts(
    ends: Ints, keys: Ints, partitions: NDArray[np.int32], moments: Ints, entities: Ints, times: Ints
) -> Iterator[Steps]:
    """The steps of a sweep, a few at a time; what is read goes to the column of its row."""
    at, total = np.array([0, _nameless(entities), 0]), len(keys) + len(entities)
    room = Steps(*(np.empty(min(_SWEPT, total), np.int64) for _ in Steps._fields))
    while left := total - int(at[:2].sum()):
        steps = Steps(*(each[:left] for each in room))
        kernel.next_steps(ends, keys, partitions, moments, entities, times, at, steps)
        yield steps


def _nameless(entities: Ints) -> int:
    """How many rows there are of NO_ENTITY; they come first."""
    return int(np.searchsorted(entities, 0))


def _taken(results: Results, place: Ints) -> Results:
    """The results in the columns at `place`."""
    words, valid = flagged(len(results.words), len(place))
    kernel.take(results.words, place, words)
    for row, out in zip(results.valid, valid, strict=True):
        if row.all():
            out[:] = True
        else:
            kernel.take(row[None], place, out[None])
    effective = results.effective[place]
    return results._replace(words=words, reals=words.view(np.float64), valid=valid, effective=effective)


def moved(values: Any, to: Ints, count: int) -> Any:  # noqa: ANN401
    """The values at their places in the sweep; a single one stays as it is."""
    if not isinstance(values, np.ndarray):
        return values
    out = vector(count, values.dtype.type)
    kernel.put(frozen(values), to, out)
    return out


def _copied(plan: Plan, log: Log, entities: Ints, times: Ints) -> pl.DataFrame:
    """As `_swept`, for torn rows: each row is an entity of its own, with the events that count for it."""
    log = log[np.argsort(log.entities, kind="stable")]
    first = np.searchsorted(log.entities, entities)
    counts = np.searchsorted(log.entities, entities, side="right") - first
    batches = np.cumsum(counts) // _COPIES
    found = []
    for batch in np.unique(batches):
        rows = np.flatnonzero(batches == batch)
        owner = np.repeat(np.arange(len(rows)), counts[rows])
        starts = np.cumsum(counts[rows]) - counts[rows]
        source = np.arange(len(owner)) - np.repeat(starts - first[rows], counts[rows])
        at = times[rows][owner]
        counted = (log.values[source] <= at) & (log.times[source] >= _oldest(plan, at))
        own = dataclasses.replace(log[source[counted]], entities=owner[counted])
        found.append(_swept(plan, own, np.arange(len(rows)), times[rows], np.arange(len(rows))))
    return pl.concat(found)


def _oldest(plan: Plan, times: Ints) -> Ints:
    """The oldest event time that any window can cover as of each time."""
    oldest = times
    for row in plan.tracks:
        if row[layout.KEEP] == ENDLESS or row[layout.KIND] == layout.SESSIONS:
            return np.full(len(times), _NEVER)
        oldest = np.minimum(oldest, (times - row[layout.KEEP] + 1) // row[layout.HOP] * row[layout.HOP])
    return oldest


def _no_features(view: View) -> pl.DataFrame:
    return pl.DataFrame(
        schema={"_effective": pl.Int64, **{name: FEATURE_TYPES[kind] for name, kind in view.outputs.items()}}
    )
