"""The oracle: features as the semantics word them, in plain Python, as slow as it is clear.

It shares no code with the kernel and knows no tiles as state: it looks at all events again for every value. Every fast
path is compared with it. Counts, integers and times are exact; sums of floats are correctly rounded, means and
deviations are rounded from exact fractions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import polars as pl

from featurestore import aggregates as ag
from featurestore import bags
from featurestore.aggregates import Window
from featurestore.definitions import Feature, View
from featurestore.expressions import TYPES
from featurestore.texts import MAX_TEXT, code_of
from featurestore.times import ENDLESS

Event = Mapping[str, Any]  # the source's columns, `_partition`, `_offset` and `_time`
Value = int | float | bool | str | list[Any] | dict[str, Any] | None

FOLDED, LATE, OVERFLOW, KEYLESS = "folded", "late", "overflow", "keyless"


def statuses(view: View, events: Sequence[Event]) -> list[str]:
    """What becomes of each event, given in an order in which the offsets of each partition ascend."""
    windows = {f.name: f.window for f in view.stored if f.window}
    tiled = {name: window for name, window in windows.items() if window.kind == "tiles"}
    keeps = {hop: max(w.keep for w in tiled.values() if w.hop == hop) for hop in {w.hop for w in tiled.values()}}
    summing = (ag.Sum, ag.Mean, ag.Rate)
    sums = {f.name for f in view.stored if isinstance(f.aggregate, summing) and f.name in tiled and _is_integer(f)}
    values = {f.name: inputs(f, events) for f in view.stored if f.name in sums}
    clock: dict[int, int] = {}
    newest: dict[Any, int] = {}
    totals: dict[Any, int] = {}
    out = []
    for i, event in enumerate(events):
        time, partition, entity = event["_time"], event["_partition"], key(view, event)
        clock[partition] = max(clock.get(partition, time), time)
        limit = clock[partition] - view.source.lateness_ms
        if all(_is_over(window, time, limit) for window in windows.values()):
            out.append(LATE)
            continue
        if None in entity:
            out.append(KEYLESS)
            continue
        latest = max(newest.get((partition, entity), time), time)
        new = {  # the tiles that the event adds to, unless no read can see them any more
            (name, partition, entity, time // w.hop): totals.get((name, partition, entity, time // w.hop), 0)
            + values[name][i]
            for name, w in tiled.items()
            if name in sums and values[name][i] is not None and time // w.hop >= (latest - keeps[w.hop] + 1) // w.hop
        }
        if any(not -(2**63) <= total < 2**63 for total in new.values()):
            out.append(OVERFLOW)
            continue
        totals.update(new)
        newest[partition, entity] = latest
        out.append(FOLDED)
    return out


def _is_over(window: Window, time: int, limit: int) -> bool:
    """Whether the window cannot see an event of this time as of `limit`, nor later."""
    if window.kind == "last":
        return False
    if window.kind == "session":
        return time < limit - window.length
    hop = window.hop if window.kind == "tiles" else 1
    return time // hop < (limit - window.keep + 1) // hop


def features(view: View, events: Sequence[Event], entity: tuple[Any, ...], as_of: int) -> tuple[int, dict[str, Value]]:
    """The effective time of a read of the entity as of `as_of`, after these events, and its stored features."""
    folded = zip(events, statuses(view, events), strict=True)
    mine = [event for event, status in folded if status == FOLDED and key(view, event) == entity]
    effective = max([as_of, *(event["_time"] for event in mine)])
    return effective, {feature.name: _value(feature, mine, effective) for feature in view.stored}


def covered(feature: Feature, events: Sequence[Event], effective: int) -> list[Event]:
    """Those of the entity's events, as they came, that the feature's window holds, by (time, partition, offset)."""
    window = feature.window
    assert window is not None
    end, ordered = effective - window.delay, sorted(events, key=lambda e: (e["_time"], e["_partition"], e["_offset"]))
    if window.kind == "tiles":
        first, hop = end - window.length + 1, window.hop
        return [e for e in ordered if first // hop <= e["_time"] // hop <= end // hop]
    if window.kind == "exact":
        return [e for e in ordered if end - window.length < e["_time"] <= end]
    if window.kind == "last":
        return ordered[-window.length :]
    sessions = [
        _session(feature, [e for e in events if e["_partition"] == p]) for p in {e["_partition"] for e in events}
    ]
    held = [e for session in sessions if session and end - session[-1]["_time"] <= window.length for e in session]
    return [e for e in ordered if e in held]


def _session(feature: Feature, events: Sequence[Event]) -> list[Event]:
    """The last session of one partition's events: each is a set of its own first, and joins those in reach.

    An event too old for the entity's newest, less the gap and the lateness, can neither begin nor join one.
    """
    assert feature.window is not None
    gap, newest = feature.window.length, -math.inf
    sessions: list[list[Event]] = []
    for event in events:
        newest, time = max(newest, event["_time"]), event["_time"]
        oldest = newest - gap - feature.view.source.lateness_ms
        if time < oldest:
            continue
        near = [s for s in sessions if s[-1]["_time"] >= max(time - gap, oldest) and s[0]["_time"] <= time + gap]
        joined = sorted([event, *(e for s in near for e in s)], key=lambda e: (e["_time"], e["_offset"]))
        sessions = sorted([*(s for s in sessions if s not in near), joined], key=lambda s: s[0]["_time"])
    return sessions[-1] if sessions else []


def key(view: View, event: Event) -> tuple[Any, ...]:
    """The entity that the event is about."""
    return tuple(event[column] for column in view.entity.keys)


def inputs(feature: Feature, events: Sequence[Event]) -> list[Any]:
    """What the feature takes from each event; None for nothing. Of two columns it is a pair."""
    aggregate = feature.aggregate
    assert aggregate is not None
    values: list[Any] = [_number(event[aggregate.column]) if aggregate.column else 1 for event in events]
    if isinstance(aggregate, bags.CountBy):
        values = [_category(value) for value in values]
    if len(aggregate.columns) > 1:
        others = [_number(event[aggregate.columns[1]]) for event in events]
        others = [_category(value) for value in others] if isinstance(aggregate, bags.SumBy) else others
        values = [None if None in pair else pair for pair in zip(values, others, strict=True)]
    if aggregate.where is not None:
        frame = pl.DataFrame(list(events), schema={c: TYPES[t] for c, t in feature.view.source.types.items()})
        passes = [frame[i : i + 1].select(aggregate.where).item() for i in range(len(frame))]
        values = [value if pass_ else None for value, pass_ in zip(values, passes, strict=True)]
    return values


def _category(value: Any) -> str | None:  # noqa: ANN401
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)[:MAX_TEXT]


def _number(value: Any) -> Any:  # noqa: ANN401
    return None if isinstance(value, float) and math.isnan(value) else value


def _is_integer(feature: Feature) -> bool:
    assert feature.aggregate is not None
    return feature.view.source.types.get(feature.aggregate.column) != "float"


def _value(feature: Feature, events: Sequence[Event], effective: int) -> Value:
    assert feature.window is not None
    held = covered(feature, events, effective)
    if isinstance(feature.aggregate, bags.BagAggregate):
        return _of_bag(feature, held)
    rows = [
        (event["_time"], value) for event, value in zip(held, inputs(feature, held), strict=True) if value is not None
    ]
    end, values, aggregate = effective - feature.window.delay, [value for _, value in rows], feature.aggregate
    if isinstance(aggregate, ag.TimeSince):
        times = [time for time, _ in rows]
        return end - (times[-1] if aggregate.of == "last" else times[0]) if times else None
    if isinstance(aggregate, ag.ExpDecay):
        return math.fsum(value * 2.0 ** ((time - end) / aggregate.half_life_ms) for time, value in rows)
    if isinstance(aggregate, ag.Rate):
        return float(sum(map(Fraction, values))) / (feature.window.length / 1000)
    if isinstance(aggregate, ag.Slope):
        return _slope(rows)
    return _FINISHES[type(aggregate)](values)


def _of_bag(feature: Feature, held: Sequence[Event]) -> Value:
    aggregate = feature.aggregate
    found = zip(held, inputs(feature, held), strict=True)
    rows = [(event, value) for event, value in found if value is not None]
    if isinstance(aggregate, bags.Distinct):
        return len({0.0 if value == 0 else value for _, value in rows})
    rows = [(event, _cut(value)) for event, value in rows]
    values = [value for _, value in rows]
    if isinstance(aggregate, bags.FirstN):
        return values[-aggregate.n :] if isinstance(aggregate, bags.LastN) else values[: aggregate.n]
    if isinstance(aggregate, bags.Histogram):
        buckets = Counter(sum(value >= edge for edge in aggregate.edges) for value in values)
        return [buckets[i] for i in range(len(aggregate.edges) + 1)]
    if isinstance(aggregate, bags.Quantile):
        return _quantile(sorted(map(float, values)), aggregate.q)
    if isinstance(aggregate, bags.TopK | bags.Mode):
        most = aggregate.k if isinstance(aggregate, bags.TopK) else 1
        ranked = sorted(_counted(feature, rows, aggregate.bound).items(), key=lambda each: (-each[1], _order(each[0])))
        top = [{"value": value, "count": count} for value, count in ranked[:most]]
        return top if isinstance(aggregate, bags.TopK) else next((each["value"] for each in top), None)
    return _by_category(feature, rows)


def _cut(value: Any) -> Any:  # noqa: ANN401
    return value[:MAX_TEXT] if isinstance(value, str) else value


def _order(value: Any) -> Any:  # noqa: ANN401
    """Ties go to the smaller number, or to the text whose code is smaller."""
    return code_of(value) if isinstance(value, str) else value


def _tile(feature: Feature, event: Event) -> Hashable:
    """What is counted by itself: an event's tile, of the exact windows a millisecond."""
    assert feature.window is not None
    hop = {"exact": 1, "tiles": feature.window.hop}.get(feature.window.kind, ENDLESS)
    return event["_partition"], event["_time"] // hop


def _counted(feature: Feature, rows: Sequence[tuple[Event, Any]], bound: int) -> dict[Any, int]:
    """How often each value came. In a tile with `bound` values a new one takes the place of the rarest."""
    assert feature.window is not None
    tiles: dict[Hashable, dict[Any, int]] = {}
    for event, value in sorted(rows, key=lambda row: row[0]["_offset"]):
        tile = tiles.setdefault(_tile(feature, event), {})
        before = 0
        if value not in tile and len(tile) >= bound and feature.window.kind != "last":
            before = tile.pop(min(tile, key=lambda each: (tile[each], _order(each))))
        tile[value] = tile.get(value, before) + 1
    total: Counter[Any] = Counter()
    for tile in tiles.values():
        total.update(tile)
    return total


def _by_category(feature: Feature, rows: Sequence[tuple[Event, Any]]) -> dict[str, Any]:
    """Counts or sums by category. A tile knows the first `bound` categories, a window shows the largest of them."""
    aggregate, window = feature.aggregate, feature.window
    assert isinstance(aggregate, bags.CountBy | bags.SumBy)
    assert window is not None
    known: dict[Hashable, set[str]] = {}
    parts: dict[str, list[Any]] = {}
    for event, value in sorted(rows, key=lambda row: row[0]["_offset"]):
        amount, category = value if isinstance(aggregate, bags.SumBy) else (1, value)
        tile = known.setdefault(_tile(feature, event), set())
        if category != aggregate.other and (len(tile) < aggregate.bound or window.kind == "last"):
            tile.add(category)
        parts.setdefault(category if category in tile else aggregate.other, []).append(amount)
    rest = parts.pop(aggregate.other, [])
    ranked = sorted(parts, key=lambda each: (-abs(float(sum(map(Fraction, parts[each])))), code_of(each)))
    rest += [amount for category in ranked[aggregate.bound :] for amount in parts[category]]
    shown = {category: parts[category] for category in ranked[: aggregate.bound]}
    return {
        category: _sum(amounts) for category, amounts in [*shown.items(), *([(aggregate.other, rest)] if rest else [])]
    }


def _quantile(ordered: Sequence[float], q: float) -> Value:
    if not ordered:
        return None
    rank = q * (len(ordered) - 1)
    low, high, part = ordered[math.floor(rank)], ordered[math.ceil(rank)], rank - math.floor(rank)
    if part == 0:
        return low
    return low + (high - low) * part if math.isfinite(high - low) else low * (1 - part) + high * part


def _sum(values: list[Any]) -> Value:
    if any(isinstance(value, float) for value in values):
        return math.fsum(values)
    return sum(values) if -(2**63) <= sum(values) < 2**63 else None


def _moment(values: Sequence[Any], power: int) -> Fraction:
    """The mean of powers of the distance from the mean."""
    mean = sum(map(Fraction, values)) / len(values)
    return Fraction(sum((Fraction(value) - mean) ** power for value in values)) / len(values)


def _variance(values: list[Any]) -> Value:
    return float(_moment(values, 2) * len(values) / (len(values) - 1)) if len(values) > 1 else None


def _deviation(values: list[Any]) -> Value:
    return math.sqrt(_moment(values, 2) * len(values) / (len(values) - 1)) if len(values) > 1 else None


def _skew(values: list[Any]) -> Value:
    if len(set(values)) < 2:
        return None
    return _signed_root(_moment(values, 3), _moment(values, 2) ** 3)


def _signed_root(numerator: Fraction, square: Fraction) -> float:
    """A numerator over the root of a square, either of which may be no float: too large, or too near to 0."""
    ratio = math.sqrt(numerator**2 / square)
    return -ratio if numerator < 0 else ratio


def _kurtosis(values: list[Any]) -> Value:
    return float(_moment(values, 4) / _moment(values, 2) ** 2 - 3) if len(set(values)) > 1 else None


def _slope(rows: Sequence[tuple[int, Any]]) -> Value:
    if len({time for time, _ in rows}) < 2:
        return None
    times, values = [Fraction(time) for time, _ in rows], [Fraction(value) for _, value in rows]
    middle, mean = sum(times) / len(times), sum(values) / len(values)
    products = sum((t - middle) * (v - mean) for t, v in zip(times, values, strict=True))
    return float(1000 * products / sum((t - middle) ** 2 for t in times))


def _correlation(pairs: list[Any]) -> Value:
    xs, ys = [Fraction(x) for x, _ in pairs], [Fraction(y) for _, y in pairs]
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    products = Fraction(sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))) / len(xs)
    return _signed_root(products, _moment(xs, 2) * _moment(ys, 2))


_FINISHES: dict[type, Callable[[list[Any]], Value]] = {  # of the values by (time, partition, offset)
    ag.Count: len,
    ag.Sum: _sum,
    ag.Mean: lambda values: float(sum(map(Fraction, values)) / len(values)) if values else None,
    ag.Std: _deviation,
    ag.Var: _variance,
    ag.Skew: _skew,
    ag.Kurtosis: _kurtosis,
    ag.Corr: _correlation,
    ag.Min: lambda values: min(values, default=None),
    ag.Max: lambda values: max(values, default=None),
    ag.Any: lambda values: any(values) if values else None,
    ag.All: lambda values: all(values) if values else None,
    ag.First: lambda values: values[0] if values else None,
    ag.Last: lambda values: values[-1] if values else None,
}
