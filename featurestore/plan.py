"""From a view to work: what the kernel keeps in each tile and how it finishes each feature.

A *lane* is one input: a column (or none, for counting rows) and the rows that `where` lets pass. A *track* is one tile
width; all windows with that width share its tiles. A tile is a row of 64-bit words: its index, then the words of its
primitives, shared by the features that need them (mean and sum share a sum, all share the lane's count).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from featurestore import aggregates
from featurestore.expressions import canonical_text

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from featurestore.aggregates import Window
    from featurestore.definitions import Feature, View

# Primitives: what a tile keeps of a lane. N comes last of a lane, since the others ask it whether they are the first.
SUM_FLOAT, SUM_INT, MIN_FLOAT, MIN_INT, MAX_FLOAT, MAX_INT, MOMENTS_FLOAT, MOMENTS_INT, FIRST, LAST, N = range(11)
WORDS = {SUM_FLOAT: 2, MOMENTS_FLOAT: 2, MOMENTS_INT: 2, FIRST: 2, LAST: 2}  # all others: 1

# Finishes: how a feature comes out of merged primitives.
COUNT, TOTAL_FLOAT, TOTAL_INT, MEAN_FLOAT, MEAN_INT, STD, VALUE, TIMED_VALUE = range(8)


class Tables(NamedTuple):
    """A plan as the kernel reads it; each row is explained by its columns."""

    tracks: NDArray[np.int64]  # hop, keep (longest window), stride (words a tile), first op, end op, most tiles
    ops: NDArray[np.int64]  # primitive, lane, word in the tile, word of the lane's N
    groups: NDArray[np.int64]  # track, window length, first output, end output, first word in the cache
    outs: NDArray[np.int64]  # finish, word, word of the lane's N, op (the one whose sum may overflow)


@dataclass(frozen=True)
class Lane:
    """One input of the fold: the values of `column` ("" for the rows themselves) where `where` holds."""

    column: str
    where: pl.Expr | None
    is_float: bool


@dataclass(frozen=True)
class Plan:
    """A view made ready to run: `outputs` are its stored features in the order in which the kernel writes them."""

    view: View
    lanes: tuple[Lane, ...]
    outputs: tuple[Feature, ...]
    tables: Tables
    checks_overflow: bool

    @property
    def cache_words(self) -> int:
        """Words that the kernel's cache of merged tiles takes, by entity and partition."""
        tables = self.tables
        last = tables.groups[-1]
        track = tables.tracks[last[0]]
        return int(last[4] + 2 + track[2] + track[4] - track[3])

    @property
    def state_words(self) -> int:
        """The most 64-bit words that one entity's state can take on one partition."""
        tracks = self.tables.tracks
        return int(3 + len(tracks) + (tracks[:, 2] * tracks[:, 5]).sum())


def compiled(view: View) -> Plan:
    """The plan of a view."""
    lanes: dict[tuple[str, str | None], int] = {}
    made: list[Lane] = []
    for feature in view.stored:
        key = _lane_key(feature)
        if key not in lanes:
            lanes[key] = len(made)
            made.append(Lane(key[0], _aggregate(feature).where, view.source.types.get(key[0]) == "float"))
    tracks, ops, words = _tracks(view, lanes, made)
    outputs, groups, outs = _outputs(view, lanes, made, words, list(words))
    tables = Tables(*(np.array(rows, np.int64).reshape(len(rows), -1) for rows in (tracks, ops, groups, outs)))
    return Plan(view, tuple(made), tuple(outputs), tables, SUM_INT in tables.ops[:, 0])


def _aggregate(feature: Feature) -> aggregates.Aggregate:
    assert feature.aggregate is not None
    return feature.aggregate


def _window(feature: Feature) -> Window:
    assert feature.window is not None
    return feature.window


def _lane_key(feature: Feature) -> tuple[str, str | None]:
    return _aggregate(feature).column, canonical_text(_aggregate(feature).where)


def _primitive(feature: Feature, is_float: bool) -> int | None:
    """What the feature needs in its tiles beside the count."""
    pairs: dict[type, tuple[int, int]] = {
        aggregates.Sum: (SUM_FLOAT, SUM_INT),
        aggregates.Mean: (SUM_FLOAT, SUM_INT),
        aggregates.Min: (MIN_FLOAT, MIN_INT),
        aggregates.Max: (MAX_FLOAT, MAX_INT),
        aggregates.Std: (MOMENTS_FLOAT, MOMENTS_INT),
        aggregates.First: (FIRST, FIRST),
        aggregates.Last: (LAST, LAST),
    }
    pair = pairs.get(type(_aggregate(feature)))
    return None if pair is None else pair[0 if is_float else 1]


def _finish(feature: Feature, is_float: bool) -> int:
    pairs: dict[type, tuple[int, int]] = {
        aggregates.Count: (COUNT, COUNT),
        aggregates.Sum: (TOTAL_FLOAT, TOTAL_INT),
        aggregates.Mean: (MEAN_FLOAT, MEAN_INT),
        aggregates.Std: (STD, STD),
        aggregates.First: (TIMED_VALUE, TIMED_VALUE),
        aggregates.Last: (TIMED_VALUE, TIMED_VALUE),
    }
    return pairs.get(type(_aggregate(feature)), (VALUE, VALUE))[0 if is_float else 1]


Places = dict[int, dict[tuple[int, int], tuple[int, int]]]  # hop -> (lane, primitive) -> (word, op)


def _tracks(
    view: View, lanes: dict[tuple[str, str | None], int], made: list[Lane]
) -> tuple[list[list[int]], list[list[int]], Places]:
    needs: dict[int, set[tuple[int, int]]] = {}
    keeps: dict[int, int] = {}
    for feature in view.stored:
        hop, lane = _window(feature).hop, lanes[_lane_key(feature)]
        keeps[hop] = max(keeps.get(hop, 0), _window(feature).length)
        primitive = _primitive(feature, made[lane].is_float)
        needs.setdefault(hop, set()).update({(lane, N)} | ({(lane, primitive)} if primitive is not None else set()))
    tracks: list[list[int]] = []
    ops: list[list[int]] = []
    words: Places = {}
    for hop in sorted(needs):
        first, word = len(ops), 1
        places: dict[tuple[int, int], tuple[int, int]] = {}
        for op, (lane, primitive) in enumerate(sorted(needs[hop]), start=first):
            places[lane, primitive] = (word, op)
            word += WORDS.get(primitive, 1)
        ops += [[primitive, lane, at, places[lane, N][0]] for (lane, primitive), (at, _) in places.items()]
        words[hop] = places
        tracks.append([hop, keeps[hop], word, first, len(ops), keeps[hop] // hop + 2])
    return tracks, ops, words


def _outputs(
    view: View, lanes: dict[tuple[str, str | None], int], made: list[Lane], words: Places, hops: list[int]
) -> tuple[list[Feature], list[list[int]], list[list[int]]]:
    by_window: dict[tuple[int, int], list[Feature]] = {}
    for feature in view.stored:
        by_window.setdefault((_window(feature).hop, _window(feature).length), []).append(feature)
    outputs: list[Feature] = []
    groups: list[list[int]] = []
    outs: list[list[int]] = []
    cached = 0
    for (hop, length), features in by_window.items():
        groups.append([hops.index(hop), length, len(outputs), len(outputs) + len(features), cached])
        cached += 2 + sum(WORDS.get(primitive, 1) + 1 for _, primitive in words[hop]) + 1
        for feature in features:
            lane = lanes[_lane_key(feature)]
            primitive = _primitive(feature, made[lane].is_float)
            n_word, n_op = words[hop][lane, N]
            word, op = (n_word, n_op) if primitive is None else words[hop][lane, primitive]
            outs.append([_finish(feature, made[lane].is_float), word, n_word, op])
            outputs.append(feature)
    return outputs, groups, outs
