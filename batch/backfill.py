"""Features from history: right after every event, or at given entities and times.

Both use the kernel that the stream uses. `after_events` runs events through `Flow` in merged order, as a worker does.
`at_rows` runs one sweep, entity by entity, in which each row is read when exactly its events have been folded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch.events import chunks, logs_of, partitions_of
from batch.sweeps import Log, features_at, moved, places, seen
from featurestore import kernel
from featurestore.align import Chunk
from featurestore.definitions import View
from featurestore.engine import NO_ENTITY
from featurestore.errors import DataError
from featurestore.expressions import FEATURE_TYPES, TYPES
from featurestore.flow import Flow
from featurestore.frames import META, numbered
from featurestore.plan import compiled

Mode = Literal["event_time", "arrival"]
Ints = NDArray[np.int64]

#: Events that the kernel is given at a time.
STEPS = 100_000


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
    column = "_time" if mode == "event_time" else "_timestamp"
    log = Log(accepted.select("_partition", "_time", "_timestamp", *plan.columns), event_codes, column)
    return rows.hstack(features_at(plan, seen(log, entities, instants, count), entities, instants, place))


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
    return bool(kernel.ascends(events["_time"].to_numpy(), events["_partition"].to_numpy()))


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
    to, _ = places(entities, times, least=NO_ENTITY)
    whose, when = (moved(each, to, len(to)) for each in (entities, times))
    new = np.ones(len(to), np.bool_)
    new[1:] = (whose[1:] != whose[:-1]) | (when[1:] != when[:-1])
    return whose[new], when[new], (np.cumsum(new) - 1)[to]


def _nothing_after(view: View) -> pl.DataFrame:
    keys = {key: TYPES[view.source.types[key]] for key in view.entity.keys if key not in view.outputs}
    outputs = {name: FEATURE_TYPES[kind] for name, kind in view.outputs.items()}
    return pl.DataFrame(schema={**{name: META[name] for name in ("_partition", "_offset", "_time")}, **keys, **outputs})
