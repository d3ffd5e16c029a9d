"""Windows, and what a feature computes over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import polars as pl

from featurestore.errors import DefinitionError
from featurestore.expressions import closest
from featurestore.times import ENDLESS, default_hop, milliseconds

NUMBERS = ("int", "float", "bool")
ORDERED = (*NUMBERS, "timestamp[ms]")


@dataclass(frozen=True)
class Window:
    """How far back a feature looks; made by `window`, `last` and `session`, or of a text such as "5m".

    kind "tiles": `length` ms in tiles of `hop` ms (both `ENDLESS` for a lifetime); "exact": `length` ms to the
    millisecond (`hop` is only how it is computed); both may end `delay` ms ago. kind "last": the last `length` events.
    kind "session": events no more than `length` ms apart.
    """

    label: str
    kind: str
    length: int
    hop: int = 0
    delay: int = 0

    @property
    def keep(self) -> int:
        """For how long (ms) an event may matter to the window; `ENDLESS` for ever."""
        return ENDLESS if self.kind == "last" or self.length == ENDLESS else self.length + self.delay


#: Most tiles of a window: they are all kept, for every entity.
MAX_TILES = 20_000
#: Most events of a window `last(n)`: each is kept, and looked at again whenever the feature is read.
MAX_LAST = 10_000


def window(length: str, *, hop: str | None = None, exact: bool = False, delay: str | None = None) -> Window:
    """A window that is not plain: window("1h", hop="5m"), window("1h", exact=True), window("7d", delay="1d").

    With `exact` it holds the events of its time to the millisecond, and each one is kept. With `delay` it ends so long
    before the time asked for: for data known to come late. Raises DefinitionError when the hop is wider than the
    window, or so fine that an entity would need more than `MAX_TILES` tiles.
    """
    if length == "lifetime":
        if hop is not None or exact or delay is not None:
            raise DefinitionError('window "lifetime" has no end and takes no hop, exact or delay')
        return Window("lifetime", "tiles", ENDLESS, ENDLESS)
    size = milliseconds(length)
    if exact and hop is not None:
        raise DefinitionError(f'window "{length}": an exact window has no hop; leave one of the two out')
    step = default_hop(size) if hop is None else milliseconds(hop)
    late = 0 if delay is None else milliseconds(delay)
    if not exact:
        _check_hop(length, size, step, hop, late)
    label = length if delay is None else f"{length}_delayed_{delay}"
    return Window(label, "exact" if exact else "tiles", size, step, late)


def _check_hop(length: str, size: int, step: int, hop: str | None, delay: int) -> None:
    if hop is None and step > size:
        raise DefinitionError(f'window "{length}": shorter than any default hop; give it one, such as hop="100ms"')
    if step > size:
        raise DefinitionError(f'window "{length}": hop "{hop}" is wider than the window; choose a smaller one')
    if (tiles := (size + delay) // step) > MAX_TILES:
        raise DefinitionError(f'window "{length}": hop "{hop or step}" makes {tiles:,} tiles, of {MAX_TILES:,} at most')


def last(count: int) -> Window:
    """The last `count` events, by (time, partition, offset), however long ago they were."""
    if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= MAX_LAST:
        raise DefinitionError(f"last({count!r}): give a whole number of events from 1 to {MAX_LAST:,}")
    return Window(f"last_{count}", "last", count)


def session(gap: str) -> Window:
    """The events of the session that goes on: each at most `gap` after the one before, the last one within `gap`."""
    return Window(f"session_{gap}", "session", milliseconds(gap))


Windows = Sequence[str | Window]


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What a feature computes over its window: one value from a column of the events that pass `where`.

    Null and NaN inputs are skipped. Over nothing, counts, sums, rates and decaying sums are 0 and all else is null.
    """

    column: str
    where: pl.Expr | None = None
    windows: Windows | None = None

    accepts: ClassVar[tuple[str, ...]] = NUMBERS

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it takes values from."""
        return (self.column,) if self.column else ()

    @property
    def parameters(self) -> dict[str, object]:
        """What else it was told, as plain data: part of the feature's identity."""
        return {}

    def output(self, kind: str) -> str:
        """The type of the result for a column of type `kind`."""
        return kind

    def check(self, types: Mapping[str, str], source: str) -> None:
        """Raise DefinitionError when it cannot work on columns of these types."""
        for column in self.columns:
            if column not in types:
                raise DefinitionError(f"there is no column {column!r} in {source!r}; {closest(column, types)}")
            if types[column] == "timestamp[ms]" and "timestamp[ms]" not in self.accepts:
                raise DefinitionError(f"{type(self).__name__} of a timestamp has no meaning; derive a duration first")
            if types[column] not in self.accepts:
                wanted = "numbers" if self.accepts in (NUMBERS, ORDERED) else " or ".join(self.accepts)
                raise DefinitionError(
                    f"{type(self).__name__} needs {wanted}, and column {column!r} is a {types[column]}"
                )

    def check_window(self, made: Window) -> None:
        """Raise DefinitionError when it has no meaning over the window."""


class _Float(Aggregate):
    def output(self, kind: str) -> str:  # noqa: ARG002
        return "float"


@dataclass(frozen=True, eq=False)
class Count(Aggregate):
    """How many events; with a column, how many of them have a value there."""

    column: str = ""
    accepts: ClassVar[tuple[str, ...]] = (*ORDERED, "str")

    def output(self, kind: str) -> str:  # noqa: ARG002
        """Always an integer."""
        return "int"


class Sum(Aggregate):
    """The sum: integers stay integers (null when it leaves int64), floats are compensated (Neumaier 1974)."""

    def output(self, kind: str) -> str:
        """An integer for integers and booleans, else a float."""
        return "float" if kind == "float" else "int"


class Mean(_Float):
    """Sum / count."""


class Std(_Float):
    """Sample standard deviation (n - 1), by Welford 1962 and Chan et al. 1983; null for fewer than two values."""


class Var(_Float):
    """Sample variance (n - 1), as `Std`; null for fewer than two values."""


class Skew(_Float):
    """Skewness (m3 / n) / (m2 / n)^1.5 of the values themselves (Pebay 2008); null when they are all the same."""


class Kurtosis(_Float):
    """Excess kurtosis n m4 / m2^2 - 3 of the values themselves (Pebay 2008); null when they are all the same."""


class Min(Aggregate):
    """The smallest value."""

    accepts = ORDERED


class Max(Aggregate):
    """The largest value."""

    accepts = ORDERED


class First(Aggregate):
    """The value of the first event by (time, partition, offset)."""

    accepts = (*ORDERED, "str")


class Last(Aggregate):
    """The value of the last event by (time, partition, offset)."""

    accepts = (*ORDERED, "str")


class Any(Aggregate):
    """Whether any value is true."""

    accepts = ("bool",)


class All(Aggregate):
    """Whether every value is true."""

    accepts = ("bool",)


@dataclass(frozen=True, eq=False)
class Rate(Aggregate):
    """Events a second, or with a column its sum a second, over the whole length of the window."""

    column: str = ""

    def output(self, kind: str) -> str:  # noqa: ARG002
        """Always a float."""
        return "float"

    def check_window(self, made: Window) -> None:
        """Only a window with a length has a rate."""
        if made.kind not in ("tiles", "exact") or made.length == ENDLESS:
            raise DefinitionError(f"a Rate needs a window with a length, and {made.label!r} has none")


@dataclass(frozen=True, eq=False)
class TimeSince(Aggregate):
    """Milliseconds from the first or the last event of the window (`of`) to the time asked for (less its delay)."""

    column: str = ""
    _: KW_ONLY
    of: str = "last"
    accepts: ClassVar[tuple[str, ...]] = (*ORDERED, "str")

    def __post_init__(self) -> None:
        """Check what it was told."""
        if self.of not in ("first", "last"):
            raise DefinitionError(f'TimeSince(of={self.of!r}): of is "first" or "last"')

    @property
    def parameters(self) -> dict[str, object]:
        """Of which event."""
        return {"of": self.of}

    def output(self, kind: str) -> str:  # noqa: ARG002
        """Always an integer."""
        return "int"


@dataclass(frozen=True, eq=False)
class ExpDecay(Aggregate):
    """The sum of values that each lose half their weight every `half_life`; without a column, of ones."""

    column: str = ""
    _: KW_ONLY
    half_life: str = "1h"

    def __post_init__(self) -> None:
        """Check what it was told."""
        milliseconds(self.half_life)

    @property
    def half_life_ms(self) -> int:
        """The half-life in milliseconds."""
        return milliseconds(self.half_life)

    @property
    def parameters(self) -> dict[str, object]:
        """The half-life."""
        return {"half_life": self.half_life_ms}

    def output(self, kind: str) -> str:  # noqa: ARG002
        """Always a float."""
        return "float"


class Slope(_Float):
    """How fast the value changes, a second: the least-squares line over event time; null without two times."""


@dataclass(frozen=True, eq=False)
class Corr(Aggregate):
    """Pearson's correlation with the column `other`, of events that have both; null when one does not vary."""

    _: KW_ONLY
    other: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Both columns."""
        return (self.column, self.other)

    @property
    def parameters(self) -> dict[str, object]:
        """The second column."""
        return {"other": self.other}

    def output(self, kind: str) -> str:  # noqa: ARG002
        """Always a float."""
        return "float"
