"""Polars expressions in definitions: checked once, when the module is loaded, then run unchanged online and offline."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

import polars as pl

from featurestore.errors import DefinitionError

#: Canonical column types and the Polars types that hold them.
TYPES: dict[str, pl.DataType] = {
    "str": pl.String(),
    "int": pl.Int64(),
    "float": pl.Float64(),
    "bool": pl.Boolean(),
    "timestamp[ms]": pl.Int64(),
}

_PROBES: dict[str, list[object]] = {
    "str": ["b", "a", "c"],
    "int": [3, 1, 2],
    "float": [0.5, -1.25, 2.0],
    "bool": [True, False, True],
    "timestamp[ms]": [1_700_000_000_123, 1_600_000_000_000, 1_800_000_000_001],
}


def closest(name: str, names: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known one, or all of them."""
    known = list(names)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known)) or 'none'}"


def checked_type(expression: pl.Expr, columns: Mapping[str, str], where: str) -> str:
    """The canonical type of what `expression` gives over `columns` (name -> canonical type).

    Raises DefinitionError, beginning with `where`, when it reads an unknown column, fails, gives a type that no
    column can have, or is not row-wise: a value that depends on other rows would depend on how a stream is batched.
    """
    for name in expression.meta.root_names():
        if name not in columns:
            raise DefinitionError(f"{where}: there is no column {name!r}; {closest(name, columns)}")
    probe = pl.DataFrame({n: pl.Series(_PROBES[t], dtype=TYPES[t]) for n, t in columns.items()})
    try:
        whole = probe.select(expression.alias("value"))["value"]
        rows = [probe[i : i + 1].select(expression.alias("value"))["value"] for i in range(len(probe))]
    except pl.exceptions.PolarsError as error:
        raise DefinitionError(f"{where}: the expression {expression} does not work: {error}") from error
    if len(whole) == 1 and not expression.meta.root_names():
        whole = whole.new_from_index(0, len(probe))
    if any(len(row) != 1 for row in rows) or not whole.equals(pl.concat(rows), check_dtypes=True):
        raise DefinitionError(
            f"{where}: the expression {expression} looks at more than its own row; use row-wise expressions only"
        )
    return _canonical(whole.dtype, expression, where)


def _canonical(dtype: pl.DataType, expression: pl.Expr, where: str) -> str:
    if dtype.is_integer():
        return "int"
    if dtype.is_float():
        return "float"
    if dtype == pl.Boolean:
        return "bool"
    if dtype == pl.String:
        return "str"
    raise DefinitionError(
        f"{where}: the expression {expression} gives {dtype}; cast it to a number, a bool or a string"
    )


def evaluated(frame: pl.DataFrame, expressions: Mapping[str, tuple[pl.Expr, str]]) -> pl.DataFrame:
    """`frame` with a column for each named (expression, canonical type), in order: a later one may read an earlier one."""
    for name, (expression, kind) in expressions.items():
        frame = frame.with_columns(expression.cast(TYPES[kind]).alias(name))
    return frame


def canonical_text(expression: pl.Expr | None) -> str | None:
    """A text that stands for the expression in fingerprints."""
    return None if expression is None else str(expression)
