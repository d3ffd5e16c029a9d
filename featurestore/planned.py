"""What a view is to the kernel: rows of tables, and the memory that they are written into."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featurestore.expressions import roots
from featurestore.kernel import layout as at
from featurestore.kernel import primitives as prim
from featurestore.kernel.squeezing import room_for
from featurestore.times import ENDLESS

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from featurestore.bagging import Bag, Coding
    from featurestore.definitions import Feature, View


@dataclass(frozen=True)
class Lane:
    """One input of the fold: the values of `column` ("" for the rows themselves) where `where` holds.

    With `other`, only those events count that have a value there too. `coding` says how values become words.
    """

    column: str
    where: pl.Expr | None
    is_float: bool
    other: str = ""
    coding: Coding = ""

    @property
    def is_real(self) -> bool:
        """Whether its words hold floats' bits."""
        return self.is_float and not self.coding


@dataclass(frozen=True)
class Plan:
    """A view made ready to run: `outputs` are its stored features in the order in which the kernel writes them.

    `tracks`, `ops` (of all tracks, one after another), `groups` and `outs` are rows as `kernel.layout` names their
    columns; where a record has addresses of others, they have numbers of rows (of bags and parents one
    more, 0 for none).
    """

    view: View
    lanes: tuple[Lane, ...]
    outputs: tuple[Feature, ...]
    tracks: tuple[tuple[int, ...], ...]
    track_lanes: tuple[tuple[int, ...], ...]
    track_texts: tuple[tuple[int, ...], ...]  # by track the places, in its tiles or records, of codes of texts
    bags: tuple[Bag, ...]
    ops: tuple[tuple[int, ...], ...]
    op_parameters: tuple[float, ...]
    groups: tuple[tuple[int, ...], ...]  # those of bags and lists last
    outs: tuple[tuple[int, ...], ...]
    out_parameters: tuple[float, ...]
    cache_words: int
    lateness: int

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of events that folding looks at, each once; two lanes of a pair each name their own."""
        read = [name for lane in self.lanes for name in (lane.column, *roots(lane.where)) if name]
        return tuple(dict.fromkeys(read))

    @property
    def patient(self) -> Plan:
        """The same plan, for events of which the late ones have been taken out already."""
        return dataclasses.replace(self, lateness=ENDLESS)

    @property
    def has_texts(self) -> bool:
        """Whether states hold codes of texts, and so the texts too."""
        return any(self.track_texts)

    @property
    def movable(self) -> int:
        """How many runs, and tallies of bags, a slot has, each in a room that may become too small."""
        return len(self.tracks) + sum(row[at.OF_BAG] > 0 for row in self.groups)

    @property
    def checks_overflow(self) -> bool:
        """Whether an event may be too much for an integer sum."""
        tiled = [row for row in self.tracks if row[at.KIND] == at.TILES]
        codes = {self.ops[o][at.CODE] for row in tiled for o in range(row[at.FIRST_OP], row[at.END_OP])}
        return bool(codes & {prim.SUM_INT, prim.STATS_INT})

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but tiles of counts and of what STATS_FLOAT holds: see `kernel.stretches`."""
        codes = {row[at.CODE] for row in self.ops}
        tiled = all(row[at.KIND] == at.TILES for row in self.tracks)
        return tiled and all(row[at.SIMPLE] for row in self.groups) and codes <= {prim.STATS_FLOAT, prim.N}

    @property
    def keeps(self) -> int:
        """An event is late only if it lies this far (ms) behind."""
        return max(row[at.HOP if row[at.KIND] == at.SESSIONS else at.KEEP] for row in self.tracks)

    @property
    def reserve(self) -> int:
        """Words that one event may take, but for what doubles a long run."""
        runs = sum(2 * min(self._most(row) or 64, 64) * row[at.STRIDE] for row in self.tracks)
        lists = max((row[at.LIMIT] for row in self.tracks), default=0)  # addresses of the last events
        return runs + lists + self.head_words + self.cache_words

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
        """The most 64-bit words that one entity's state can take on one partition; None where there is no limit.

        Texts come on top, each once.
        """
        most = [self._most(row) for row in self.tracks]
        if None in most:
            return None
        tiles = sum(m * row[at.STRIDE] for m, row in zip(most, self.tracks, strict=True) if m)
        return int(room_for(at.HEAD + len(most) + tiles))

    def _most(self, row: Sequence[int]) -> int | None:
        """The most tiles or records of a track; None where there is no limit."""
        if row[at.KIND] == at.LATEST:
            return 2 * row[at.LIMIT]
        tiles = int(row[at.KEEP] // row[at.HOP] + 2)
        if row[at.KIND] == at.TILES:
            return tiles
        if not row[at.BAG] or row[at.PARENT]:
            return None
        bag = self.bags[row[at.BAG] - 1]
        return bag.most if row[at.SPAN] == ENDLESS or bag.most is None else tiles * bag.most

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
            ("texts", sum(map(len, self.track_texts))),
            ("bags", len(self.bags) * at.BAG_SIZE),
            ("sizes", len(sizes)),
            ("clocks", partitions),
            ("scratch", at.CURSORS * acc + 2 * partitions),
        ):
            places[name], end = end, end + size
        words = np.zeros(end + max(1 << 12, 2 * self.reserve), np.int64)
        words[at.TRACKS], words[at.TRACKS_END] = places["tracks"], places["ops"]
        plain = sum(not row[at.OF_BAG] for row in self.groups)
        words[at.GROUPS], words[at.GROUPS_END] = places["groups"], places["groups"] + plain * at.GROUP_WORDS
        words[at.BAG_GROUPS_END] = places["outs"]
        words[at.HEAD_WORDS], words[at.CACHE_WORDS] = self.head_words, self.cache_words
        words[at.SCRATCH], words[at.ACC_MOST], words[at.PARTITIONS] = places["scratch"], acc, partitions
        words[at.CLOCKS], words[at.SIZES] = places["clocks"], places["sizes"]
        words[at.BEGIN], words[at.USED] = end, end
        words[at.LATENESS], words[at.KEEPS] = self.lateness, self.keeps
        words[at.RESERVE], words[at.CHECKS], words[at.PLAIN] = self.reserve, self.checks_overflow, self.is_plain
        words[places["sizes"] : places["sizes"] + len(sizes)] = sizes
        words[places["clocks"] : places["clocks"] + partitions] = at.INT_MIN
        self._write(words, places)
        return words

    def _write(self, words: NDArray[np.int64], places: Mapping[str, int]) -> None:
        """Write the plan's records, with addresses for numbers of rows."""
        lane, text, reals = places["lanes"], places["texts"], words.view(np.float64)
        bags = [0, *(places["bags"] + i * at.BAG_SIZE for i in range(len(self.bags)))]
        for bag, address in zip(self.bags, bags[1:], strict=True):
            words[address : address + at.BAG_SIZE] = bag.lane, bag.kind, bag.policy, bag.bound, bag.words
        for i, (row, lanes, texts) in enumerate(zip(self.tracks, self.track_lanes, self.track_texts, strict=True)):
            t = places["tracks"] + i * at.TRACK_WORDS
            words[t : t + len(row)] = row
            words[t + at.BAG] = bags[row[at.BAG]]
            if row[at.PARENT]:
                words[t + at.PARENT] = places["tracks"] + (row[at.PARENT] - 1) * at.TRACK_WORDS
            words[t + at.FIRST_TEXT], words[t + at.TEXTS] = text, len(texts)
            words[text : text + len(texts)] = texts
            text += len(texts)
            for column in (at.FIRST_OP, at.END_OP):
                words[t + column] = places["ops"] + row[column] * at.OP_WORDS
            words[t + at.FIRST_LANE], words[t + at.LANES], words[t + at.RUN] = lane, len(lanes), at.RUNS + 2 * i
            words[lane : lane + len(lanes)] = lanes
            lane += len(lanes)
        for i, row in enumerate(self.groups):
            g = places["groups"] + i * at.GROUP_WORDS
            words[g : g + len(row)] = row
            words[g + at.TRACK] = places["tracks"] + row[at.TRACK] * at.TRACK_WORDS
            words[g + at.OF_BAG] = bags[row[at.OF_BAG]]
            for column in (at.FIRST_OUT, at.END_OUT):
                words[g + column] = places["outs"] + row[column] * at.OUT_WORDS
        for rows, parameters, place, size, column in (
            (self.ops, self.op_parameters, places["ops"], at.OP_WORDS, at.PARAMETER),
            (self.outs, self.out_parameters, places["outs"], at.OUT_WORDS, at.OUT_PARAMETER),
        ):
            for i, (row, parameter) in enumerate(zip(rows, parameters, strict=True)):
                words[place + i * size : place + i * size + len(row)] = row
                reals[place + i * size + column] = parameter
