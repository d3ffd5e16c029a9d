"""Operations that prepare features for a model: plain expressions, so that they are the same online and offline.

They keep no state. What one must know of the past comes from features over windows, which see nothing else. An
operation goes where expressions go: into `derived(...)` and `Source(derive={...})`, and into another one. Those that
give several features return expressions by what each adds to the name. Numbers are int, float and bool, computed with
as floats; of null and NaN most operations give null.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

import polars as pl

from featurestore.errors import DefinitionError

Number: TypeAlias = int | float
Category: TypeAlias = str | int | bool

#: Most buckets that categories can be hashed to.
MAX_BUCKETS = 1 << 24
# Modulo this prime x^5 is one to one, and products of two numbers below it stay in int64.
_PRIME = (1 << 31) - 1
_PART = re.compile(r"[A-Za-z0-9_]+")


def impute(value: pl.Expr, *instead: pl.Expr | Number) -> dict[str, pl.Expr]:
    """The first of `value` and `instead` that is there, as a float; and `missing`, whether `value` was not.

    `instead` are constants, the last value (a feature `Last` over "lifetime") or the mean so far (`Mean`).
    """
    if not instead:
        raise DefinitionError("impute: say what stands for a missing value, such as impute(col(...), 0.0)")
    there = [_known(_number(each, "impute")) for each in (value, *instead)]
    return {"": pl.coalesce(there), "missing": there[0].is_null()}


def min_max_scale(value: pl.Expr, low: pl.Expr | Number, high: pl.Expr | Number) -> pl.Expr:
    """(value - low) / (high - low); null unless high is above low. Features `Min` and `Max` tell what was so far."""
    least = _number(low, "min_max_scale")
    return _quotient(_number(value, "min_max_scale") - least, _number(high, "min_max_scale") - least)


def standard_scale(value: pl.Expr, mean: pl.Expr | Number, std: pl.Expr | Number) -> pl.Expr:
    """(value - mean) / std; null unless std is above 0. Features `Mean` and `Std` tell what was so far."""
    centred = _number(value, "standard_scale") - _number(mean, "standard_scale")
    return _quotient(centred, _number(std, "standard_scale"))


def bucketize(value: pl.Expr, edges: Sequence[Number]) -> pl.Expr:
    """In which bucket a number lies: how many of the ascending `edges` are not above it, from 0 to len(edges)."""
    if not isinstance(edges, Sequence) or not edges:
        raise DefinitionError("bucketize: edges is a list of at least one number, such as [10, 100]")
    limits = [_checked(edge, "bucketize: an edge") for edge in edges]
    if any(after <= before for before, after in pairwise(limits)):
        raise DefinitionError(f"bucketize: the edges {list(edges)} must ascend, each above the one before")
    number = _number(value, "bucketize")
    reached = pl.sum_horizontal([(number >= limit).cast(pl.Int64) for limit in limits])
    return pl.when(number.is_not_nan()).then(reached)


def one_hot(value: pl.Expr, categories: Sequence[Category] | Mapping[str, Category]) -> dict[str, pl.Expr]:
    """For each category whether it is the value, and `other`: whether there is a value and it is none of them.

    A mapping names categories whose own text makes no name: {"ny": "New York"}.
    """
    if isinstance(categories, str) or not isinstance(categories, Sequence | Mapping) or not categories:
        raise DefinitionError('one_hot: categories is a list of at least one, such as ["web", "shop"]')
    pairs = list(
        categories.items() if isinstance(categories, Mapping) else ((_text(each), each) for each in categories)
    )
    for part, category in pairs:
        _check_category(part, category)
    values = [category for _, category in pairs]
    if len({type(category) for category in values}) > 1:
        raise DefinitionError(f"one_hot: the categories {values} are of several types, and a column has one")
    if len(set(values)) < len(values):
        raise DefinitionError(f"one_hot: a category is there more than once among {values}")
    # Not ==, which compares a bool with a text: a column of another type than its categories is a mistake.
    column = _expression(value, "one_hot")
    hot = {part: column.is_in([category]).fill_null(False) for part, category in pairs}
    return {**hot, "other": ~column.is_in(values).fill_null(True)}


def cross(first: pl.Expr, second: pl.Expr, *more: pl.Expr) -> pl.Expr:
    r"""The categories together, as a text: "web|gold". A "|" in one of them becomes "\|", and "\" becomes "\\"."""
    texts = [_expression(each, "cross").cast(pl.String) for each in (first, second, *more)]
    escaped = [
        text.str.replace_all("\\", "\\\\", literal=True).str.replace_all("|", "\\|", literal=True) for text in texts
    ]
    return pl.concat_str(escaped, separator="|")


def feature_hash(value: pl.Expr, buckets: int) -> pl.Expr:
    """The bucket of a category, from 0 to buckets - 1, the same in every process and with every version.

    Of its UTF-8 bytes b1 b2 ...: the sum of (256 i + bi)^5 mod (2^31 - 1), mod buckets. What is no text is hashed as
    it is written. (Polars' own hash may change with its version.)
    """
    if not isinstance(buckets, int) or isinstance(buckets, bool) or not 2 <= buckets <= MAX_BUCKETS:
        raise DefinitionError(f"feature_hash: buckets is a whole number from 2 to {MAX_BUCKETS:,}, not {buckets!r}")
    text, each = _expression(value, "feature_hash").cast(pl.String), pl.element()
    placed = each.cast(pl.Int64) + 256 * pl.int_range(1, pl.len() + 1)
    fourth = _squared(_squared(each))
    codes = text.cast(pl.Binary).cast(pl.List(pl.UInt8)).list.eval(placed).list.eval(fourth * each % _PRIME)
    return codes.list.sum() % buckets


def target_encode(total: pl.Expr, count: pl.Expr, *, prior: pl.Expr | Number, weight: Number) -> pl.Expr:
    """The mean label of a category, smoothed: (total + weight * prior) / (count + weight).

    `total` and `count` are features `Sum` and `Count` of the label's column, of a view over the source of the labels,
    by category. `prior` is a constant, or a view's mean over all categories; it alone counts while there are no labels.
    """
    if _checked(weight, "target_encode: weight") <= 0:
        raise DefinitionError(f"target_encode: weight is how many labels prior counts for, above 0, not {weight!r}")
    labelled, seen = (_known(_number(each, "target_encode")).fill_null(0.0) for each in (total, count))
    return _quotient(labelled + weight * _number(prior, "target_encode"), seen + weight)


def _number(value: pl.Expr | Number, what: str) -> pl.Expr:
    """The value as a float."""
    if isinstance(value, pl.Expr):
        return value.cast(pl.Float64)
    return pl.lit(_checked(value, f"{what}: what is no expression, such as col(...),"))


def _known(number: pl.Expr) -> pl.Expr:
    """The number, null for NaN."""
    # Polars' fill_nan repeats its argument in the plan, so that expressions in expressions would explode.
    return number.replace(math.nan, None)


def _checked(value: Number, what: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise DefinitionError(f"{what} must be a finite number, not {value!r}")
    return float(value)


def _expression(value: pl.Expr, what: str) -> pl.Expr:
    if not isinstance(value, pl.Expr):
        raise DefinitionError(f"{what}: {value!r} is no expression; a column is written col({value!r})")
    return value


def _quotient(number: pl.Expr, divisor: pl.Expr) -> pl.Expr:
    """The quotient; null unless the divisor is above 0, and where infinities leave no number."""
    return _known(pl.when(divisor > 0).then(number / divisor))


def _squared(number: pl.Expr) -> pl.Expr:
    return number * number % _PRIME


def _text(category: Category) -> str:
    return str(category).lower() if isinstance(category, bool) else str(category)


def _check_category(part: str, category: Category) -> None:
    if not isinstance(category, str | int):
        raise DefinitionError(f"one_hot: {category!r} is no category; they are strings, whole numbers or bools")
    if not _PART.fullmatch(part) or part == "other":
        raise DefinitionError(
            f'one_hot: {part!r} cannot be part of a name; name the category by a mapping, as {{"ny": "New York"}}'
        )
