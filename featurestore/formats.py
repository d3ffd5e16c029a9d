"""What a record looks like on its topic: JSON, MessagePack, lines of CSV, or Arrow with many events in one record.

`decode` gives the same columns for the same events in any of them, by the rules that `decoding` states for JSON: types
are exact, what is required must be there, numbers are finite, and what breaks a rule is set apart with its reason.
Fields of nested records are found by their paths; of a name that is there twice the last value counts.
"""

from __future__ import annotations

import csv
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl

from featurestore.arrow import decode_arrow
from featurestore.confluent import HEAD, NO_SCHEMAS, Loads, distinct, loads_by, numbers_of
from featurestore.decoding import (
    MAX_BYTES,
    MAX_KEY,
    MAX_TIME,
    Decoded,
    Reject,
    beyond_limits,
    decode_each,
    decode_json,
    event_type,
    joined,
    set_apart,
    value_of,
)
from featurestore.headers import decode_headers
from featurestore.messages import read
from featurestore.parsing import MAX_COLUMNS, columns_of, names_of
from featurestore.protobuf import Messages, compiler
from featurestore.values import Values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from featurestore.decoding import Wrong
    from featurestore.headers import Headers
    from featurestore.sources import Source


def decode(
    source: Source,
    values: Sequence[bytes | None],
    schemas: Mapping[int, Loads] = NO_SCHEMAS,
    headers: Sequence[Headers] | None = None,
) -> Decoded:
    """Decode the records of a source; nothing in `values` raises (see `decoding.decode_json`).

    `schemas` has what reads the records' content where they name schemas (see `confluent.ids_of`). `headers` are those
    of each record, where the source has columns in them.
    """
    if not source.headers:
        return _decoded(source, values, schemas)
    assert headers is not None, f"{source.name} has columns in headers"
    kinds = {name: source.schema[name] for name in source.headers}
    outer = _finite(kinds, decode_headers(kinds, source.headers, headers))
    inner = _decoded(source.body, Values.of(values).taken(outer.rows), schemas)
    frame = inner.frame.hstack(outer.frame[inner.rows]).select(*source.schema)
    rejects = [reject._replace(row=int(outer.rows[reject.row])) for reject in inner.rejects]
    return Decoded(frame, outer.rows[inner.rows], sorted([*outer.rejects, *rejects]), inner.places)


def _decoded(source: Source, values: Sequence[bytes | None], schemas: Mapping[int, Loads]) -> Decoded:
    if source.format == "json" and not source.fields:
        return decode_json(source.schema, source.required, source.event_time, values)
    if source.format == "arrow":
        return _finite(source.schema, decode_arrow(source, values))
    loads = _loader(source, schemas)
    if source.format == "protobuf" and len(source.schema) <= MAX_COLUMNS:
        return _finite(source.schema, _by_message(source, Values.of(values), schemas, loads))
    return _finite(source.schema, _by_record(source, values, loads))


def check_installed(source: Source) -> None:
    """ConfigError: what reads the source's format is not installed here."""
    if source.format == "protobuf":
        compiler()


def _loader(source: Source, schemas: Mapping[int, Loads]) -> Loads:
    """What makes a flat object of a record, by column."""
    if source.format == "csv":
        return partial(_line, tuple(source.schema.items()))
    loads: Loads = msgspec.json.decode if source.format == "json" else msgspec.msgpack.decode
    if source.registered:
        loads = loads_by(schemas)
    paths = [(name, [path.split(".") for path in ways]) for name, ways in source.paths.items()]
    return lambda value: _flat(paths, loads(value))


def _by_record(source: Source, values: Sequence[bytes | None], loads: Loads) -> Decoded:
    kind = event_type(tuple(source.schema.items()), frozenset(source.required), source.event_time)
    beyond = beyond_limits if source.format == "json" else _oversized
    return decode_each(source.schema, values, lambda text: msgspec.convert(loads(text), kind), beyond)


def _by_message(source: Source, values: Values[bytes | None], schemas: Mapping[int, Loads], loads: Loads) -> Decoded:
    """As `_by_record`, but what is plain in compiled code."""
    limits = (MAX_TIME, MAX_BYTES, MAX_KEY)
    names = names_of(tuple(source.schema.items()), frozenset(source.required), source.event_time, limits)
    ids, parts, rest = numbers_of(values), [], np.ones(len(values), np.bool_)
    for number in sorted(distinct(ids)):
        messages, first = schemas.get(number), values[int(np.argmax(ids == number))]
        if isinstance(messages, Messages) and first is not None:
            shape = messages.shape(first[:HEAD], first[HEAD:], source.schema, source.paths)
            if shape is not None:
                found = read(values, names, shape)
                parts.append((np.flatnonzero(found.taken), columns_of(source.schema, names, found, values)))
                rest &= ~found.taken
    left = np.flatnonzero(rest)
    if len(parts) == 1 and not len(left):
        return Decoded(parts[0][1], np.arange(len(values), dtype=np.int64), [])
    return joined(parts, left, _by_record(source, values.taken(left), loads))


def _oversized(texts: list[bytes]) -> list[Reject]:
    detail = f"bytes, at most {MAX_BYTES} are accepted"
    sizes = enumerate(map(len, texts))
    return [Reject(row, "oversized", f"{size} {detail}") for row, size in sizes if size > MAX_BYTES]


def _finite(schema: Mapping[str, str], decoded: Decoded) -> Decoded:
    """Without the events that hold an infinity; NaN, which some formats can write, counts as null."""
    floats = [name for name, kind in schema.items() if kind == "float"]
    frame = decoded.frame.with_columns(pl.col(floats).fill_nan(None)) if floats else decoded.frame
    return set_apart(decoded._replace(frame=frame), _infinite(frame, floats))


def _infinite(frame: pl.DataFrame, floats: Sequence[str]) -> Iterator[Wrong]:
    for name in floats:
        yield "range", f"{name!r} is infinite", frame[name].is_infinite().fill_null(False).to_numpy()


def _flat(paths: Sequence[tuple[str, Sequence[Sequence[str]]]], record: object) -> object:
    """The columns that a record has; what is no object, as it is."""
    if not isinstance(record, dict):
        return record
    out: dict[str, object] = {}
    for name, ways in paths:
        for way in ways:
            *inner, last = way
            found: Any = record
            for step in inner:
                found = found.get(step) if isinstance(found, dict) else None
            if isinstance(found, dict) and last in found:
                out[name] = found[last]
                if found[last] is not None:
                    break
    return out


def _line(columns: tuple[tuple[str, str], ...], value: bytes) -> dict[str, object]:
    """A line of CSV as an object: nothing is null."""
    rows = list(csv.reader([value.decode().removesuffix("\n").removesuffix("\r")], strict=True))
    if len(rows) != 1 or len(rows[0]) != len(columns):
        raise msgspec.DecodeError(f"a line of {len(columns)} fields is expected")
    parsed = ((name, value_of(kind, text)) for (name, kind), text in zip(columns, rows[0], strict=True))
    return {name: found for name, found in parsed if found is not None}
