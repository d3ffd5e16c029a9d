"""Windows, and what a feature computes over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from featurestore.errors import DefinitionError
from featurestore.times import ENDLESS, default_hop, milliseconds


@dataclass(frozen=True)
class Window:
    """How far back a feature looks: `length` ms in tiles of `hop` ms; lifetime has the length and hop `ENDLESS`."""

    label: str
    length: int
    hop: int


#: Most tiles of a window: they are all kept, for every entity.
MAX_TILES = 20_000


def window(length: str, *, hop: str | None = None) -> Window:
    """A window with a tile width of its own, such as window("1h", hop="5m"); without `hop` the default one.

    Raises DefinitionError when the hop is wider than the window, or so fine that an entity would need more than
    `MAX_TILES` tiles.
    """
    if length == "lifetime":
        if hop is not None:
            raise DefinitionError('window "lifetime" has no end and takes no hop')
        return Window("lifetime", ENDLESS, ENDLESS)
    size = milliseconds(length)
    step = default_hop(size) if hop is None else milliseconds(hop)
    if hop is None and step > size:
        raise DefinitionError(f'window "{length}": shorter than any default hop; give it one, such as hop="100ms"')
    if step > size:
        raise DefinitionError(f'window "{length}": hop "{hop}" is wider than the window; choose a smaller one')
    if size // step > MAX_TILES:
        raise DefinitionError(f'window "{length}": hop "{hop}" makes {size // step:,} tiles, of {MAX_TILES:,} at most')
    return Window(length, size, step)


Windows = Sequence[str | Window]


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What a feature computes over its window: one value from a column of the events that pass `where`.

    Null and NaN inputs are skipped. Over nothing, counts and sums are 0 and all else is null.
    """

    column: str
    where: pl.Expr | None = None
    windows: Windows | None = None

    def output(self, kind: str) -> str:
        """The type of the result for a column of type `kind`."""
        return kind


@dataclass(frozen=True, eq=False)
class Count(Aggregate):
    """How many events; with a column, how many of them have a value there."""

    column: str = ""

    def output(self, kind: str) -> str:  # noqa: ARG002
        """Always an integer."""
        return "int"


class Sum(Aggregate):
    """The sum: integers stay integers (null when it leaves int64), floats are compensated (Neumaier 1974)."""

    def output(self, kind: str) -> str:
        """An integer for integers and booleans, else a float."""
        return "float" if kind == "float" else "int"


class _Float(Aggregate):
    def output(self, kind: str) -> str:  # noqa: ARG002
        return "float"


class Mean(_Float):
    """Sum / count."""


class Std(_Float):
    """Sample standard deviation (n - 1), by Welford 1962 and Chan et al. 1983; null for fewer than two values."""


class Min(Aggregate):
    """The smallest value."""


class Max(Aggregate):
    """The largest value."""


class First(Aggregate):
    """The value of the first event by (time, partition, offset)."""


class Last(Aggregate):
    """The value of the last event by (time, partition, offset)."""
