"""Aggregates that look at which values came: how many, how often, the first or last of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import ClassVar

from featurestore.aggregates import ORDERED, Aggregate
from featurestore.errors import DefinitionError

ANYTHING = (*ORDERED, "str")
CATEGORIES = ("str", "int", "bool")

#: Most values, buckets or categories that an aggregate may be told to keep: they are all kept, in every tile.
MAX_BOUND = 10_000


def _check_count(here: str, name: str, value: object, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MAX_BOUND:
        raise DefinitionError(f"{here}({name}={value!r}): give a whole number from {least} to {MAX_BOUND:,}")


@dataclass(frozen=True, eq=False)
class BagAggregate(Aggregate):
    """An aggregate over a bag of values, or a list of them. Over nothing a count is 0, a list or map is empty."""


@dataclass(frozen=True, eq=False)
class Distinct(BagAggregate):
    """How many different values: exact up to `bound` of them, beyond that a HyperLogLog of 2.3 % standard error."""

    _: KW_ONLY
    bound: int = 256
    accepts: ClassVar[tuple[str, ...]] = ANYTHING

    def __post_init__(self) -> None:
        """Check what it was told."""
        _check_count("Distinct", "bound", self.bound)

    @property
    def parameters(self) -> dict[str, object]:
        """Up to how many it is exact."""
        return {"bound": self.bound}

    def output(self, kind: str) -> str:  # noqa: ARG002
        """Always an integer."""
        return "int"


@dataclass(frozen=True, eq=False)
class Quantile(BagAggregate):
    """The value below which a part `q` of the values lies, in proportion between the nearest two.

    Exact over exact windows and `last(n)`; else of bins, within 0.8 % of the value.
    """

    _: KW_ONLY
    q: float = 0.5

    def __post_init__(self) -> None:
        """Check what it was told."""
        if not isinstance(self.q, int | float) or isinstance(self.q, bool) or not 0 <= self.q <= 1:
            raise DefinitionError(f"Quantile(q={self.q!r}): q lies between 0 and 1, such as 0.95")

    @property
    def parameters(self) -> dict[str, object]:
        """Which quantile."""
        return {"q": float(self.q)}

    def output(self, kind: str) -> str:  # noqa: ARG002
        """Always a float."""
        return "float"


@dataclass(frozen=True, eq=False)
class Histogram(BagAggregate):
    """How many values lie below the first edge, from each edge to below the next, and from the last one on."""

    _: KW_ONLY
    edges: Sequence[float]

    def __post_init__(self) -> None:
        """Check what it was told."""
        edges = tuple(self.edges) if isinstance(self.edges, Sequence) else ()
        good = [isinstance(e, int | float) and not isinstance(e, bool) and abs(e) <= sys.float_info.max for e in edges]
        if not edges or not all(good) or any(a >= b for a, b in pairwise(edges)):
            raise DefinitionError(
                f"Histogram(edges={self.edges!r}): give finite numbers in ascending order, at least one"
            )
        _check_count("Histogram", "edges", len(edges))
        object.__setattr__(self, "edges", tuple(map(float, edges)))

    @property
    def parameters(self) -> dict[str, object]:
        """Where buckets end."""
        return {"edges": list(self.edges)}

    def output(self, kind: str) -> str:  # noqa: ARG002
        """A count for each bucket."""
        return "list[int]"


@dataclass(frozen=True, eq=False)
class TopK(BagAggregate):
    """The `k` values that came most often, each with its count, the most frequent first.

    Exact while no tile has more than `bound` values. Beyond, the rarest makes room (Metwally et al., ICDT 2005): a
    count is never too low then, nor too high by more than the number of values in its tiles / bound.
    """

    _: KW_ONLY
    k: int = 10
    bound: int = 1_000
    accepts: ClassVar[tuple[str, ...]] = ANYTHING

    def __post_init__(self) -> None:
        """Check what it was told."""
        _check_count("TopK", "k", self.k)
        _check_count("TopK", "bound", self.bound, self.k)

    @property
    def parameters(self) -> dict[str, object]:
        """How many values, of how many."""
        return {"k": self.k, "bound": self.bound}

    def output(self, kind: str) -> str:
        """A list of values with their counts."""
        return f"counts[{kind}]"


@dataclass(frozen=True, eq=False)
class Mode(BagAggregate):
    """The value that came most often, as the first of `TopK`; null over nothing."""

    _: KW_ONLY
    bound: int = 1_000
    accepts: ClassVar[tuple[str, ...]] = ANYTHING

    def __post_init__(self) -> None:
        """Check what it was told."""
        _check_count("Mode", "bound", self.bound)

    @property
    def parameters(self) -> dict[str, object]:
        """Of how many values."""
        return {"bound": self.bound}


@dataclass(frozen=True, eq=False)
class CountBy(BagAggregate):
    """How often each category came, as a map from its text; the largest first.

    A tile keeps the first `bound` categories that come, a window shows the `bound` largest: all others add up under
    the key `other`.
    """

    _: KW_ONLY
    bound: int = 100
    other: str = "other"
    accepts: ClassVar[tuple[str, ...]] = CATEGORIES

    def __post_init__(self) -> None:
        """Check what it was told."""
        _check_bucket("CountBy", self.bound, self.other)

    @property
    def parameters(self) -> dict[str, object]:
        """How many categories, and what the rest is called."""
        return {"bound": self.bound, "other": self.other}

    def check(self, types: Mapping[str, str], source: str) -> None:
        """Any category."""
        _check_category("CountBy", self.column, types)
        super().check(types, source)

    def output(self, kind: str) -> str:  # noqa: ARG002
        """A map from text to integers."""
        return "map[int]"


@dataclass(frozen=True, eq=False)
class SumBy(BagAggregate):
    """The sum of the column by the category in the column `by`, as a map from its text; the largest first.

    Bounded as `CountBy` is. An integer sum that leaves int64 is null.
    """

    _: KW_ONLY
    by: str
    bound: int = 100
    other: str = "other"

    def __post_init__(self) -> None:
        """Check what it was told."""
        _check_bucket("SumBy", self.bound, self.other)

    @property
    def columns(self) -> tuple[str, ...]:
        """What is summed up, and by what."""
        return (self.column, self.by)

    @property
    def parameters(self) -> dict[str, object]:
        """By what, how many categories, and what the rest is called."""
        return {"by": self.by, "bound": self.bound, "other": self.other}

    def check(self, types: Mapping[str, str], source: str) -> None:
        """Numbers, by a category."""
        _check_category("SumBy", self.by, types)
        kinds = dict(types)
        if self.by in kinds and self.by != self.column:
            kinds[self.by] = "int"  # it need not be a number
        super().check(kinds, source)

    def output(self, kind: str) -> str:
        """A map from text to sums."""
        return "map[float]" if kind == "float" else "map[int]"


def _check_category(here: str, column: str, types: Mapping[str, str]) -> None:
    kind = types.get(column, "str")
    if kind not in CATEGORIES:
        raise DefinitionError(
            f"{here} needs categories, and column {column!r} is a {kind}; derive a text or an int of it, such as "
            f"col({column!r}).floor().cast(int)"
        )


def _check_bucket(here: str, bound: object, other: object) -> None:
    _check_count(here, "bound", bound)
    if not isinstance(other, str):
        raise DefinitionError(f"{here}(other={other!r}): give the text under which the rest adds up")


@dataclass(frozen=True, eq=False)
class FirstN(BagAggregate):
    """The first `n` values by (time, partition, offset), the oldest first."""

    _: KW_ONLY
    n: int
    accepts: ClassVar[tuple[str, ...]] = ANYTHING

    def __post_init__(self) -> None:
        """Check what it was told."""
        _check_count(type(self).__name__, "n", self.n)

    @property
    def parameters(self) -> dict[str, object]:
        """How many."""
        return {"n": self.n}

    def output(self, kind: str) -> str:
        """A list of values."""
        return f"list[{kind}]"


class LastN(FirstN):
    """The last `n` values by (time, partition, offset), the oldest first."""
