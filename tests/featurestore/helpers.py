"""Small steps from plain events to the engine, for tests."""

from __future__ import annotations

import numpy as np
import polars as pl
from numba import njit

from featurestore import Entity, Source, kernel, oracle, view
from featurestore.engine import NO_ENTITY, ViewState, words_of
from featurestore.expressions import TYPES
from featurestore.frames import META, checked_events, entity_codes, feature_columns, lane_inputs, with_derived
from featurestore.kernel import Steps
from featurestore.keys import encode_entity
from featurestore.plan import compiled
from tests.featurestore.closeness import assert_close

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


def callable_part(part):
    """A part of the kernel, made whole, so that Python can call it."""

    @njit(error_model="numpy")
    def call(*arguments):
        return part(*arguments)

    return call


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


def do(state, work, *, emit=True):
    """Do work in one batch: plain events to fold (and with `emit` read right after), (entity, as_of) pairs to read."""
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
    return state.run(Steps(*columns), lane_inputs(state.plan, frame, state.texts), emit=emit)


def values_of(plan, results, step, texts=None):
    """Stored features of a step as plain values by name; None for null."""
    columns = feature_columns(plan, results, texts, np.array([step]))
    values = {feature.name: columns[feature.name][0].as_py() for feature in plan.outputs}
    maps = {f.name for f in plan.outputs if f.type.startswith("map") and values[f.name] is not None}
    return {name: dict(value) if name in maps else value for name, value in values.items()}


def assert_features(state, results, step, events, want):
    """Those of a step are close to what the oracle says of the events so far."""
    got = values_of(state.plan, results, step, state.texts)
    assert got.keys() == want.keys()
    for feature in state.plan.view.stored:
        inputs = [value for value in oracle.inputs(feature, events) if value is not None]
        assert_close(got[feature.name], want[feature.name], feature, inputs)


def fold(state, *, partition=0, first=0, times=None, **columns):
    """Fold many events of entity "a", by default all at noon, looking at no feature in between."""
    count = len(next(iter(columns.values())))
    told = {"k": pl.repeat("a", count, eager=True), "at": np.full(count, NOON) if times is None else times, **columns}
    frame = pl.DataFrame(told).with_columns(pl.lit(None).alias(c) for c in SOURCE.schema if c not in told)
    frame = checked_events(SOURCE, frame)
    (number,) = state.number([encode_entity(("a",))])
    every, offsets = np.arange(count), first + np.arange(count)
    steps = Steps(every, np.full(count, number), np.full(count, partition), frame["_time"].to_numpy(), offsets)
    state.run(steps, lane_inputs(state.plan, frame, state.texts), emit=False)
    return state


def bits(state, work, *, emit=True):
    """All that comes of doing work, as plain data; what is null has no bits."""
    results = do(state, work, emit=emit)
    columns = feature_columns(state.plan, results, state.texts)
    words = np.where(results.valid, results.words, 0).T.tolist()
    for j, feature in enumerate(state.plan.outputs):
        if feature.type not in TYPES:  # where a list lies depends on what came before it
            for row, value in zip(words, columns[feature.name].to_pylist(), strict=True):
                row[j] = repr(value)
    return list(zip(words, results.valid.T.tolist(), results.effective.tolist(), results.status.tolist(), strict=True))


def read(state, entity=("a",), as_of=0):
    """Stored features of an entity by name."""
    return values_of(state.plan, do(state, [(entity, as_of)]), 0, state.texts)


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


def within(blob, change):
    """A stored state whose words, as bytes, are changed before they are squeezed."""
    return kernel.squeezed(np.frombuffer(change(words_of(blob).tobytes()), np.int64)).tobytes()
