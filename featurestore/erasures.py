"""Erasures: records in a topic's log that end the history of one entity on their partition.

Such a record has no value. Its header `onceflow-forget` names the entity, and its key is the entity's key, as
`keys.encode_entity` gives it. It has an offset as every record has, so that a replay knows what came before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from featurestore.definitions import View
from featurestore.errors import DataError, DefinitionError, FormatError
from featurestore.frames import entity_codes
from featurestore.joined import Joined
from featurestore.keys import decode_entity
from featurestore.plan import compiled
from featurestore.sources import Source

HEADER = "onceflow-forget"

Entities = Mapping[str, tuple[str, ...]]
"""By name the entities that a topic's events tell of, with the columns that hold their keys."""

NO_ENTITIES: Entities = MappingProxyType({})

_KINDS = {"str": str, "int": int, "timestamp[ms]": int, "bool": bool}


@dataclass(frozen=True, slots=True)
class Erasure:
    """What came before `offset`, an event's, on a partition is forgotten of one entity; `key` is encoded."""

    topic: str
    partition: int
    offset: int
    entity: str
    key: bytes


def entities_of(
    topic: str, views: Iterable[View], reads: Iterable[tuple[View, str]] = ()
) -> dict[str, tuple[str, ...]]:
    """The entities of a topic: those of its views, and those of the views that `reads` says are read at its events.

    DefinitionError: one name stands for different columns, so that an erasure would not say which of them it means.
    """
    found = [view for view in views if view.source.name == topic] + [view for view, at in reads if at == topic]
    first: dict[str, View] = {}
    for view in found:
        name, keys = view.entity.name, view.entity.keys
        other = first.setdefault(name, view)
        if other.entity.keys != keys:
            raise DefinitionError(
                f"entity {name!r} of {topic!r} has the key {', '.join(other.entity.keys)} in view {other.name!r} and "
                f"{', '.join(keys)} in view {view.name!r}: give the two entities different names"
            )
    return {name: view.entity.keys for name, view in first.items()}


def told_before(views: Sequence[View]) -> list[tuple[View, str]]:
    """The views of pairs, each with those topics the pairs are made of whose own events name the view's entity.

    Of views of such a topic itself the entity is known there already, maybe by other columns.
    """
    own = {(view.source.name, view.entity.name) for view in views}
    found = [(view, side.name) for view in views for side in _naming_sides(view.source, view.entity.keys)]
    return [(view, topic) for view, topic in found if (topic, view.entity.name) not in own]


def _naming_sides(source: Source, columns: Sequence[str]) -> Iterator[Source]:
    if isinstance(source, Joined):
        for side in source.sides:
            if all(source.comes_from(side, column) for column in columns):
                yield from (side, *_naming_sides(side, columns))


class Naming(NamedTuple):
    """Columns of a topic's records that name an entity: those that an erasure masks in the archive, and the others."""

    masked: tuple[str, ...]
    kept: tuple[str, ...]


def naming(source: Source, entity: str, views: Iterable[View], reads: Iterable[tuple[View, str]] = ()) -> Naming:
    """The columns that name an entity: its key columns, or what these are derived of.

    What views of other entities need of the events, as keys or as values, is kept: what those know must come out of a
    replay too.
    """
    views = [view for view in views if view.source.name == source.name]
    told = [(view.entity, compiled(view).columns) for view in views]
    told += [(view.entity, ()) for view, at in reads if at == source.name]
    mine = {name for own, _ in told if own.name == entity for name in own.keys}
    others = {name for own, columns in told if own.name != entity for name in (*own.keys, *columns)}
    needed = _stored(source, others) | {source.event_time}
    columns = sorted(_stored(source, mine))
    return Naming(*(tuple(each for each in columns if (each in needed) is kept) for kept in (False, True)))


def _stored(source: Source, columns: Iterable[str]) -> set[str]:
    """The columns of the source's records that these columns are, or are derived of."""
    made = {name: source.derived[name].meta.root_names() if name in source.derived else [name] for name in columns}
    return {name for roots in made.values() for name in roots}


def check_erasure(source: Source, entities: Entities, entity: bytes, key: bytes | None) -> None:
    """Raise DataError, which says why, unless header and key of a record name an entity of the source."""
    name = entity.decode(errors="replace")
    if name not in entities:
        known = ", ".join(map(repr, entities)) or "none"
        raise DataError(f"no view of {source.name!r} is about an entity {name!r}; there are {known}")
    try:
        values = decode_entity(key or b"")
    except FormatError:
        raise DataError(f"the key is not an encoded key of {name!r}, as keys in Redis are") from None
    kinds = [source.types[column] for column in entities[name]]
    if [type(value) for value in values] != [_KINDS.get(kind) for kind in kinds]:
        raise DataError(f"the key is not one of {name!r}, whose columns are {', '.join(kinds)}")


def rows_of(frame: pl.DataFrame, columns: Sequence[str], limits: Mapping[bytes, int]) -> NDArray[np.bool_]:
    """Which rows of one partition lie below the limit of their entity, which `columns` name; encoded keys -> offset."""
    codes, names = entity_codes(frame, columns)
    below = np.array([*(limits.get(name, 0) for name in names), 0], np.int64)  # the last one is for code -1
    found: NDArray[np.bool_] = frame["_offset"].to_numpy() < below[codes]
    return found
