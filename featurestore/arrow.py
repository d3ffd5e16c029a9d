"""Records that are Arrow IPC streams: each row is an event, and values never become Python objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.decoding import MAX_DETAIL, MAX_KEY, MAX_TIME, Decoded, Reject, set_apart
from featurestore.expressions import TYPES
from featurestore.sources import MAX_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from featurestore.decoding import Wrong
    from featurestore.sources import Source

MAX_MESSAGE_BYTES = 64 << 20
"""Bytes that the columns of one record may have; dictionaries and compression could make gigabytes of little."""


def decode_arrow(source: Source, values: Sequence[bytes | None]) -> Decoded:
    """Decode records; `places` says which row of its record an event is."""
    tables: list[pa.Table] = []
    rows: list[int] = []
    rejects = []
    for row, value in enumerate(values):
        found = _table(source, row, value)
        if isinstance(found, Reject):
            rejects.append(found)
        else:
            tables.append(found)
            rows.append(row)
    lengths = np.fromiter(map(len, tables), np.int64, len(tables))
    record = np.repeat(np.array(rows, np.int64), lengths)
    place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    frame = pl.DataFrame(pa.concat_tables(tables)) if tables else _nothing(source)
    return set_apart(Decoded(frame, record, rejects, place), _wrong(source, frame))


def _nothing(source: Source) -> pl.DataFrame:
    return pl.DataFrame(schema={name: TYPES[kind] for name, kind in source.schema.items()})


def _table(source: Source, row: int, value: bytes | None) -> pa.Table | Reject:
    """The columns of a record, or why it has none."""
    if value is None:
        return Reject(row, "tombstone", "the record has no value")
    try:
        table = pa.ipc.open_stream(value).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        return Reject(row, "malformed", str(error)[:MAX_DETAIL])
    if len(table) > MAX_ROWS or table.nbytes > MAX_MESSAGE_BYTES:
        return Reject(row, "oversized", f"{len(table)} rows of {table.nbytes} bytes in one record")
    columns = {}
    for name, kind in source.schema.items():
        column = _column(table, source.paths[name])
        if column is None:
            if name in source.required:
                return Reject(row, "missing", f"there is no column {name!r}")
            column = pa.nulls(len(table))
        cast = _cast(column, kind)
        if cast is None:
            return Reject(row, "type", f"column {name!r} should be {kind}, it is {column.type}")
        columns[name] = cast
    return pa.table(columns)


def _column(table: pa.Table, paths: Sequence[str]) -> pa.ChunkedArray | None:
    """The first column that one of the paths leads to."""
    for path in paths:
        head, *rest = path.split(".")
        found = table[head] if table.schema.get_field_index(head) >= 0 else None
        for step in rest:
            inside = found is not None and pa.types.is_struct(found.type) and found.type.get_field_index(step) >= 0
            found = pc.struct_field(found, step) if inside else None
        if found is not None:
            return found
    return None


def _cast(column: pa.ChunkedArray, kind: str) -> pa.ChunkedArray | None:
    """The column in the type of the schema, if that is the same thing said in other bits."""
    given = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    allowed, wanted = _KINDS[kind]
    if not (pa.types.is_null(given) or any(test(given) for test in allowed)):
        return None
    try:
        if kind == "timestamp[ms]" and pa.types.is_timestamp(given):
            column = column.cast(pa.timestamp("ms", given.tz))
        return column.cast(wanted)
    except pa.ArrowInvalid:  # beyond int64, or finer than a millisecond
        return None


_KINDS = {
    "str": ((pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view), pa.large_string()),
    "int": ((pa.types.is_integer,), pa.int64()),
    "float": ((pa.types.is_floating, pa.types.is_integer), pa.float64()),
    "bool": ((pa.types.is_boolean,), pa.bool_()),
    "timestamp[ms]": ((pa.types.is_integer, pa.types.is_timestamp), pa.int64()),
}


def _wrong(source: Source, frame: pl.DataFrame) -> Iterator[Wrong]:
    """What events of the right types may not be: error, detail, and whether each one is."""
    for name in source.required:
        yield "null", f"{name!r} is null", frame[name].is_null().to_numpy()
        if source.schema[name] == "str":
            long = frame[name].str.len_chars() > MAX_KEY
            yield "oversized", f"{name!r} is a key of more than {MAX_KEY} characters", _is(long)
    yield "range", "the event time is before 1970 or after 9999", _is(~frame[source.event_time].is_between(0, MAX_TIME))


def _is(found: pl.Series) -> NDArray[np.bool_]:
    return found.fill_null(False).to_numpy()
