"""From a view to work: what the kernel keeps in each tile and how it finishes each feature.

A *lane* is one input: a column (or none, for counting rows) and the rows that `where` lets pass. A *track* is one way
of keeping what came: tiles of one width, which all windows of that width share, or events, or sessions. A tile is a row
of 64-bit words: its index, then the words of its primitives, shared by the features that need them (mean and sum share
a sum, all share the lane's count).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from featurestore import aggregates as ag
from featurestore.bagging import Bag, bag_of, holds_texts, out_of
from featurestore.bags import BagAggregate
from featurestore.errors import DefinitionError
from featurestore.kernel import finishes as fin
from featurestore.kernel import layout as at
from featurestore.kernel import primitives as prim
from featurestore.kernel.windows import CACHE_HEAD
from featurestore.lanes import LaneKey, lane_key, lanes_of
from featurestore.planned import Lane, Plan
from featurestore.times import ENDLESS

if TYPE_CHECKING:
    from featurestore.aggregates import Aggregate, Window
    from featurestore.definitions import Feature, View

#: By aggregate, for floats and for whole numbers: what it needs in a tile beside the count, and how it is finished.
RECIPES: dict[type[Aggregate], tuple[tuple[int, int], tuple[int, int]]] = {
    ag.Count: ((prim.N, prim.N), (fin.COUNT, fin.COUNT)),
    ag.Sum: ((prim.SUM_FLOAT, prim.SUM_INT), (fin.TOTAL_FLOAT, fin.TOTAL_INT)),
    ag.Mean: ((prim.SUM_FLOAT, prim.SUM_INT), (fin.MEAN_FLOAT, fin.MEAN_INT)),
    ag.Min: ((prim.MIN_FLOAT, prim.MIN_INT), (fin.VALUE, fin.VALUE)),
    ag.Max: ((prim.MAX_FLOAT, prim.MAX_INT), (fin.VALUE, fin.VALUE)),
    ag.Any: ((prim.MAX_INT, prim.MAX_INT), (fin.VALUE, fin.VALUE)),
    ag.All: ((prim.MIN_INT, prim.MIN_INT), (fin.VALUE, fin.VALUE)),
    ag.Std: ((prim.MOMENTS_FLOAT, prim.MOMENTS_INT), (fin.STD, fin.STD)),
    ag.Var: ((prim.MOMENTS_FLOAT, prim.MOMENTS_INT), (fin.VAR, fin.VAR)),
    ag.Skew: ((prim.MOMENTS4_FLOAT, prim.MOMENTS4_INT), (fin.SKEW, fin.SKEW)),
    ag.Kurtosis: ((prim.MOMENTS4_FLOAT, prim.MOMENTS4_INT), (fin.KURTOSIS, fin.KURTOSIS)),
    ag.First: ((prim.FIRST, prim.FIRST), (fin.TIMED_VALUE, fin.TIMED_VALUE)),
    ag.Last: ((prim.LAST, prim.LAST), (fin.TIMED_VALUE, fin.TIMED_VALUE)),
    ag.TimeSince: ((prim.LAST, prim.LAST), (fin.SINCE, fin.SINCE)),
    ag.Rate: ((prim.SUM_FLOAT, prim.SUM_INT), (fin.RATE_FLOAT, fin.RATE_INT)),
    ag.ExpDecay: ((prim.DECAY_FLOAT, prim.DECAY_INT), (fin.DECAYED, fin.DECAYED)),
    ag.Slope: ((prim.TREND_FLOAT, prim.TREND_INT), (fin.SLOPE, fin.SLOPE)),
    ag.Corr: ((prim.PAIR, prim.PAIR), (fin.CORR, fin.CORR)),
}

# Where STATS has what these have, in words from its own first one; it also holds the count.
_SHARED = {prim.SUM_FLOAT: 1, prim.SUM_INT: 1, prim.MIN_FLOAT: 3, prim.MIN_INT: 3, prim.MAX_FLOAT: 4, prim.MAX_INT: 4}
_SHARED |= {prim.MOMENTS_FLOAT: 5, prim.MOMENTS_INT: 5, prim.N: 0}
_SUMS = {prim.SUM_FLOAT: prim.STATS_FLOAT, prim.SUM_INT: prim.STATS_INT}
_BUNDLED = {fin.COUNT: 0, fin.TOTAL_FLOAT: 1, fin.TOTAL_INT: 1, fin.MEAN_FLOAT: 2, fin.MEAN_INT: 2, fin.VALUE: 4}
_BUNDLED |= {fin.STD: 5, fin.VAR: 6}
_SIMPLE = {fin.COUNT, fin.BUNDLE_FLOAT}
_MIN = fin.BUNDLED.index("min")
_ENOUGH = 3  # so many of them with a sum become STATS: one step of the kernel instead of four
MAX_LANES = 60
"""Most inputs of a view that keeps events."""


@dataclass
class _Track:
    """A track as it is put together: the windows that it serves, and what lanes need in its tiles."""

    kind: int
    hop: int
    keep: int = 0
    limit: int = 0
    needs: set[tuple[int, int, float]] = field(default_factory=set)  # lane, primitive, what it was told
    features: list[Feature] = field(default_factory=list)
    places: dict[tuple[int, int, float], int] = field(default_factory=dict)  # by need, its first word in a tile
    acc: int = 0
    lanes: list[int] = field(default_factory=list)  # of which it keeps the values of events
    bag: Bag | None = None
    sessions: _Track | None = None  # which tell the bag or list of sessions
    bagged: list[tuple[Feature, Bag]] = field(default_factory=list)  # features that come of a bag or list


_Numbers = Mapping[LaneKey, int]


def compiled(view: View) -> Plan:
    """The plan of a view. Raises DefinitionError when it has more inputs than can be kept of an event."""
    lanes, numbers = lanes_of(view)
    tracks = _tracks(view, lanes, numbers)
    _check_lanes(view, tracks)
    ops = [_ops(track) for track in tracks]
    bags = list(dict.fromkeys(bag for track in tracks for _, bag in track.bagged))
    firsts = np.cumsum([0, *map(len, ops)]).tolist()
    rows = [
        _row(track, tracks, bags, first, end) for track, first, end in zip(tracks, firsts, firsts[1:], strict=False)
    ]
    outputs, groups, outs, cached = _outputs(tracks, lanes, numbers)
    cached = _add_bag_outputs(tracks, bags, outputs, groups, outs, cached)
    return Plan(
        view,
        tuple(lanes),
        tuple(outputs),
        tuple(rows),
        tuple(tuple(track.lanes) for track in tracks),
        tuple(tuple(_texts(track, lanes)) for track in tracks),
        tuple(bags),
        tuple(tuple(row) for part in ops for row, _ in part),
        tuple(parameter for part in ops for _, parameter in part),
        tuple(groups),
        tuple(tuple(row) for row, _ in outs),
        tuple(parameter for _, parameter in outs),
        cached,
        view.source.lateness_ms,
    )


def _aggregate(feature: Feature) -> Aggregate:
    assert feature.aggregate is not None
    return feature.aggregate


def _window(feature: Feature) -> Window:
    assert feature.window is not None
    return feature.window


def _primitive(feature: Feature, is_float: bool) -> tuple[int, int]:
    """What the feature needs in its tiles, and how it is finished."""
    aggregate = _aggregate(feature)
    primitives, finishes = RECIPES[type(aggregate)]
    if isinstance(aggregate, ag.TimeSince) and aggregate.of == "first":
        return prim.FIRST, fin.SINCE
    if isinstance(aggregate, ag.Rate) and not aggregate.column:
        return prim.N, fin.RATE_COUNT
    return (primitives[0], finishes[0]) if is_float else (primitives[1], finishes[1])


def _parameter(feature: Feature) -> float:
    """The number that the feature was told: a half-life in ms, or the length of a rate's window in seconds."""
    aggregate = _aggregate(feature)
    if isinstance(aggregate, ag.ExpDecay):
        return float(aggregate.half_life_ms)
    return _window(feature).length / 1000 if isinstance(aggregate, ag.Rate) else 0.0


def _need(feature: Feature, lanes: Sequence[Lane], lane: int) -> tuple[int, int, float]:
    """What the feature keeps in tiles: of a lane a primitive, and what that one was told."""
    primitive, _ = _primitive(feature, lanes[lane].is_float)
    return lane, primitive, _parameter(feature) if isinstance(_aggregate(feature), ag.ExpDecay) else 0.0


def _track_key(window: Window) -> tuple[int, int]:
    if window.kind == "tiles":
        return at.TILES, window.hop
    if window.kind == "session":
        return at.SESSIONS, window.length
    return (at.EVENTS, 1) if window.kind == "exact" else (at.LATEST, 1)


def _tracks(view: View, lanes: Sequence[Lane], numbers: _Numbers) -> list[_Track]:
    """The tracks: tiles, those of the shortest hop first, then the others."""
    found: dict[Hashable, _Track] = {}
    for feature in view.stored:
        window, lane = _window(feature), numbers[lane_key(feature)]
        if isinstance(_aggregate(feature), BagAggregate):
            bag = bag_of(_aggregate(feature), lane, sums_floats=lanes[min(lane + 1, len(lanes) - 1)].is_float)
            _track_bag(found, feature, bag)
            continue
        track = _tracked(found, window, view.source.lateness_ms)
        track.needs |= {(lane, prim.N, 0.0), _need(feature, lanes, lane)}
        track.features.append(feature)
    tracks = sorted(found.values(), key=lambda track: (track.kind, track.hop))
    for track in tracks:
        _place(track)
    return tracks


def _tracked(found: dict[Hashable, _Track], window: Window, lateness: int) -> _Track:
    """The track that serves the window, made when there is none."""
    track = found.setdefault(_track_key(window), _Track(*_track_key(window)))
    track.keep = max(track.keep, window.keep)
    track.limit = max(track.limit, window.length) if window.kind == "last" else 0
    if window.kind == "session":
        track.keep = window.length + lateness
    return track


def _track_bag(found: dict[Hashable, _Track], feature: Feature, bag: Bag) -> None:
    """Enter a feature that comes of a bag or list: one of events that are kept anyway, or a track of its own."""
    window = _window(feature)
    if window.kind == "last":
        track = _tracked(found, window, 0)
    else:
        kind, hop = at.LISTS if bag.is_list else at.BAGS, 1 if window.kind == "exact" else window.hop or window.length
        key = (kind, hop, window.kind == "session", bag, bag.kind == at.LASTS and window.delay > 0)
        track = found.setdefault(key, _Track(kind, hop, bag=bag))
        track.keep = max(track.keep, window.keep)
        if window.kind == "session":
            track.sessions = _tracked(found, window, feature.view.source.lateness_ms)
    track.bagged.append((feature, bag))


def _place(track: _Track) -> None:
    """Lay out the track's accumulator."""
    word = 2 if track.kind == at.SESSIONS else 1
    for lane in sorted({lane for lane, _, _ in track.needs}):
        wanted = sorted((p, parameter) for at_lane, p, parameter in track.needs if at_lane == lane)
        shared = [p for p, _ in wanted if p in _SHARED and p != prim.N]
        stats = next((_SUMS[p] for p in shared if p in _SUMS), None) if len(shared) >= _ENOUGH else None
        if stats is not None:
            wanted = sorted([*(each for each in wanted if each[0] not in _SHARED), (stats, 0.0)])
        for primitive, parameter in wanted:
            track.places[lane, primitive, parameter] = word
            if primitive == stats:
                track.places |= {(lane, p, 0.0): word + _SHARED[p] for p in [*shared, prim.N]}
            word += prim.WORDS[primitive]
    track.acc = word
    if track.kind in (at.EVENTS, at.LATEST):
        pairs = {lane + 1 for lane, primitive, _ in track.needs if primitive == prim.PAIR}
        bags = {lane for _, bag in track.bagged for lane in range(bag.lane, bag.lane + bag.words)}
        track.lanes = sorted({lane for lane, _, _ in track.needs} | pairs | bags)


def _check_lanes(view: View, tracks: Sequence[_Track]) -> None:
    for track in tracks:
        if len(track.lanes) > MAX_LANES:
            raise DefinitionError(
                f"View {view.name!r}: it has {len(track.lanes)} inputs over windows that keep events, at most "
                f"{MAX_LANES}; split it"
            )


def _ops(track: _Track) -> list[tuple[list[int], float]]:
    """The track's rows of ops, each with what it was told."""
    rows = []
    for (lane, primitive, parameter), word in sorted(track.places.items()):
        if primitive in _SHARED and _stats(track, lane) is not None:
            continue  # STATS does it
        place = track.lanes.index(lane) if track.lanes else 0
        row = [primitive, lane, word, track.places[lane, prim.N, 0.0], prim.WORDS[primitive], place]
        rows.append((row, parameter))
    return rows


def _stats(track: _Track, lane: int) -> int | None:
    """The track's STATS primitive of the lane, if it has one."""
    return next((p for p in (prim.STATS_FLOAT, prim.STATS_INT) if (lane, p, 0.0) in track.places), None)


def _row(track: _Track, tracks: Sequence[_Track], bags: Sequence[Bag], first: int, end: int) -> tuple[int, ...]:
    stride = 2 + len(track.lanes) if track.lanes else track.acc
    numbers, span = (0, 0), track.hop
    if track.bag is not None:
        stride = track.bag.stride
        numbers = (1 + bags.index(track.bag), 1 + tracks.index(track.sessions) if track.sessions else 0)
        delayed = any(_window(feature).delay for feature, _ in track.bagged)
        # The last values of all time are the last of a window that ends now.
        span = ENDLESS if track.bag.kind == at.LASTS and not delayed else track.hop
    return track.kind, track.hop, track.keep, stride, first, end, track.acc, track.limit, 0, 0, 0, *numbers, span


def _texts(track: _Track, lanes: Sequence[Lane]) -> list[int]:
    """The places of codes of texts in the track's tiles or records."""
    if track.bag is not None:
        return [1] if holds_texts(lanes[track.bag.lane].coding) else []
    if track.lanes:
        return [2 + place for place, lane in enumerate(track.lanes) if holds_texts(lanes[lane].coding)]
    return sorted(
        word + 1
        for (lane, primitive, _), word in track.places.items()
        if primitive in (prim.FIRST, prim.LAST) and holds_texts(lanes[lane].coding)
    )


def _windows(track: _Track) -> list[tuple[int, int]]:
    return list(dict.fromkeys((_window(feature).length, _window(feature).delay) for feature in track.features))


def _outputs(
    tracks: Sequence[_Track], lanes: Sequence[Lane], numbers: _Numbers
) -> tuple[list[Feature], list[tuple[int, ...]], list[tuple[list[int], float]], int]:
    """The features in order of writing, the rows of groups and outs, and the words of a slot's cache."""
    outputs: list[Feature] = []
    groups: list[tuple[int, ...]] = []
    outs: list[tuple[list[int], float]] = []
    cached = 0
    for number, track in enumerate(tracks):
        for length, delay in _windows(track):
            mine = [f for f in track.features if (_window(f).length, _window(f).delay) == (length, delay)]
            rows = _outs(track, mine, lanes, numbers, len(outputs))
            simple = not delay and track.kind == at.TILES and {row[0] for row, _ in rows} <= _SIMPLE
            ends = (len(outs), len(outs) + len(rows))
            groups.append((number, length, delay, *ends, cached, _block(track, length), simple, 0, 0))
            cached += CACHE_HEAD + 2 * track.acc
            outs += rows
            outputs += mine
    return outputs, groups, outs, cached


def _add_bag_outputs(
    tracks: Sequence[_Track],
    bags: Sequence[Bag],
    outputs: list[Feature],
    groups: list[tuple[int, ...]],
    outs: list[tuple[list[int], float]],
    cached: int,
) -> int:
    """Add those features that come of bags and lists, a group for each bag of a window; the words of a slot's cache.

    `cached` are those that come before.
    """
    nothing = [-1] * (len(fin.BUNDLED) - 1)
    for number, track in enumerate(tracks):
        for bag, length, delay in dict.fromkeys((b, _window(f).length, _window(f).delay) for f, b in track.bagged):
            first, place = len(outs), track.lanes.index(bag.lane) if track.lanes else 0
            for feature, of in track.bagged:
                if of == bag and (_window(feature).length, _window(feature).delay) == (length, delay):
                    row, parameter = out_of(feature)
                    outs.append(([*row, 0, len(outputs), *nothing], parameter))
                    outputs.append(feature)
            groups.append((number, length, delay, first, len(outs), cached, 0, 0, 1 + bags.index(bag), place))
            cached += at.BAG_HEAD
    return cached


def _block(track: _Track, length: int) -> int:
    """The distance of boundaries: the window's length in tiles, or in ms."""
    if track.kind != at.TILES:
        return length
    return 1 << 40 if length == ENDLESS else -(-length // track.hop) + 1


def _outs(
    track: _Track, features: Sequence[Feature], lanes: Sequence[Lane], numbers: _Numbers, first: int
) -> list[tuple[list[int], float]]:
    """A window's rows of outs, each with what it was told; all that comes of one STATS primitive is one row."""
    rows: list[tuple[list[int], float]] = []
    bundles: dict[int, list[int]] = {}
    nothing = [-1] * len(fin.BUNDLED)
    for j, feature in enumerate(features, first):
        lane = numbers[lane_key(feature)]
        primitive, finish = _primitive(feature, lanes[lane].is_float)
        stats, column = _stats(track, lane), _BUNDLED.get(finish)
        if stats is not None and column is not None:
            if lane not in bundles:
                code = fin.BUNDLE_FLOAT if stats == prim.STATS_FLOAT else fin.BUNDLE_INT
                bundles[lane] = [code, track.places[lane, stats, 0.0], 0, 0, *nothing]
                rows.append((bundles[lane], 0.0))
            column = _MIN if primitive in (prim.MIN_FLOAT, prim.MIN_INT) else column
            if bundles[lane][at.OUTPUT + column] < 0:
                bundles[lane][at.OUTPUT + column] = j
                continue
        words = [track.places[_need(feature, lanes, lane)], track.places[lane, prim.N, 0.0]]
        rows.append(([finish, *words, 0, j, *nothing[1:]], _parameter(feature)))
    return rows
