"""What a view is to the kernel: rows of tables, and the memory that they are written into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featurestore.kernel import layout as at
from featurestore.kernel import primitives as prim

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from featurestore.definitions import Feature, View


@dataclass(frozen=True)
class Lane:
    """One input of the fold: the values of `column` ("" for the rows themselves) where `where` holds.

    With `other`, only those events count that have a value there too.
    """

    column: str
    where: pl.Expr | None
    is_float: bool
    other: str = ""


@dataclass(frozen=True)
class Plan:
    """A view made ready to run: `outputs` are its stored features in the order in which the kernel writes them.

    `tracks`, `ops` (of all tracks, one after another), `groups` and `outs` are rows as `kernel.layout` names their
    columns; where a record has addresses of others, they have numbers of rows.
    """

    view: View
    lanes: tuple[Lane, ...]
    outputs: tuple[Feature, ...]
    tracks: tuple[tuple[int, ...], ...]
    track_lanes: tuple[tuple[int, ...], ...]
    ops: tuple[tuple[int, ...], ...]
    op_parameters: tuple[float, ...]
    groups: tuple[tuple[int, ...], ...]
    outs: tuple[tuple[int, ...], ...]
    out_parameters: tuple[float, ...]
    cache_words: int
    lateness: int

    @property
    def checks_overflow(self) -> bool:
        """Whether an event may be too much for an integer sum."""
        tiled = [row for row in self.tracks if row[at.KIND] == at.TILES]
        codes = {self.ops[o][at.CODE] for row in tiled for o in range(row[at.FIRST_OP], row[at.END_OP])}
        return bool(codes & {prim.SUM_INT, prim.STATS_INT})

    @property
    def keeps(self) -> int:
        """An event is late only if it lies this far (ms) behind."""
        return max(row[at.HOP if row[at.KIND] == at.SESSIONS else at.KEEP] for row in self.tracks)

    @property
    def reserve(self) -> int:
        """Words that one event may take, but for what doubles a long run."""
        runs = sum(2 * min(_most(row), 64) * row[at.STRIDE] for row in self.tracks)
        return runs + self.head_words + self.cache_words

    @property
    def has_sessions(self) -> bool:
        """Whether any window is a session."""
        return any(row[at.KIND] == at.SESSIONS for row in self.tracks)

    @property
    def head_words(self) -> int:
        """Words of a slot's head."""
        return at.RUNS + 2 * len(self.tracks)

    @property
    def state_words(self) -> int | None:
        """The most 64-bit words that one entity's state can take on one partition; None where there is no limit."""
        if any(row[at.KIND] in (at.EVENTS, at.SESSIONS) for row in self.tracks):
            return None
        return at.HEAD + len(self.tracks) + sum(_most(row) * row[at.STRIDE] for row in self.tracks)

    def memory(self, partitions: int, sizes: Sequence[int]) -> NDArray[np.int64]:
        """The memory that the kernel works in, of a state that holds nothing yet (see `kernel.layout`).

        `sizes` are those of rooms for runs, in tiles, ascending.
        """
        acc, places, end = max(row[at.ACC] for row in self.tracks), {}, at.PLAN_WORDS
        for name, size in (
            ("tracks", len(self.tracks) * at.TRACK_WORDS),
            ("ops", len(self.ops) * at.OP_WORDS),
            ("groups", len(self.groups) * at.GROUP_WORDS),
            ("outs", len(self.outs) * at.OUT_WORDS),
            ("lanes", sum(map(len, self.track_lanes))),
            ("sizes", len(sizes)),
            ("clocks", partitions),
            ("scratch", 5 * acc + partitions),
        ):
            places[name], end = end, end + size
        words = np.zeros(end + max(1 << 12, 2 * self.reserve), np.int64)
        words[at.TRACKS], words[at.TRACKS_END] = places["tracks"], places["ops"]
        words[at.GROUPS], words[at.GROUPS_END] = places["groups"], places["outs"]
        words[at.HEAD_WORDS], words[at.CACHE_WORDS] = self.head_words, self.cache_words
        words[at.SCRATCH], words[at.ACC_MOST], words[at.PARTITIONS] = places["scratch"], acc, partitions
        words[at.CLOCKS], words[at.SIZES], words[at.USED] = places["clocks"], places["sizes"], end
        words[at.LATENESS], words[at.KEEPS] = self.lateness, self.keeps
        words[at.RESERVE], words[at.CHECKS] = self.reserve, self.checks_overflow
        words[places["sizes"] : places["sizes"] + len(sizes)] = sizes
        words[places["clocks"] : places["clocks"] + partitions] = at.INT_MIN
        self._write(words, places)
        return words

    def _write(self, words: NDArray[np.int64], places: Mapping[str, int]) -> None:
        """Write the plan's records, with addresses for numbers of rows."""
        lane, reals = places["lanes"], words.view(np.float64)
        for i, (row, lanes) in enumerate(zip(self.tracks, self.track_lanes, strict=True)):
            t = places["tracks"] + i * at.TRACK_WORDS
            words[t : t + len(row)] = row
            for column in (at.FIRST_OP, at.END_OP):
                words[t + column] = places["ops"] + row[column] * at.OP_WORDS
            words[t + at.FIRST_LANE], words[t + at.LANES], words[t + at.RUN] = lane, len(lanes), at.RUNS + 2 * i
            words[lane : lane + len(lanes)] = lanes
            lane += len(lanes)
        for i, row in enumerate(self.groups):
            g = places["groups"] + i * at.GROUP_WORDS
            words[g : g + len(row)] = row
            words[g + at.TRACK] = places["tracks"] + row[at.TRACK] * at.TRACK_WORDS
            for column in (at.FIRST_OUT, at.END_OUT):
                words[g + column] = places["outs"] + row[column] * at.OUT_WORDS
        for rows, parameters, place, size, column in (
            (self.ops, self.op_parameters, places["ops"], at.OP_WORDS, at.PARAMETER),
            (self.outs, self.out_parameters, places["outs"], at.OUT_WORDS, at.OUT_PARAMETER),
        ):
            for i, (row, parameter) in enumerate(zip(rows, parameters, strict=True)):
                words[place + i * size : place + i * size + len(row)] = row
                reals[place + i * size + column] = parameter


def _most(row: Sequence[int]) -> int:
    """The most tiles of a track; of sessions and events a guess."""
    if row[at.KIND] == at.LATEST:
        return 2 * row[at.LIMIT]
    return int(row[at.KEEP] // row[at.HOP] + 2) if row[at.KIND] == at.TILES else 8
