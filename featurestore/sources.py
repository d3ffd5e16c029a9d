"""Where events come from and what they are about: topics and entities."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import polars as pl

from featurestore.errors import DefinitionError
from featurestore.expressions import TYPES, Expressions, by_name, checked_type, closest
from featurestore.times import milliseconds

if TYPE_CHECKING:
    from featurestore.joined import Joined

PARTITIONERS = ("murmur2", "crc32")
FORMATS = ("json", "msgpack", "csv", "arrow", "avro", "json_schema", "protobuf")

ROW_BITS = 20
"""Of the offset of an event whose record holds several: it is the record's, shifted, and the event's row in it."""
MAX_ROWS = 1 << ROW_BITS
"""Most events in one record."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,200}")
_PYTHON_TYPES = {str: "str", int: "int", float: "float", bool: "bool"}


@dataclass(frozen=True, eq=False)
class Source:
    """A Kafka topic and how to read it.

    `schema` maps columns to str, int, float, bool or "timestamp[ms]" (an integer of epoch milliseconds). `event_time`
    and the `key` columns must be there in every event; any other column may be null. `lateness` is how long an event
    may come after newer ones of its partition and still be folded; an event more than `max_lead` in the future is
    quarantined. `derive` adds columns computed per row by Polars expressions. `partitioner` names the one that
    producers use, so that a lookup by key reads one partition, and one more for each of `grown_from`: the numbers of
    partitions that the topic had before some were added.

    `format` is that of a record: "json", "msgpack", "csv" (a line, its fields in the schema's order), or "arrow" (a
    stream of Arrow's IPC format, each row of which is an event); "avro", "json_schema" and "protobuf" are those of
    Confluent's wire format, whose schemas a registry has. `fields` says where a column is found that does not go by its
    own name: the path to it, such as "payment.amount", or several, of which the first that is there counts. `headers`
    names the record header that holds a column which is not in the record itself.

    `id` is a column that tells events apart, text or integers: an event whose id one of the `dedup` records before it
    in its partition bore is a repeat, and left out (see `repeats.Repeats`).
    """

    name: str
    schema: Mapping[str, Any]
    event_time: str
    key: str | Sequence[str]
    lateness: str = "10m"
    max_lead: str = "5m"
    derive: Mapping[str, Expressions] = field(default_factory=dict)
    partitioner: str | None = None
    grown_from: Sequence[int] = ()
    format: str = "json"
    fields: Mapping[str, Sequence[str] | str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    id: str | None = None
    dedup: int = 1_000_000

    paths: dict[str, tuple[str, ...]] = field(init=False)  # by column, where it is found in a record
    types: dict[str, str] = field(init=False)  # schema columns, then derived ones
    derived: dict[str, pl.Expr] = field(init=False)
    keys: tuple[str, ...] = field(init=False)
    lateness_ms: int = field(init=False)
    max_lead_ms: int = field(init=False)

    def __post_init__(self) -> None:
        here = f"Source {self.name!r}"
        if not _TOPIC.fullmatch(self.name):
            raise DefinitionError(f"{here}: a topic name has 1 to 200 letters, digits, '.', '_' and '-'")
        types = {column: _canonical_type(kind, f"{here}, column {column!r}") for column, kind in self.schema.items()}
        keys = (self.key,) if isinstance(self.key, str) else tuple(self.key)
        if not keys:
            raise DefinitionError(f"{here}: it has no key; name the column that its records are keyed by")
        for column in (self.event_time, *keys, *([] if self.id is None else [self.id])):
            if column not in types:
                raise DefinitionError(f"{here}: there is no column {column!r}; {closest(column, types)}")
        if types[self.event_time] not in ("timestamp[ms]", "int"):
            raise DefinitionError(f'{here}: event time {self.event_time!r} must be "timestamp[ms]" in the schema')
        if self.partitioner not in (None, *PARTITIONERS):
            raise DefinitionError(f"{here}: partitioner must be one of {', '.join(PARTITIONERS)}, or left out")
        if self.id is not None and types[self.id] not in ("str", "int"):
            raise DefinitionError(f"{here}: id {self.id!r} must be str or int in the schema, not {types[self.id]}")
        if not isinstance(self.dedup, int) or self.dedup < 1:
            raise DefinitionError(f"{here}: dedup says how many records back an id counts, not {self.dedup!r}")
        if self.grown_from and self.partitioner is None:
            raise DefinitionError(f"{here}: without a partitioner all partitions are read; leave grown_from out")
        if not all(isinstance(count, int) and count > 0 for count in self.grown_from):
            raise DefinitionError(
                f"{here}: grown_from lists numbers of partitions, such as [4], not {self.grown_from!r}"
            )
        if self.format not in FORMATS:
            raise DefinitionError(f"{here}: format must be one of {', '.join(FORMATS)}, not {self.format!r}")
        if self.fields and self.format == "csv":
            raise DefinitionError(f"{here}: lines of CSV have no names; leave `fields` out, and order the schema")
        for column in self.fields:
            if column not in types:
                raise DefinitionError(f"{here}, fields: there is no column {column!r}; {closest(column, types)}")
        for column in self.headers:
            if column not in types:
                raise DefinitionError(f"{here}, headers: there is no column {column!r}; {closest(column, types)}")
            if column in (self.event_time, *keys, *self.fields):
                raise DefinitionError(f"{here}, headers: {column!r} is in the record itself; leave it out")
        paths = {name: (path,) if isinstance(path, str) else tuple(path) for name, path in self.fields.items()}
        object.__setattr__(self, "paths", {name: paths.get(name, (name,)) for name in types})
        object.__setattr__(self, "schema", dict(types))
        derived: dict[str, pl.Expr] = {}
        for column, expression in (pair for name, made in self.derive.items() for pair in by_name(name, made).items()):
            if column in types:
                raise DefinitionError(f"{here}: derived column {column!r} is already there; choose another name")
            types[column] = checked_type(expression, types, f"{here}, derived column {column!r}")
            derived[column] = expression
        for column in types:
            if not _NAME.fullmatch(column):
                raise DefinitionError(f"{here}: column {column!r} must be a name of letters, digits and '_'")
        object.__setattr__(self, "types", types)
        object.__setattr__(self, "derived", derived)
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "lateness_ms", milliseconds(self.lateness))
        object.__setattr__(self, "max_lead_ms", milliseconds(self.max_lead))

    @property
    def registered(self) -> bool:
        """Whether records name schemas that a registry has."""
        return self.format in ("avro", "json_schema", "protobuf")

    @cached_property
    def body(self) -> Source:
        """What of the source is in the records themselves."""
        schema = {name: kind for name, kind in self.schema.items() if name not in self.headers}
        return replace(self, schema=schema, headers={}, derive={}, id=None)

    @property
    def row_bits(self) -> int:
        """By how many bits an event's offset is the record's, shifted."""
        return ROW_BITS if self.format == "arrow" else 0

    def grid(self, records: int) -> int:
        """How many offsets a file of the offline store spans, for topics of which it is to span so many records."""
        return max(records >> 10, 1) << ROW_BITS if self.row_bits else records

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that no event may lack."""
        return (self.event_time, *self.keys)

    def join(
        self,
        other: Source,
        on: str | Sequence[str],
        within: str,
        *,
        name: str | None = None,
        derive: Mapping[str, Expressions] | None = None,
        dedup: int = 1_000_000,
    ) -> Joined:
        """The source of all pairs of an event of this one and one of the other with equal `on`, `within` each other.

        It is a topic of its own, `<this>.<other>` if `name` does not say otherwise, to which a worker writes an event a
        pair. `on` is the key of both topics, which need as many partitions. Columns keep their names, but those of the
        other that are there already get "_right" behind them; `pair_at` is the event time, the later of the two, and
        `pair_id`, its `id`, tells pairs apart. An event that is later than its source's lateness is in no pair.

        A worker that dies makes the pairs of its last turn again: `dedup` is to be twice what a turn makes, at least.
        `derive` adds columns.
        """
        from featurestore.joined import joined  # noqa: PLC0415 - what it makes is a kind of this class

        return joined(self, other, on, within, name=name, derive=derive, dedup=dedup)


def _canonical_type(kind: object, where: str) -> str:
    name = _PYTHON_TYPES.get(kind, kind) if isinstance(kind, type) else kind
    if not isinstance(name, str) or name not in TYPES:
        raise DefinitionError(f'{where}: {kind!r} is no column type; use str, int, float, bool or "timestamp[ms]"')
    return name


@dataclass(frozen=True)
class Entity:
    """What features are about: a name and the column or columns that tell one from another."""

    name: str
    key: str | Sequence[str]

    def __post_init__(self) -> None:
        if not self.keys:
            raise DefinitionError(f"Entity {self.name!r}: it has no key; name the column or columns that identify it")

    @property
    def keys(self) -> tuple[str, ...]:
        """The key columns."""
        return (self.key,) if isinstance(self.key, str) else tuple(self.key)
