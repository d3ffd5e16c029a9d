"""The oracle: features as the semantics word them, in plain Python, as slow as it is clear.

It shares no code with the kernel and knows no tiles as state: it looks at all events again for every value. Every fast
path is compared with it. Counts, integers and times are exact; sums of floats are correctly rounded, means and
deviations are rounded from exact fractions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import polars as pl

from featurestore.aggregates import Count, First, Last, Max, Mean, Min, Std, Sum
from featurestore.definitions import Feature, View
from featurestore.expressions import TYPES

Event = Mapping[str, Any]  # the source's columns, `_partition`, `_offset` and `_time`
Value = int | float | bool | None

FOLDED, LATE, OVERFLOW, KEYLESS = "folded", "late", "overflow", "keyless"


def statuses(view: View, events: Sequence[Event]) -> list[str]:
    """What becomes of each event, given in an order in which the offsets of each partition ascend."""
    windows = [(f.name, f.window.length, f.window.hop) for f in view.stored if f.window]
    keeps = {hop: max(w for _, w, h in windows if h == hop) for _, _, hop in windows}
    sums = {f.name for f in view.stored if isinstance(f.aggregate, Sum | Mean) and _is_integer(f)}
    values = {f.name: inputs(f, events) for f in view.stored if f.name in sums}
    clock: dict[int, int] = {}
    newest: dict[Any, int] = {}
    totals: dict[Any, int] = {}
    out = []
    for i, event in enumerate(events):
        time, partition, entity = event["_time"], event["_partition"], key(view, event)
        clock[partition] = max(clock.get(partition, time), time)
        limit = clock[partition] - view.source.lateness_ms
        if all(time // hop < (limit - length + 1) // hop for _, length, hop in windows):
            out.append(LATE)
            continue
        if None in entity:
            out.append(KEYLESS)
            continue
        latest = max(newest.get((partition, entity), time), time)
        new = {  # the tiles that the event adds to, unless no read can see them any more
            (name, partition, entity, time // hop): totals.get((name, partition, entity, time // hop), 0)
            + values[name][i]
            for name, _, hop in windows
            if name in sums and values[name][i] is not None and time // hop >= (latest - keeps[hop] + 1) // hop
        }
        if any(not -(2**63) <= total < 2**63 for total in new.values()):
            out.append(OVERFLOW)
            continue
        totals.update(new)
        newest[partition, entity] = latest
        out.append(FOLDED)
    return out


def features(view: View, events: Sequence[Event], entity: tuple[Any, ...], as_of: int) -> tuple[int, dict[str, Value]]:
    """The effective time of a read of the entity as of `as_of`, after these events, and its stored features."""
    folded = zip(events, statuses(view, events), strict=True)
    mine = [event for event, status in folded if status == FOLDED and key(view, event) == entity]
    effective = max([as_of, *(event["_time"] for event in mine)])
    return effective, {feature.name: _value(feature, mine, effective) for feature in view.stored}


def key(view: View, event: Event) -> tuple[Any, ...]:
    """The entity that the event is about."""
    return tuple(event[column] for column in view.entity.keys)


def inputs(feature: Feature, events: Sequence[Event]) -> list[Any]:
    """What the feature takes from each event; None for nothing."""
    aggregate = feature.aggregate
    assert aggregate is not None
    values = [event[aggregate.column] if aggregate.column else 1 for event in events]
    if aggregate.where is not None:
        frame = pl.DataFrame(list(events), schema={c: TYPES[t] for c, t in feature.view.source.types.items()})
        passes = [frame[i : i + 1].select(aggregate.where).item() for i in range(len(frame))]
        values = [value if pass_ else None for value, pass_ in zip(values, passes, strict=True)]
    return [None if isinstance(value, float) and math.isnan(value) else value for value in values]


def _is_integer(feature: Feature) -> bool:
    assert feature.aggregate is not None
    return feature.view.source.types[feature.aggregate.column] != "float"


def _value(feature: Feature, events: Sequence[Event], effective: int) -> Value:
    assert feature.window is not None
    length, hop = feature.window.length, feature.window.hop
    rows = sorted(
        (event["_time"], event["_partition"], event["_offset"], value)
        for event, value in zip(events, inputs(feature, events), strict=True)
        if value is not None and (effective - length + 1) // hop <= event["_time"] // hop <= effective // hop
    )
    return _FINISHES[type(feature.aggregate)]([row[3] for row in rows])


def _sum(values: list[Any]) -> Value:
    if any(isinstance(value, float) for value in values):
        return math.fsum(values)
    return sum(values) if -(2**63) <= sum(values) < 2**63 else None


def _deviation(values: list[Any]) -> Value:
    mean = sum(map(Fraction, values)) / max(len(values), 1)
    squares = sum((Fraction(value) - mean) ** 2 for value in values)
    return math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else None


_FINISHES: dict[type, Callable[[list[Any]], Value]] = {  # of the values by (time, partition, offset)
    Count: len,
    Sum: _sum,
    Mean: lambda values: float(sum(map(Fraction, values)) / len(values)) if values else None,
    Std: _deviation,
    Min: lambda values: min(values, default=None),
    Max: lambda values: max(values, default=None),
    First: lambda values: values[0] if values else None,
    Last: lambda values: values[-1] if values else None,
}
