"""What the kernel keeps and writes for each aggregate over a bag of values, or a list of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from featurestore import bags
from featurestore.aggregates import First, Last
from featurestore.kernel import layout as at
from featurestore.kernel import picking
from featurestore.kernel.sketches import BIN_BITS, REGISTERS

if TYPE_CHECKING:
    from featurestore.aggregates import Aggregate, Window
    from featurestore.definitions import Feature

#: How a value becomes a word: "" as it is, "text" (a code of its text), "category " and a name (the same, the name's
#: code being OTHER), "hash", "ordered" (a float's bits, in the order of floats), "bin" (the upper ones of these), or
#: edges: the number of its bucket.
Coding: TypeAlias = "str | tuple[float, ...]"
CATEGORY = "category "

#: Words of registers that a tile of a sketch has at most.
_REGISTER_WORDS = REGISTERS // 8


@dataclass(frozen=True)
class Bag:
    """What a tile keeps: see `kernel.layout`. The values come from lane `lane`, what is summed up from the next one."""

    lane: int
    kind: int
    policy: int
    bound: int

    @property
    def is_list(self) -> bool:
        """Whether it keeps values in order, and not how often they came."""
        return self.kind in (at.FIRSTS, at.LASTS)

    @property
    def stride(self) -> int:
        """Words of a record: time and value, or index, key and what is counted or summed up."""
        return 2 if self.is_list else 2 + self.words

    @property
    def words(self) -> int:
        """Words of what is counted or summed up."""
        return 2 if self.kind in (at.SUMS_FLOAT, at.SUMS_INT) else 1

    @property
    def most(self) -> int | None:
        """The most records of a tile; None for no limit."""
        if self.policy == at.SKETCH:
            return max(self.bound, _REGISTER_WORDS)
        return self.bound + (self.policy == at.REFUSE) if self.bound else None


def coding_of(feature: Feature) -> Coding:
    """How the values that a feature takes become words."""
    aggregate, window = feature.aggregate, feature.window
    assert aggregate is not None
    assert window is not None
    kind = feature.view.source.types.get(aggregate.column, "int")
    if isinstance(aggregate, bags.CountBy | bags.SumBy):
        return CATEGORY + aggregate.other
    if isinstance(aggregate, bags.Distinct):
        return "hash"
    if isinstance(aggregate, bags.Histogram):
        return tuple(aggregate.edges)
    if isinstance(aggregate, bags.Quantile):
        return "ordered" if is_exact(window) else "bin"
    if isinstance(aggregate, bags.TopK | bags.Mode) and kind == "float":
        return "ordered"
    return "text" if kind == "str" and isinstance(aggregate, bags.BagAggregate | First | Last) else ""


def holds_texts(coding: Coding) -> bool:
    """Whether the words are codes of texts."""
    return isinstance(coding, str) and (coding == "text" or coding.startswith(CATEGORY))


def is_exact(window: Window) -> bool:
    """Whether the window keeps its events, so that quantiles come of the values themselves."""
    return window.kind in ("exact", "last")


def bag_of(aggregate: Aggregate, lane: int, *, sums_floats: bool) -> Bag:
    """The bag or list that an aggregate needs."""
    if isinstance(aggregate, bags.FirstN):
        return Bag(lane, at.LASTS if isinstance(aggregate, bags.LastN) else at.FIRSTS, at.GROW, aggregate.n)
    if isinstance(aggregate, bags.SumBy):
        return Bag(lane, at.SUMS_FLOAT if sums_floats else at.SUMS_INT, at.REFUSE, aggregate.bound)
    if isinstance(aggregate, bags.CountBy):
        return Bag(lane, at.COUNTS, at.REFUSE, aggregate.bound)
    if isinstance(aggregate, bags.Distinct):
        return Bag(lane, at.COUNTS, at.SKETCH, aggregate.bound)
    if isinstance(aggregate, bags.TopK | bags.Mode):
        return Bag(lane, at.COUNTS, at.EVICT, aggregate.bound)
    return Bag(lane, at.COUNTS, at.GROW, len(aggregate.edges) + 1 if isinstance(aggregate, bags.Histogram) else 0)


def out_of(feature: Feature) -> tuple[tuple[int, int, int], float]:
    """How the feature comes out: its code, how many entries it has at most, the bits of a bin; and its quantile."""
    aggregate, most = feature.aggregate, 0
    if isinstance(aggregate, bags.Quantile):
        assert feature.window is not None
        return (picking.QUANTILE, 0, 0 if is_exact(feature.window) else BIN_BITS), float(aggregate.q)
    if isinstance(aggregate, bags.CountBy | bags.SumBy):
        code, most = picking.MAP, aggregate.bound
    elif isinstance(aggregate, bags.TopK):
        code, most = picking.TOP, aggregate.k
    elif isinstance(aggregate, bags.Mode):
        code = picking.MODE
    elif isinstance(aggregate, bags.Distinct):
        code = picking.DISTINCT
    elif isinstance(aggregate, bags.Histogram):
        code, most = picking.HISTOGRAM, len(aggregate.edges) + 1
    else:
        code = picking.LIST
    return (code, most, 0), 0.0
