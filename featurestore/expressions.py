"""Polars expressions in definitions: checked once, when the module is loaded, then run unchanged online and offline."""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from textwrap import shorten
from typing import TypeAlias

import numpy as np
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

#: Types that only features have: lists, values with counts, and maps from a text.
LIST_TYPES: dict[str, pl.DataType] = {f"list[{name}]": pl.List(dtype) for name, dtype in TYPES.items()}
LIST_TYPES |= {
    f"counts[{name}]": pl.List(pl.Struct({"value": dtype, "count": pl.Int64()})) for name, dtype in TYPES.items()
}
LIST_TYPES |= {f"map[{name}]": pl.Map(pl.String(), TYPES[name]) for name in ("int", "float")}
#: The Polars type of every type that a feature may have.
FEATURE_TYPES = TYPES | LIST_TYPES

# Few values and nulls among them, so that rows repeat each other in every column, though not in all columns at once:
# what looks at duplicates, groups or neighbours then gives itself away.
_PROBES: dict[str, list[object]] = {
    "str": ["b", "a", None, "c"],
    "int": [3, 1, None, 2],
    "float": [0.5, -1.25, None, 2.0],
    "bool": [True, False, None],
    "timestamp[ms]": [1_700_000_000_123, 1_600_000_000_000, None, 1_800_000_000_001],
}
_PROBES |= {f"list[{kind}]": [values, None, [], values[:1]] for kind, values in list(_PROBES.items())}
_PROBES |= {
    f"counts[{kind}]": [[{"value": value, "count": 2} for value in values if value is not None], None, []]
    for kind, values in list(_PROBES.items())
    if kind in TYPES
}
_PROBES |= {"map[int]": [{"a": 1, "b": 2}, None, {}], "map[float]": [{"a": 0.5}, None, {}]}
_PROBE_ROWS = 24

# How a call of Python is serialized where cloudpickle is installed; where it is not, serializing fails.
_PYTHON = '{"AnonymousFunction":'


#: An expression or, of an operation that gives several, expressions by what each adds to the name ("" adds nothing).
Expressions: TypeAlias = pl.Expr | Mapping[str, pl.Expr]


@dataclass(frozen=True, eq=False)
class Derived:
    """A feature, or several, computed from others when they are read; a service's is named here."""

    expression: Expressions
    name: str = ""


def derived(expression: Expressions, *, name: str = "") -> Derived:
    """A feature computed from others: derived(col("spend_5m") / col("spend_1d")).

    In a view it sees the view's features, and its attribute names it. In a service it needs a `name`, and sees columns
    of the event and features of views by full name: derived(col("amount") / col("card:spend_1d"), name="share").
    """
    return Derived(expression, name)


def by_name(name: str, made: Expressions) -> dict[str, pl.Expr]:
    """The expressions that `made` stands for under a name: itself, or "name_part" for each part of several."""
    if isinstance(made, Mapping):
        return {f"{name}_{part}" if part else name: expression for part, expression in made.items()}
    return {name: made}


def roots(expression: pl.Expr | None) -> list[str]:
    """The columns, or features, that an expression reads, each once, in the order in which it names them."""
    return [] if expression is None else list(dict.fromkeys(expression.meta.root_names()))


def closest(name: str, names: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known one, or all of them."""
    known = list(names)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known)) or 'none'}"


def checked_type(expression: pl.Expr, columns: Mapping[str, str], where: str) -> str:
    """The canonical type of what `expression` gives over `columns` (name -> canonical type).

    Raises DefinitionError, beginning with `where`, when it is no expression or calls Python, reads an unknown column,
    fails, gives a type that no column can have, or is not row-wise: a value that depends on other rows would depend on
    how a stream is batched.
    """
    if not isinstance(expression, pl.Expr):
        raise DefinitionError(f'{where}: {expression!r} is no expression; write one such as col("amount") > 100')
    for name in roots(expression):
        if name not in columns:
            raise DefinitionError(f"{where}: there is no column {name!r}; {closest(name, columns)}")
    try:
        canonical_text(expression)
    except DefinitionError as error:
        raise DefinitionError(f"{where}: {error}") from None
    probe, text = _probe(columns), shorten(str(expression), 200)
    try:
        whole = probe.select(expression.alias("value"))["value"]
        rows = [probe[i : i + 1].select(expression.alias("value"))["value"] for i in range(len(probe))]
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise DefinitionError(f"{where}: the expression {text} does not work: {reason}") from error
    if len(whole) == 1 and not roots(expression):
        whole = whole.new_from_index(0, len(probe))
    if any(len(row) != 1 for row in rows) or not whole.equals(pl.concat(rows), check_dtypes=True):
        raise DefinitionError(
            f"{where}: the expression {text} looks at more than its own row; use row-wise expressions only"
        )
    return _canonical(whole.dtype, text, where)


def _probe(columns: Mapping[str, str]) -> pl.DataFrame:
    picks = np.random.default_rng(0).integers(0, 1 << 16, (len(columns), _PROBE_ROWS))
    values = {
        name: [_PROBES[kind][pick % len(_PROBES[kind])] for pick in row]
        for (name, kind), row in zip(columns.items(), picks.tolist(), strict=True)
    }
    return pl.DataFrame(values, schema={name: FEATURE_TYPES[kind] for name, kind in columns.items()})


def _canonical(dtype: pl.DataType, text: str, where: str) -> str:
    if dtype.is_integer() and dtype not in (pl.UInt64, pl.Int128, pl.UInt128):
        return "int"
    if dtype.is_float():
        return "float"
    if dtype == pl.Boolean:
        return "bool"
    if dtype == pl.String:
        return "str"
    raise DefinitionError(f"{where}: the expression {text} gives {dtype}; cast it to a number, a bool or a string")


def evaluated(
    frame: pl.DataFrame, expressions: Mapping[str, tuple[pl.Expr, str]], *, nan_is_null: bool = False
) -> pl.DataFrame:
    """`frame` with a column for each named (expression, canonical type); a later one may read an earlier one.

    `nan_is_null` is for features: one that has no value, as 0 / 0 has none, is null.
    """
    for group in _apart(expressions):
        frame = frame.with_columns(**{name: expression.cast(TYPES[kind]) for name, (expression, kind) in group.items()})
        floats = [name for name, (_, kind) in group.items() if kind == "float"]
        if nan_is_null and floats:
            frame = frame.with_columns(pl.col(floats).fill_nan(None))
    return frame


def _apart(expressions: Mapping[str, tuple[pl.Expr, str]]) -> Iterator[dict[str, tuple[pl.Expr, str]]]:
    """The expressions in groups, in order, so that none reads another of its group: each is one call of Polars."""
    group: dict[str, tuple[pl.Expr, str]] = {}
    for name, made in expressions.items():
        if not group.keys().isdisjoint(roots(made[0])):
            yield group
            group = {}
        group[name] = made
    if group:
        yield group


def canonical_text(expression: pl.Expr | None) -> str | None:
    """A text that stands for the whole expression in fingerprints; None for no expression.

    Not `str(expression)`, which leaves out arguments (the 2 of `round(2)`) and shortens long lists. Raises
    DefinitionError when the expression calls Python: no text tells one function from another.
    """
    if expression is None:
        return None
    try:
        text: str = expression.meta.serialize(format="json")
    except pl.exceptions.ComputeError:
        text = _PYTHON
    if _PYTHON in text:
        raise DefinitionError(f"the expression {expression} calls Python; use Polars' own functions")
    return text


def expression_of(text: str | None) -> pl.Expr | None:
    """The expression that `canonical_text` gave `text` for; DefinitionError when there is none, or it calls Python."""
    if text is None:
        return None
    try:
        # Polars would unpickle a call of Python; written anew, no escape hides its name.
        plain = json.dumps(json.loads(text))
        if '"AnonymousFunction"' not in plain:
            return pl.Expr.deserialize(io.StringIO(plain), format="json")
    except (ValueError, pl.exceptions.PolarsError) as error:
        raise DefinitionError(f"{text[:80]!r} is no expression that this version of Polars reads: {error}") from None
    raise DefinitionError("a stored expression calls Python, and is not read")
