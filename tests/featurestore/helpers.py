"""Small steps from plain events to the engine, for tests."""

from __future__ import annotations

import numpy as np
import polars as pl

from featurestore import Entity, Source, view
from featurestore.engine import NO_ENTITY, ViewState
from featurestore.expressions import TYPES
from featurestore.frames import META, entity_codes, lane_inputs, with_derived
from featurestore.kernel import Steps
from featurestore.keys import encode_entity
from featurestore.plan import compiled

STATUSES = ("folded", "late", "overflow", "keyless")
PARTITIONS = 3
NOON = 1_700_000_000_000 // 86_400_000 * 86_400_000  # a tile edge of every hop

SOURCE = Source(
    "events",
    schema={"k": str, "g": int, "i": int, "x": float, "b": bool, "s": str, "at": "timestamp[ms]"},
    event_time="at",
    key="k",
    lateness="10s",
)
KEY = Entity("key", key="k")


def made(features, *, source=SOURCE, entity=KEY, windows=()):
    """A view of features by name."""
    return view(entity=entity, source=source, windows=windows)(type("Made", (), features))


def event(time, *, partition=0, offset=0, k="a", g=1, i=None, x=None, b=None, s=None):
    """One plain event of `SOURCE`."""
    meta = {"_partition": partition, "_offset": offset, "_timestamp": time, "_time": time}
    return {"k": k, "g": g, "i": i, "x": x, "b": b, "s": s, "at": time, **meta}


def numbered(events):
    """The events with offsets in the order in which they come, partition by partition."""
    seen = dict.fromkeys(range(PARTITIONS), 0)
    out = []
    for each in events:
        out.append({**each, "_offset": seen[each["_partition"]]})
        seen[each["_partition"]] += 1
    return out


def frame_of(source, events):
    """An event frame of plain events."""
    kinds = {name: TYPES[kind] for name, kind in source.schema.items()}
    return with_derived(source, pl.DataFrame(events, schema={**kinds, **META}))


def state_of(chosen):
    return ViewState(compiled(chosen), PARTITIONS)


def do(state, work):
    """Do work in one batch: plain events to fold (and read right after), and (entity, as_of) pairs to read."""
    chosen = state.plan.view
    events = [each for each in work if isinstance(each, dict)]
    frame = frame_of(chosen.source, events)
    codes, keys = entity_codes(frame, chosen.entity.keys)
    numbers = iter(np.append(state.number(keys), NO_ENTITY)[codes].tolist())
    rows = iter(range(len(events)))
    steps = [
        (next(rows), next(numbers), each["_partition"], each["_time"], each["_offset"])
        if isinstance(each, dict)
        else (-1, int(state.number([encode_entity(each[0])])[0]), -1, each[1], -1)
        for each in work
    ]
    columns = np.array(steps, np.int64).reshape(-1, 5).T.copy()
    return state.run(Steps(*columns), lane_inputs(state.plan, frame), emit=True)


def values_of(plan, results, step):
    """Stored features of a step as plain values by name; None for null."""
    out = {}
    for j, feature in enumerate(plan.outputs):
        cells = results.reals if feature.type == "float" else results.words
        value = cells[j, step].item()
        out[feature.name] = (bool(value) if feature.type == "bool" else value) if results.valid[j, step] else None
    return out


def bits(results):
    """All that results say, as plain data; what is null has no bits."""
    words = np.where(results.valid, results.words, 0)
    return list(
        zip(
            words.T.tolist(), results.valid.T.tolist(), results.effective.tolist(), results.status.tolist(), strict=True
        )
    )


def read(state, entity=("a",), as_of=0):
    """Stored features of an entity by name."""
    return values_of(state.plan, do(state, [(entity, as_of)]), 0)


def stored(state):
    """All that a store would hold: clocks, and states by partition and entity."""
    return {p: (state.clock(p), state.blobs(p)) for p in range(PARTITIONS)}


def restored(state):
    """A fresh state loaded from what the store holds, with its entities numbered in another order."""
    fresh = state_of(state.plan.view)
    for partition, (clock, blobs) in stored(state).items():
        if clock is not None:
            fresh.set_clock(partition, clock)
        for entity in sorted(blobs, reverse=True):
            (number,) = fresh.number([entity])
            fresh.load(int(number), partition, blobs[entity])
    return fresh
