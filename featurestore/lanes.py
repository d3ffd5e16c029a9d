"""The lanes of a view: each input of its aggregates once, however many features take it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from featurestore.bagging import Coding, coding_of
from featurestore.bags import SumBy
from featurestore.expressions import canonical_text
from featurestore.planned import Lane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from featurestore.aggregates import Aggregate
    from featurestore.definitions import Feature, View

LaneKey: TypeAlias = "tuple[str, str | None, str, Coding]"


def lane_key(feature: Feature) -> LaneKey:
    """What the feature takes: a column, under which condition, with which other column, and how it becomes words."""
    aggregate = feature.aggregate
    assert aggregate is not None
    first, second = (*aggregate.columns, "", "")[:2]
    if isinstance(aggregate, SumBy):
        first, second = second, first  # the category is the key
    return first, canonical_text(aggregate.where), second, coding_of(feature)


def lanes_of(view: View) -> tuple[list[Lane], Mapping[LaneKey, int]]:
    """The lanes, and the number of each; the two of a pair follow each other."""
    lanes: list[Lane] = []
    numbers: dict[LaneKey, int] = {}
    for feature in view.stored:
        key = lane_key(feature)
        if key not in numbers:
            numbers[key] = len(lanes)
            assert feature.aggregate is not None
            lanes += _new_lanes(view.source.types, feature.aggregate, key)
    return lanes, numbers


def _new_lanes(types: Mapping[str, str], aggregate: Aggregate, key: LaneKey) -> list[Lane]:
    column, _, other, coding = key
    where = aggregate.where
    if not other:
        return [Lane(column, where, not coding and types.get(column) == "float", "", coding)]
    if isinstance(aggregate, SumBy):
        return [Lane(column, where, False, other, coding), Lane(other, where, types[other] == "float", column)]
    return [Lane(column, where, True, other), Lane(other, where, True, column)]
