"""Frames compared to the bit, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

Bools = NDArray[np.bool_]

_EXAMPLES = 10


@dataclass
class Report:
    """What was compared, and what differed.

    Parity counts states and positions in the online store, mirror counts rows, logged features count values. `skipped`
    counts rows and values that could not be compared, for the reasons in `notes`. `missing` says what should have been
    there. In a live run (not `merged`), logged features may differ by what had not arrived yet: that is no failure.
    """

    merged: bool
    parity_compared: int = 0
    parity_mismatched: int = 0
    mirror_compared: int = 0
    mirror_mismatched: int = 0
    logged_features_compared: int = 0
    logged_features_mismatched: int = 0
    skipped: int = 0
    examples: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether all is as it should be."""
        wrong = self.parity_mismatched + self.mirror_mismatched
        return not (wrong or self.missing or (self.merged and self.logged_features_mismatched))

    def example(self, text: str) -> None:
        """Keep the text, unless there are enough."""
        if len(self.examples) < _EXAMPLES:
            self.examples.append(text)

    def skip(self, count: int, why: str) -> None:
        """Count what cannot be compared."""
        if count:
            self.skipped += count
            self.notes.append(f"{count:,} {why}")

    def tell(self, where: str, wanted: pl.DataFrame, found: pl.Series, wrong: Bools) -> None:
        """Keep one value of those that are wrong; `wanted` has the events' places and the column of the same name."""
        if wrong.any():
            row, name = int(np.argmax(wrong)), found.name
            place = f"{wanted['_partition'][row]}:{wanted['_offset'][row]}"
            self.example(f"{where} {place}: {name} is {found[row]!r}, a replay gives {wanted[name][row]!r}")


def differing(left: pl.Series, right: pl.Series) -> Bools:
    """Where two columns of one length differ: floats by their bits, null equal to null only."""
    if left.dtype != right.dtype:
        return np.ones(len(left), np.bool_)
    if isinstance(left.dtype, pl.Map):
        left, right = (pl.select(column.map.entries()).to_series() for column in (left, right))
    if left.dtype == pl.List:
        return _differing_lists(left, right)
    if not left.dtype.is_float():
        return np.asarray(left.ne_missing(right).to_numpy(), np.bool_)
    nulls = left.is_null().to_numpy(), right.is_null().to_numpy()
    bits = _bits(left) != _bits(right)
    return np.asarray(np.where(nulls[0] | nulls[1], nulls[0] != nulls[1], bits), np.bool_)


def _differing_lists(left: pl.Series, right: pl.Series) -> Bools:
    """Where two columns of lists differ in length or in what they hold, structs field by field."""
    lengths = left.list.len()
    out = np.asarray(lengths.ne_missing(right.list.len()).to_numpy(), np.bool_)
    same, rows = (
        pl.Series(~out),
        np.repeat(np.flatnonzero(~out), lengths.filter(pl.Series(~out)).fill_null(0).to_numpy()),
    )
    parts = [column.filter(same).drop_nulls() for column in (left, right)]
    parts = [column.filter(column.list.len() > 0).explode() for column in parts]
    fields = parts[0].struct.fields if parts[0].dtype == pl.Struct else [None]
    for name in fields:
        one, other = parts if name is None else (column.struct.field(name) for column in parts)
        out[rows[differing(one, other)]] = True
    return out


def _bits(column: pl.Series) -> NDArray[np.int64]:
    return np.ascontiguousarray(column.fill_null(0.0).to_numpy(), np.float64).view(np.int64)


def matched(
    left: pl.DataFrame, right: pl.DataFrame, place: Sequence[str] = ("_partition", "_offset")
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers, in both frames, of the rows that have the same place."""
    places = [frame.select(pl.col(name).cast(pl.Int64) for name in place) for frame in (left, right)]
    if places[0].equals(places[1]):
        same = np.arange(len(left))
        return same, same
    numbered = [frame.with_row_index(name) for frame, name in zip(places, ("left", "right"), strict=True)]
    both = numbered[0].join(numbered[1], on=list(place), maintain_order="left")
    return both["left"].to_numpy().astype(np.int64), both["right"].to_numpy().astype(np.int64)
