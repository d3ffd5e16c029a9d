"""Pairs of two sources' events as a source of their own: what it is called, what it holds, and when it can work.

`pairing` makes the pairs. To all else a joined source is a topic like any other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.errors import DefinitionError
from featurestore.expressions import Expressions, canonical_text, closest
from featurestore.sources import Source
from featurestore.times import milliseconds

ID, TIME = "pair_id", "pair_at"
"""The two columns that a pair has of its own: `partition:left offset:right offset`, and the later of both times."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Joined(Source):
    """The pairs of an event of `left` and one of `right` with the same key, at most `within_ms` apart.

    `names` maps each column of the right to the name that it has here.
    """

    left: Source
    right: Source
    within_ms: int
    names: Mapping[str, str]

    @property
    def sides(self) -> tuple[Source, Source]:
        """What it is joined of: left, then right."""
        return self.left, self.right

    def comes_from(self, side: Source, column: str) -> bool:
        """Whether a column is one of a side's, by the same name."""
        if side is self.right:
            return column in self.keys or self.names.get(column) == column
        return column in self.schema and column in side.types and column not in (ID, TIME)

    @property
    def fingerprint(self) -> str:
        """A hash of all that its pairs depend on."""
        made = {"format": 1, "left": _described(self.left), "right": _described(self.right)}
        told = json.dumps({**made, "name": self.name, "within": self.within_ms}, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:12]


def joined(
    left: Source,
    right: Source,
    on: str | Sequence[str],
    within: str,
    *,
    name: str | None = None,
    derive: Mapping[str, Expressions] | None = None,
    dedup: int = 1_000_000,
) -> Joined:
    """The inner join of two sources (see `Source.join`); DefinitionError where it cannot work."""
    keys = (on,) if isinstance(on, str) else tuple(on)
    topic = f"{left.name}.{right.name}" if name is None else name
    here = f"Join {topic!r} of {left.name!r} and {right.name!r}"
    try:
        apart = milliseconds(within)
    except DefinitionError as error:
        raise DefinitionError(f"{here}, within: {error}") from None
    _check_sides(here, left, right, keys)
    schema = {column: left.types[column] for column in (*keys, *_taken(left, keys))}
    names = {}
    for column in _taken(right, keys):
        new = column
        while new in schema:
            new += "_right"
        names[column], schema[new] = new, right.types[column]
    if taken := {ID, TIME} & schema.keys():
        raise DefinitionError(
            f"{here}: {min(taken)!r} is a column that a pair has of its own; rename that of the source"
        )
    return Joined(
        topic,
        {ID: "str", TIME: "timestamp[ms]", **schema},
        event_time=TIME,
        key=keys,
        # A pair that is made late has an event that came so late, or one of a topic that is behind.
        lateness=f"{apart + max(left.lateness_ms, right.lateness_ms)}ms",
        max_lead=max(left, right, key=lambda side: side.max_lead_ms).max_lead,
        derive=derive or {},
        partitioner=left.partitioner or right.partitioner,
        id=ID,
        dedup=dedup,
        left=left,
        right=right,
        within_ms=apart,
        names=names,
    )


def _check_sides(here: str, left: Source, right: Source, keys: Sequence[str]) -> None:
    if left.name == right.name:
        raise DefinitionError(f"{here}: they are one topic; join two")
    for side in (left, right):
        for column in keys:
            if column not in side.types:
                raise DefinitionError(f"{here}: {side.name!r} has no column {column!r}; {closest(column, side.types)}")
        if side.keys != keys:
            raise DefinitionError(
                f"{here}: {side.name!r} is keyed by {', '.join(side.keys)}, and pairs are made within a partition; "
                f"key both topics by {', '.join(keys)}"
            )
    for column in keys:
        kinds = left.types[column], right.types[column]
        if kinds[0] != kinds[1] or "float" in kinds:
            raise DefinitionError(
                f"{here}: {column!r} is {kinds[0]} and {kinds[1]}; keys are of one type, and no floats"
            )
    if left.partitioner and right.partitioner and left.partitioner != right.partitioner:
        raise DefinitionError(
            f"{here}: {left.partitioner} and {right.partitioner} put a key into different partitions; "
            "let the producers of both topics use one partitioner"
        )


def _taken(side: Source, keys: Sequence[str]) -> list[str]:
    """The columns that a pair takes over: of an event that is a pair itself, not its id and time."""
    own = (ID, TIME) if isinstance(side, Joined) else ()
    return [column for column in side.types if column not in (*keys, *own)]


def _described(side: Source) -> list[Any]:
    derived = {name: canonical_text(expression) for name, expression in side.derived.items()}
    inner = side.fingerprint if isinstance(side, Joined) else None
    return [side.name, side.schema, side.event_time, side.keys, side.lateness_ms, derived, inner]
