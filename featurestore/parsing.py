"""Plain JSON objects straight into columns, in compiled code.

What is usual on a topic (flat objects, numbers as programs write them) becomes words here, and never Python objects.
All else is left to `decoding`'s strict decoder, record by record: this parser takes a record only when it is sure that
the other one would take it too, with the same values, and says of no record that it is wrong.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from featurestore.columns import array_of
from featurestore.kernel.numerals import powers_of_five
from featurestore.kernel.objects import BOOL, FLOAT, INT, KEY, STR, TIME, UNKNOWN, Names, Parsed, parse_all
from featurestore.values import validity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from featurestore.values import Values

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

_KINDS = {"str": STR, "int": INT, "float": FLOAT, "bool": BOOL, "timestamp[ms]": INT}

MAX_COLUMNS = 62
"""Most columns that the parser can tell apart, by a bit each."""


@lru_cache(maxsize=256)
def names_of(
    schema: tuple[tuple[str, str], ...], required: frozenset[str], event_time: str, limits: tuple[int, int, int]
) -> Names:
    """What the parser must know of a source; `limits` as in `Names`."""
    encoded = [name.encode() for name, _ in schema]
    kinds = [
        TIME if name == event_time else KEY if kind == "str" and name in required else _KINDS[kind]
        for name, kind in schema
    ]
    text = [kind in (STR, KEY) for kind in kinds]
    places = np.where(text, np.cumsum(text), np.cumsum(np.logical_not(text))) - 1
    bits = sum(1 << i for i, (name, _) in enumerate(schema) if name in {*required, event_time})
    return Names(
        np.frombuffer(b"".join(encoded), np.uint8).copy(),
        np.cumsum([len(name) for name in encoded], dtype=np.int64),
        np.array(kinds, np.int64),
        places.astype(np.int64),
        np.array([bits], np.int64),
        np.array(limits, np.int64),
        powers_of_five(),
    )


def parsed(names: Names, values: Values[bytes | None]) -> Parsed:
    """Parse what is plain among the values."""
    out = nothing_parsed(names, len(values), np.empty(int(np.maximum(values.lengths, 0).sum()), np.uint8))
    guesses = np.full(len(names.kinds) + 1, UNKNOWN, np.int64)
    parse_all(values.buffer, values.starts, values.lengths, names, out, guesses)
    return out


def nothing_parsed(names: Names, count: int, plain: NDArray[np.uint8]) -> Parsed:
    """Room for what is found in so many records, of which none is taken yet."""
    texts = int(((names.kinds == STR) | (names.kinds == KEY)).sum())
    return Parsed(
        np.zeros((len(names.kinds) - texts, count), np.int64),
        np.zeros((texts, count, 2), np.int64),
        plain,
        np.zeros(1, np.int64),
        np.zeros((len(names.kinds), count), np.bool_),
        np.zeros(count, np.bool_),
    )


def columns_of(schema: Mapping[str, str], names: Names, found: Parsed, values: Values[bytes | None]) -> pl.DataFrame:
    """The columns of the records that were taken, in the order of the schema."""
    everything = bool(found.taken.all())
    rows: Any = slice(None) if everything else found.taken
    out = {}
    for (name, kind), place, valid in zip(schema.items(), names.places.tolist(), found.valid, strict=True):
        there = valid[rows]
        if kind == "str":
            out[name] = _texts(found.texts[place][rows], there, [values.buffer, found.plain])
        else:
            words = found.words[place][rows]
            column = words.view(np.float64) if kind == "float" else words != 0 if kind == "bool" else words
            out[name] = pl.Series(array_of(column, there))
    return pl.DataFrame(out)


def _texts(views: Ints, there: Bools, buffers: Sequence[NDArray[np.uint8]]) -> pl.Series:
    views = np.ascontiguousarray(views)
    parts = [validity(there), pa.py_buffer(views), *map(pa.py_buffer, buffers)]
    return pl.Series(pa.Array.from_buffers(pa.string_view(), len(views), parts))
