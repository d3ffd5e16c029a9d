"""Records in the wire format of Confluent's schema registry: a zero, four bytes that name a schema, and the content.

Avro and Protobuf are read with the schema that they were written with. What readers want is the source's schema:
fields that were added are ignored, those that are gone are null, and those that were renamed are found by
`Source(fields=...)`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import msgspec
import numpy as np

from featurestore.protobuf import Messages
from featurestore.values import Values

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

Loads = Callable[[bytes], Any]
NO_SCHEMAS: Mapping[int, Loads] = MappingProxyType({})
NO_IMPORTS: Mapping[str, str] = MappingProxyType({})

HEAD = 5
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - local timestamps of Avro have no zone
_MILLISECOND = timedelta(milliseconds=1)


class Schemas(Protocol):
    """Where schemas are known."""

    def loaders(self, ids: Collection[int]) -> Mapping[int, Loads]:
        """What reads the content of records, by schema; those that nobody knows are left out.

        Raises UnavailableError when they cannot be asked for.
        """


class SchemaError(msgspec.DecodeError):
    """A record whose content cannot be told from its schema."""


def ids_of(values: Sequence[bytes | None]) -> set[int]:
    """The schemas that records name."""
    return distinct(numbers_of(Values.of(values))) - {-1}


def numbers_of(values: Values[bytes | None]) -> NDArray[np.int64]:
    """The schema that each record names, or -1."""
    rows = np.flatnonzero(values.lengths >= HEAD)
    starts = values.starts[rows]
    named = np.zeros(len(rows), np.int64)
    for place in range(1, HEAD):
        named = named << 8 | values.buffer[starts + place]
    ids = np.full(len(values), -1, np.int64)
    ids[rows] = np.where(values.buffer[starts] == 0, named, -1)
    return ids


def distinct(ids: NDArray[np.int64]) -> set[int]:
    """The numbers among these, which most often are all the same."""
    return {int(ids[0])} if len(ids) and (ids == ids[0]).all() else set(np.unique(ids).tolist())


def loads_by(loaders: Mapping[int, Loads]) -> Loads:
    """What reads records of the wire format, given what reads their content."""

    def loads(value: bytes) -> Any:  # noqa: ANN401
        if len(value) < HEAD or value[0] != 0:
            raise SchemaError("it does not begin as records of the schema registry do: with a zero and an id")
        number = int.from_bytes(value[1:HEAD], "big")
        if number not in loaders:
            raise SchemaError(f"the schema registry has no usable schema {number}")
        return loaders[number](value[HEAD:])

    return loads


def loader_of(kind: str, text: str, imports: Mapping[str, str] = NO_IMPORTS) -> Loads:
    """What reads content by a schema: "AVRO", "JSON" or "PROTOBUF", and its text. ValueError: it cannot be used.

    `imports` has the texts of the schemas that it refers to, by name, each after those that it refers to itself.
    """
    if kind == "JSON":
        return msgspec.json.decode
    if kind == "AVRO":
        return _avro(text, imports)
    if kind == "PROTOBUF":
        return Messages(text, imports)
    raise ValueError(f"schemas of type {kind} are not supported; AVRO, JSON and PROTOBUF are")


def _avro(text: str, imports: Mapping[str, str]) -> Loads:
    import fastavro  # noqa: PLC0415 - most have no use for it
    from fastavro.schema import SchemaParseException, UnknownType  # noqa: PLC0415

    named: dict[str, Any] = {}
    try:
        for each in (*imports.values(), text):
            schema = fastavro.parse_schema(json.loads(each), named)
    except (SchemaParseException, UnknownType, json.JSONDecodeError) as error:
        raise ValueError(f"it is no Avro schema: {error}") from error

    def loads(content: bytes) -> Any:  # noqa: ANN401
        stream = io.BytesIO(content)
        try:
            found = fastavro.schemaless_reader(stream, schema, None)
        except (EOFError, IndexError, ValueError, KeyError, OverflowError, TypeError, StopIteration) as error:
            raise SchemaError(f"it is not as its schema says: {error or type(error).__name__}") from error
        if stream.tell() != len(content):
            raise SchemaError("it is longer than its schema says")
        return plain(found)

    return loads


def plain(value: Any) -> Any:  # noqa: ANN401 - one type after another
    """What Avro's logical types stand for: times as milliseconds since the epoch, decimals as floats."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, datetime):
        return (value.replace(tzinfo=None) - _EPOCH) // _MILLISECOND
    if isinstance(value, date):
        return (datetime(value.year, value.month, value.day) - _EPOCH) // _MILLISECOND  # noqa: DTZ001
    if isinstance(value, Decimal):
        return float(value)
    return str(value) if isinstance(value, UUID) else value
