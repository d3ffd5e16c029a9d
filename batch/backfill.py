"""Features from history: right after every event, or at given entities and times.

Both use the kernel that the stream uses. `after_events` runs events through `Flow` in merged order, as a worker does.
`at_rows` runs one sweep, entity by entity: its events and rows in order of time, each row read when exactly its events
have been folded.

Within a partition an entity's events must be folded in offset order. So an event's place in the sweep is the newest
time that its entity has shown on its partition up to it, and a row's place is its own time. Then a row finds exactly
the events with time <= t, unless one of them came after an event newer than t. Such rows are *torn*: each gets a copy
of its entity, made of its own events only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch.events import chunks, logs_of
from featurestore import kernel
from featurestore.align import Chunk
from featurestore.definitions import View
from featurestore.engine import NO_ENTITY, ViewState, joined
from featurestore.errors import DataError
from featurestore.expressions import FEATURE_TYPES, TYPES
from featurestore.flow import Flow
from featurestore.frames import META, feature_frame, lane_inputs, numbered
from featurestore.kernel import Results, Steps, layout
from featurestore.plan import compiled
from featurestore.planned import Plan
from featurestore.times import ENDLESS

Mode = Literal["event_time", "arrival"]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Events that the kernel is given at a time.
STEPS = 100_000
#: Steps of a sweep that the kernel is given at a time: what it writes of rows is taken from a processor's cache.
_SWEPT = 1 << 14
_NEVER = np.iinfo(np.int64).min
#: Copies of events that torn rows may need at a time.
_COPIES = 2_000_000


def after_events(view: View, events: pl.DataFrame) -> pl.DataFrame:
    """Features right after each event was folded, in merged order.

    Columns: `_partition`, `_offset`, `_time`, the entity's keys, the view's features. Events that the stream would not
    fold (late, overflowing, without a key) have no row.
    """
    parts = [part for part in after_event_parts(view, events) if part is not None]
    return pl.concat([_nothing_after(view), *parts])


def after_event_parts(
    view: View, events: pl.DataFrame, size: int = STEPS, wanted: Callable[[int], bool] = lambda _: True
) -> Iterator[pl.DataFrame | None]:
    """`after_events` in parts of about `size` events; part i is None, and only folded, where `wanted(i)` is false."""
    flow = fresh_flow(view, partitions_of(events))
    topic = view.source.name
    for i, chunk in enumerate(chunks(logs_of(topic, events), {topic: 0}, size)):
        emit = wanted(i)
        flow.lookups(chunk, {})
        made = flow.run(chunk, emit=emit)[view.key].events
        yield (made if made.width else _nothing_after(view)) if emit else None


def fresh_flow(view: View, partitions: int) -> Flow:
    """A flow of one view at the beginning of its log."""
    topic = view.source.name
    flow = Flow([view], [], {topic: partitions})
    for partition in range(partitions):
        flow.begin(view.key, (topic, partition), None)
    return flow


def partitions_of(events: pl.DataFrame) -> int:
    """The least number of partitions that the events can come from."""
    return int(events["_partition"].to_numpy().max()) + 1 if len(events) else 1


def at_rows(
    view: View, events: pl.DataFrame, rows: pl.DataFrame, mode: Mode = "event_time", time: str | None = None
) -> pl.DataFrame:
    """The view's features at each row's entity and time: `rows` in their order, with `_effective` and the features.

    `rows` has the entity's key columns and a time (ms since the epoch, or a date or datetime), named `time` or else
    found as `time_column` says. In mode "event_time" a row sees all events with time <= t, whenever they came; in mode
    "arrival" all records with `_timestamp` <= t, read as of t. Both leave out what the stream does not fold. An
    unknown entity has counts and sums of 0 and nulls else; without a key all is null.

    Raises DataError for a row without a time, a missing column, or one of another type; and in mode "event_time" for a
    view with sessions whose events came out of order.
    """
    name = time_column(view, rows) if time is None else time
    asked = _checked_rows(view, rows, name)
    times = asked["_at"].to_numpy()
    plan, accepted = compiled(view).patient, _accepted(view, events)
    if mode == "event_time" and plan.has_sessions and not _in_order(accepted):
        raise DataError(
            f"view {view.name!r} has sessions, which depend on the order in which events came, and these came out of "
            'order: use mode "arrival", or features after every event'
        )
    count, event_codes, row_codes = _numbered(view, accepted, asked)
    entities, instants, place = _distinct(row_codes, times)
    last = np.full(count + 1, _NEVER)  # when each entity is asked for the last time; at the end, NO_ENTITY
    last[entities] = instants
    last[NO_ENTITY] = _NEVER
    values = accepted["_time" if mode == "event_time" else "_timestamp"].to_numpy()
    seen = np.flatnonzero(values <= last[event_codes])
    log = _Log(accepted.select("_partition", "_time", *plan.columns), seen, event_codes[seen], values[seen])
    torn = _torn(log, entities, instants)
    found = _sweep(plan, log, entities[~torn], instants[~torn])
    if torn.any():
        found = pl.concat([found, _copied(plan, log, entities[torn], instants[torn])], rechunk=True)
        place = np.argsort(np.argsort(torn, kind="stable"))[place]
    return rows.hstack(found[place])


def time_column(view: View, rows: pl.DataFrame) -> str:
    """The rows' time: `_time`, the source's event time, or the only column beside the keys."""
    others = [name for name in rows.columns if name not in view.entity.keys]
    for name in ("_time", view.source.event_time):
        if name in others:
            return name
    if len(others) == 1:
        return others[0]
    raise DataError(
        f"which column of the rows is the time? Name it {view.source.event_time!r}, as in {view.source.name!r}; "
        f"they have {', '.join(rows.columns)}"
    )


@dataclasses.dataclass(frozen=True)
class _Log:
    """Some events in offset order by partition, the entity of each, and the time at which each begins to count."""

    every: pl.DataFrame
    places: Ints  # of these events among all
    entities: Ints
    values: Ints

    @cached_property
    def keys(self) -> Ints:
        """The newest value that the entity has shown on the partition up to each event."""
        partitions = self.every["_partition"].to_numpy()[self.places]
        if not ((np.diff(self.values) < 0) & (np.diff(partitions) == 0)).any():
            return self.values
        frame = pl.DataFrame({"e": self.entities, "p": partitions, "v": self.values})
        return frame.select(pl.col("v").cum_max().over("e", "p")).to_series().to_numpy()

    def __getitem__(self, rows: Ints | slice) -> _Log:
        return _Log(self.every, self.places[rows], self.entities[rows], self.values[rows])


def _checked_rows(view: View, rows: pl.DataFrame, time: str) -> pl.DataFrame:
    """The rows' keys, as the source types them, and `_at`, their time in ms."""
    source = view.source
    for name in (*view.entity.keys, time):
        if name not in rows.columns:
            raise DataError(f"the rows have no column {name!r}; they have {', '.join(rows.columns)}")
    clash = sorted({*view.outputs, "_effective"} & set(rows.columns) - {*view.entity.keys, time})
    if clash:
        raise DataError(f"the rows already have columns that are features of {view.name}: {', '.join(clash)}")
    try:
        keys = [rows[key].cast(TYPES[source.types[key]]) for key in view.entity.keys]
        at = rows[time]
        at = at.dt.epoch("ms") if at.dtype in (pl.Datetime, pl.Date) else at.cast(pl.Int64)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"the rows' keys and times do not have the types of {source.name!r}: {error}") from error
    if at.null_count():
        raise DataError(f"column {time!r} has nulls: a row without a time has no features; drop those rows")
    return pl.DataFrame([*keys, at.alias("_at")])


def _in_order(events: pl.DataFrame) -> bool:
    """Whether each partition's events came in order of event time."""
    times, partitions = events["_time"].to_numpy(), events["_partition"].to_numpy()
    return not ((np.diff(times) < 0) & (np.diff(partitions) == 0)).any()


def _accepted(view: View, events: pl.DataFrame) -> pl.DataFrame:
    """The events that the stream folds: neither late in their log nor more than an integer can take."""
    if _in_order(events):
        return events
    flow, topic = fresh_flow(view, partitions_of(events)), view.source.name
    refused = [np.zeros(0, np.int64)]
    for at in range(0, len(events), STEPS):
        steps = pl.int_range(at, min(at + STEPS, len(events)), eager=True).alias("_step")
        chunk = Chunk({topic: events[at : at + STEPS].with_columns(steps)}, {})
        flow.lookups(chunk, {})
        output = flow.run(chunk, emit=False)[view.key]
        refused += [frame["_step"].to_numpy() for frame in (output.late, output.overflowed) if len(frame)]
    good = np.ones(len(events), np.bool_)
    good[np.concatenate(refused)] = False
    return events.filter(pl.Series(good))


def _numbered(view: View, events: pl.DataFrame, rows: pl.DataFrame) -> tuple[int, Ints, Ints]:
    """How many entities there are, and the number of each event's and each row's."""
    keys = list(view.entity.keys)
    codes, entities = numbered(pl.concat([events.select(keys), rows.select(keys)]), keys)
    return len(entities), codes[: len(events)], codes[len(events) :]


def _distinct(entities: Ints, times: Ints) -> tuple[Ints, Ints, Ints]:
    """The distinct (entity, time) pairs, and which of them each row is: an airport asks often in one minute."""
    order = _by_entity(entities, times)
    new = np.ones(len(order), np.bool_)
    new[1:] = (np.diff(entities[order]) != 0) | (np.diff(times[order]) != 0)
    place = np.empty(len(order), np.int64)
    place[order] = np.cumsum(new) - 1
    return entities[order][new], times[order][new], place


def _by_entity(entities: Ints, keys: Ints) -> Ints:
    """Positions in order of entity, then key, then their own."""
    by_key = np.argsort(keys, kind="stable")  # takes no time where they ascend, as they mostly do
    groups = entities[by_key] - NO_ENTITY
    order: Ints = by_key[kernel.by_group(groups, int(groups.max(initial=0)) + 1)]
    return order


def _torn(log: _Log, entities: Ints, times: Ints) -> Bools:
    """The rows for which an event counts that came after one that does not count yet."""
    keys = log.keys
    behind = log.values < keys
    out = np.zeros(len(times), np.bool_)
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


def _sweep(plan: Plan, log: _Log, entities: Ints, times: Ints) -> pl.DataFrame:
    """`_effective` and features of the rows, each read after the events of its entity with key <= time.

    The rows are in order of entity, then time; one entity is done after the other, while its state is at hand.
    """
    if not len(entities):
        return _no_features(plan.view)
    order = _by_entity(log.entities, log.keys)
    keys, owners = log.keys[order], log.entities[order]
    events = log.every[log.places[order]]
    count = int(max(log.entities.max(initial=NO_ENTITY), entities.max())) + 1
    state = ViewState(plan, partitions_of(log.every), count)
    steps = kernel.merged_by_group(owners, keys, entities, times)
    found = []
    event = row = 0
    for at in range(0, len(steps), _SWEPT):
        mine = steps[at : at + _SWEPT]
        folds = mine < len(keys)
        fresh = int(np.count_nonzero(folds))
        asked = slice(row, row + len(mine) - fresh)
        place = mine - np.where(folds, event, len(keys) + row - fresh)
        here = slice(event, event + fresh)
        numbers = np.concatenate([owners[here], entities[asked]])[place]
        found.append(_run(state, events[here], event, place, numbers, times[asked]))
        event, row = event + fresh, asked.stop
    results = joined(plan, found)
    effective = pl.Series("_effective", results.effective)
    return pl.DataFrame([effective]).hstack(feature_frame(plan, results, slice(None), state.texts))


def _run(state: ViewState, events: pl.DataFrame, first: int, place: Ints, numbers: Ints, times: Ints) -> Results:
    """Fold events, from the sweep's event `first` on, and read rows in between; the results of the rows.

    `place` says which of the events, or else of the rows behind them, each step is, and `numbers` of which entity.
    """
    folds = place < len(events)
    steps = Steps(
        np.where(folds, place, -1),
        numbers,
        np.concatenate([events["_partition"].to_numpy(), np.zeros(len(times), np.int64)])[place],
        np.concatenate([events["_time"].to_numpy(), times])[place],
        first + place,  # not their own: by time they may not ascend
    )
    results = state.run(steps, lane_inputs(state.plan, events, state.texts), emit=False)
    reads = np.flatnonzero(~folds)
    words, valid = results.words.take(reads, axis=1), results.valid.take(reads, axis=1)
    effective, status = results.effective[reads], results.status[reads]
    return Results(words, words.view(np.float64), valid, effective, status, results.items.copy())


def _copied(plan: Plan, log: _Log, entities: Ints, times: Ints) -> pl.DataFrame:
    """As `_sweep`, for torn rows: each row is an entity of its own, with the events that count for it."""
    order = np.argsort(log.entities, kind="stable")
    log = log[order]
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
        counted = (log.values[source] <= at) & (log.every["_time"].to_numpy()[log.places[source]] >= _oldest(plan, at))
        mine = log[source[counted]]
        own = dataclasses.replace(mine, entities=owner[counted])
        found.append(_sweep(plan, own, np.arange(len(rows)), times[rows]))
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


def _nothing_after(view: View) -> pl.DataFrame:
    keys = {key: TYPES[view.source.types[key]] for key in view.entity.keys if key not in view.outputs}
    outputs = {name: FEATURE_TYPES[kind] for name, kind in view.outputs.items()}
    return pl.DataFrame(schema={**{name: META[name] for name in ("_partition", "_offset", "_time")}, **keys, **outputs})
