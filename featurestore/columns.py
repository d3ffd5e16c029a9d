"""Columns of events as the kernel's words, and its words as columns of features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from featurestore.bagging import CATEGORY, holds_texts
from featurestore.bags import Mode, TopK
from featurestore.expressions import TYPES
from featurestore.kernel.hashing import hash_all
from featurestore.kernel.layout import OTHER
from featurestore.kernel.picking import MAP_WORDS
from featurestore.kernel.sketches import BIN_BITS
from featurestore.texts import MAX_TEXT, code_of
from featurestore.values import validity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.bagging import Coding
    from featurestore.definitions import Feature
    from featurestore.texts import Texts

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

_INT_MAX = np.int64(2**63 - 1)
_KEPT = np.uint64(2**63 - 1)


def present(series: pl.Series) -> Bools:
    """Where there is a value: neither null nor NaN."""
    there = series.is_not_null()
    return (there & series.is_not_nan().fill_null(False) if series.dtype.is_float() else there).to_numpy()


def coded(series: pl.Series, coding: Coding, texts: Texts) -> tuple[Ints, Bools]:
    """The values as `bagging.Coding` says, and where there are any."""
    valid = present(series)
    if holds_texts(coding):
        codes = _text_codes(series, texts)
        rest = str(coding).removeprefix(CATEGORY)
        return np.where(codes == code_of(rest), OTHER, codes) if rest != coding else codes, valid
    if coding == "hash" and series.dtype == pl.String:
        return _gathered(series.fill_null(""), _hashed_texts), valid
    if coding == "hash" and not series.dtype.is_float():
        return _mixed(series.cast(pl.Int64).fill_null(0).to_numpy()), valid
    values = series.cast(pl.Float64).fill_null(0.0).to_numpy()
    if isinstance(coding, tuple):
        return np.searchsorted(np.array(coding), values, side="right").astype(np.int64), valid
    ordered = _ordered(values)
    if coding == "hash":
        return _mixed(ordered), valid
    return ordered >> BIN_BITS if coding == "bin" else ordered, valid


def _ordered(values: NDArray[np.float64]) -> Ints:
    """Integers in the order of the floats; -0.0 is 0.0."""
    bits = (values + 0.0).view(np.int64)
    return np.where(bits >= 0, bits, bits ^ _INT_MAX)


def floats_of(ordered: Ints) -> NDArray[np.float64]:
    """The floats of `_ordered` integers."""
    return np.where(ordered >= 0, ordered, ordered ^ _INT_MAX).view(np.float64)


def _mixed(values: Ints) -> Ints:
    """Hashes of 63 bits: the finalizer of SplitMix64, by Steele, Lea and Flood, OOPSLA (2014)."""
    mixed = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) & _KEPT).view(np.int64)


def _text_codes(series: pl.Series, texts: Texts) -> Ints:
    """Codes of the values' texts; "true" and "false" for booleans."""
    return _gathered(series.cast(pl.String).str.slice(0, MAX_TEXT).fill_null(""), texts.codes)


def _gathered(series: pl.Series, code: Any) -> Ints:  # noqa: ANN401
    """Each value's code, of which `code` gives those of a list of distinct ones."""
    part = series.to_arrow().dictionary_encode()
    if not len(part):
        return np.zeros(0, np.int64)
    return code(part.dictionary.to_pylist())[part.indices.to_numpy()]  # type: ignore[no-any-return]


def _hashed_texts(texts: list[str]) -> Ints:
    """Hashes of distinct texts."""
    raw = [text.encode() for text in texts]
    out = np.empty(len(raw), np.int64)
    hash_all(np.frombuffer(b"".join(raw), np.uint8), np.cumsum(np.fromiter(map(len, raw), np.int64, len(raw))), out)
    return _mixed(out)


def array_of(values: Any, valid: Bools) -> pa.Array:  # noqa: ANN401
    """An Arrow array of the values, null where they are not valid; of numbers they are not copied."""
    if (bits := validity(valid)) is None:
        return pa.array(values)
    if isinstance(values, np.ndarray) and values.dtype in (np.int64, np.float64):
        return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [bits, pa.py_buffer(values)])
    return pa.array(values, mask=~valid)


def column_of(feature: Feature, words: Ints, valid: Bools, items: Ints, texts: Texts) -> pa.Array:
    """A stored feature's column of the words that the kernel wrote; `items` holds lists and maps."""
    if feature.type in TYPES:
        return array_of(_values(feature, feature.type, words, texts), valid)
    kind, inner = feature.type[:-1].split("[", 1)
    mask = None if valid.all() else pa.array(~valid)
    lengths = items[words]
    ends, size = np.cumsum(lengths), 1 if kind == "list" else MAP_WORDS
    at = np.repeat(words + 1 - size * (ends - lengths), lengths) + size * np.arange(lengths.sum())
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    if kind == "list":
        return pa.ListArray.from_arrays(offsets, pa.array(_values(feature, inner, items[at], texts)), mask=mask)
    if kind == "counts":
        parts = [pa.array(_values(feature, inner, items[at], texts)), pa.array(items[at + 1])]
        return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(parts, ["value", "count"]), mask=mask)
    [other] = texts.codes([feature.aggregate.other])  # type: ignore[union-attr]
    keys = texts.texts(np.where(items[at] == OTHER, other, items[at]))
    found = pa.array(_values(feature, inner, items[at + 1], texts), mask=items[at + 2] == 0)
    return pa.MapArray.from_arrays(offsets, keys, found, mask=mask)


def _values(feature: Feature, kind: str, words: Ints, texts: Texts) -> Any:  # noqa: ANN401
    """Words as values of a type."""
    if kind == "str":
        return texts.texts(words)
    if kind == "bool":
        return words != 0
    if kind == "float":
        ordered = isinstance(feature.aggregate, TopK | Mode)
        return floats_of(words) if ordered else np.ascontiguousarray(words).view(np.float64)
    return words
