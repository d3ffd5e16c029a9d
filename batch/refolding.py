"""Folding history into what a new definition lacks: states of a view as those of an older one and a part make them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from featurestore import kernel
from featurestore.engine import NO_ENTITY, ViewState
from featurestore.frames import entity_codes, lane_inputs
from featurestore.grafting import Graft
from featurestore.kernel import Results, Steps, layout
from featurestore.kernel import primitives as prim
from featurestore.planned import Plan
from featurestore.values import frozen

Bools = NDArray[np.bool_]

#: Events that the kernel is given at a time.
STEPS = 100_000
#: Integers of which all together stay below this cannot overflow a sum.
_SMALL = 2.0**62
_NO_BYTES: Mapping[bytes, bytes] = {}


@dataclass(frozen=True)
class Refolded:
    """By partition: states of the part, and whole states of those entities that the old states tell nothing of.

    That is where the two definitions do not take the same events, since some are too late for one of them only.
    """

    part: Mapping[int, Mapping[bytes, bytes]]
    whole: Mapping[int, Mapping[bytes, bytes]]
    apart: Mapping[int, set[bytes]]

    def states(self, graft: Graft, partition: int, old: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Every state of a partition, made of the `old` ones."""
        part, apart = self.part.get(partition, _NO_BYTES), self.apart.get(partition, set())
        entities = sorted((old.keys() | part.keys()) - apart)
        made = {entity: graft.state(old.get(entity), part.get(entity)) for entity in entities}
        return made | dict(self.whole.get(partition, _NO_BYTES))


def refolded(graft: Graft, events: pl.DataFrame, partitions: int, *, whole: bool) -> Refolded:
    """Fold the part over the events that the new view takes: the log up to where the old states stand.

    `whole` says that they begin where the log does. Where they do not, no old state is folded anew: it knows more.
    """
    view = graft.new.view
    codes, names = entity_codes(events, view.entity.keys)
    late = late_events(graft.new, events, partitions)
    pairs = codes * partitions + events["_partition"].to_numpy()
    torn = np.zeros(len(events), np.bool_)
    apart: dict[int, set[bytes]] = {}
    if whole:
        differs = (late != late_events(graft.old, events, partitions)) & (codes >= 0)
        torn = np.isin(pairs, pairs[differs])
        for pair in np.unique(pairs[differs]).tolist():
            apart.setdefault(pair % partitions, set()).add(names[pair // partitions])
    return Refolded(
        {} if graft.part is None else _folded(graft.part, events.filter(pl.Series(~torn & ~late)), partitions),
        _folded(graft.new.patient, events.filter(pl.Series(torn & ~late)), partitions) if torn.any() else {},
        apart,
    )


def late_events(plan: Plan, events: pl.DataFrame, partitions: int) -> Bools:
    """Which events of a log are too late for every window of the plan."""
    count, nothing = len(events), np.zeros((0, len(events)), np.int64)
    rows = np.arange(count)
    results = Results(nothing, nothing.view(np.float64), nothing != 0, rows.copy(), np.zeros(count, np.int8), rows[:0])
    steps = Steps(rows, rows, *_columns(events))
    kernel.sort_out(plan.memory(partitions, []), Steps(*map(frozen, steps)), results, False)
    return np.equal(results.status, kernel.LATE)


def may_overflow(plan: Plan, events: pl.DataFrame) -> bool:
    """Whether an integer sum of tiles may refuse an event, so that the events taken depend on what else is kept."""
    lanes = {
        op[layout.LANE]
        for row in plan.tracks
        if row[layout.KIND] == layout.TILES
        for op in plan.ops[row[layout.FIRST_OP] : row[layout.END_OP]]
        if op[layout.CODE] in (prim.SUM_INT, prim.STATS_INT)
    }
    columns = {plan.lanes[lane].column for lane in lanes} - {""}
    return any((events[name].cast(pl.Float64).abs().sum() or 0.0) > _SMALL for name in columns)


def _columns(events: pl.DataFrame) -> list[NDArray[np.int64]]:
    """Partition, time and offset of events, as steps have them."""
    return [np.array(events[name], np.int64) for name in ("_partition", "_time", "_offset")]


def _folded(plan: Plan, events: pl.DataFrame, partitions: int) -> dict[int, dict[bytes, bytes]]:
    """The states that come of folding events, by partition."""
    state = ViewState(plan, partitions)
    for begin in range(0, len(events), STEPS):
        piece = events[begin : begin + STEPS]
        codes, names = entity_codes(piece, plan.view.entity.keys)
        entities = np.append(state.number(names), NO_ENTITY)[codes]
        steps = Steps(np.arange(len(piece)), entities, *_columns(piece))
        state.run(steps, lane_inputs(plan, piece, state.texts), emit=False)
    return {partition: state.blobs(partition) for partition in range(partitions)}
