"""What many entities take: 10 million of them, with count, sum, min, max and std over three windows, three events each.

Not run unless it is named: it takes some minutes, and several GB.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator

import numpy as np
import polars as pl

from benchmarks.engine import START, TILED, steps_of
from featurestore.engine import ViewState
from featurestore.frames import META, entity_codes, lane_inputs
from featurestore.plan import compiled

ENTITIES = 10_000_000
EVENTS = 3
BATCH = 100_000
GB = 1e9


def batches(entities: int) -> Iterator[pl.DataFrame]:
    """Event frames in which each entity has an event every ten minutes or so, in an order of its own each time."""
    rng = np.random.default_rng(1)
    for turn in range(EVENTS):
        cards = rng.permutation(entities)
        for first in range(0, entities, BATCH):
            mine = cards[first : first + BATCH]
            offsets = turn * entities + first + np.arange(len(mine))
            at = START + offsets * 600_000 // entities
            columns = {"card": mine, "amount": rng.lognormal(3, 1, len(mine)).round(2), "at": at}
            meta = {"_partition": np.zeros(len(mine), np.int32), "_offset": offsets, "_timestamp": at, "_time": at}
            yield pl.DataFrame({**columns, **meta}).cast(pl.Schema(META))


def main(entities: int = ENTITIES) -> None:
    state, seconds = ViewState(compiled(TILED), 1), 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for frame in batches(entities):
        begun = time.perf_counter()
        codes, keys = entity_codes(frame, ["card"])
        state.run(steps_of(frame, state.number(keys)[codes]), lane_inputs(state.plan, frame, state.texts), emit=True)
        seconds += time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{entities:,} entities, {EVENTS} events each")
    print(f"  peak of process  {1024 * peak / GB:>8.2f} GB, {1024 * before / GB:.2f} of them before the first event")
    print(f"  events/s         {entities * EVENTS / seconds:>8,.0f}")
