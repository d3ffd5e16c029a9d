"""The compiled kernel: events fold into tiles, tiles merge into windows, windows finish into features.

One kernel serves stream and batch. It works on plain arrays, in the order it is given, and never subtracts a value to
expire it: a tile out of every window is dropped whole. A word is 64 bits; floats and integers share the same memory
through two views of it, so that each keeps its own bits.

Sums of floats are compensated after Neumaier, ZAMM 54 (1974); moments follow Welford, Technometrics 4 (1962), and
merge after Chan, Golub and LeVeque, COMPSTAT (1982).

All of it is one module on purpose: Numba's cache looks only at the file of the function that is called, and would run
what was compiled from another file's older text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from featurestore.plan import (
    COUNT,
    FIRST,
    LAST,
    MAX_FLOAT,
    MAX_INT,
    MEAN_FLOAT,
    MEAN_INT,
    MIN_FLOAT,
    MIN_INT,
    MOMENTS_FLOAT,
    MOMENTS_INT,
    STD,
    SUM_FLOAT,
    SUM_INT,
    TIMED_VALUE,
    TOTAL_FLOAT,
    TOTAL_INT,
    N,
    Tables,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 2
HEAD = 3
# Nothing here allocates: without Numba's reference counting a call costs nothing, with it some 15 atomic operations.
_compiled = njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
# A call of these would hand over the state as some hundred scalars.
_inlined = njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True)
#: What became of an event: folded; too late for every window; quarantined, since an integer sum would overflow; left
#: out of the view, since its entity key is null.
FOLDED, LATE, OVERFLOW, KEYLESS = range(4)
_INT_MAX = np.iinfo(np.int64).max
_INT_MIN = np.iinfo(np.int64).min
_TWO_TO_64 = 2.0**64


class State(NamedTuple):
    """All entities' tiles of one view. A *slot* is one entity on one partition."""

    slots: NDArray[np.int64]  # [entity, partition] -> slot, -1 for none
    newest: NDArray[np.int64]  # [slot] newest event time
    folded: NDArray[np.int64]  # [slot] offset of the last event folded
    runs: NDArray[np.int64]  # [slot, track] -> first word, tiles, capacity class
    words: NDArray[np.int64]  # the pool that runs lie in
    reals: NDArray[np.float64]  # the same memory
    free: NDArray[np.int64]  # [track, class] -> first word of a free run, -1 for none; chained by its first word
    sizes: NDArray[np.int64]  # [class] -> tiles
    used: NDArray[np.int64]  # words in use, slots in use, dirty slots
    owners: NDArray[np.int64]  # [slot] -> entity, partition
    dirty: NDArray[np.int64]  # [0: flag by slot, 1: list of the dirty]
    clock: NDArray[np.int64]  # [partition] newest event time
    cache: NDArray[np.int64]  # [slot] by group: oldest tile, newest tile, all from the one to before the other, merged


class Steps(NamedTuple):
    """What to do, in order: fold event `row` of the inputs, or (row -1) read the entity as of the time."""

    row: NDArray[np.int64]
    entity: NDArray[np.int64]
    partition: NDArray[np.int64]
    time: NDArray[np.int64]
    offset: NDArray[np.int64]  # ascending by partition: an event that its entity's state holds already is not folded


class Inputs(NamedTuple):
    """Values of each lane by event; `reals` is the same memory as `words`. Invalid ones are skipped."""

    words: NDArray[np.int64]  # [lane, row]
    reals: NDArray[np.float64]
    valid: NDArray[np.bool_]


class Accumulators(NamedTuple):
    """A window while its tiles are merged: laid out as a tile, and how often the integer sum of each op wrapped."""

    words: NDArray[np.int64]
    reals: NDArray[np.float64]  # the same memory
    wraps: NDArray[np.int64]  # [op]; +1 upwards, -1 downwards: 0 in the end means that the sum is right


class Results(NamedTuple):
    """What came out, by step: feature values (two views of one memory), whether they are there, time, event status."""

    words: NDArray[np.int64]  # [step, output]
    reals: NDArray[np.float64]
    valid: NDArray[np.bool_]
    effective: NDArray[np.int64]
    status: NDArray[np.int8]


@_compiled
def _take_run(state: State, track: int, size_class: int, stride: int) -> int:
    start = state.free[track, size_class]
    if start >= 0:
        state.free[track, size_class] = state.words[start]
    else:
        start = state.used[0]
        state.used[0] += state.sizes[size_class] * stride
    return int(start)


@_compiled
def _drop_expired(state: State, slot: int, track: int, stride: int, oldest: int) -> None:
    """Forget tiles older than every window of the track."""
    start, tiles = state.runs[slot, track, 0], state.runs[slot, track, 1]
    gone = 0
    while gone < tiles and state.words[start + gone * stride] < oldest:
        gone += 1
    if gone:
        for i in range((tiles - gone) * stride):
            state.words[start + i] = state.words[start + gone * stride + i]
        state.runs[slot, track, 1] = tiles - gone


@_compiled
def _make_room(state: State, slot: int, track: int, stride: int, size_class: int) -> None:
    """Move a run to a larger size."""
    run = state.runs[slot, track]
    old, old_class = run[0], run[2]
    new = _take_run(state, track, size_class, stride)
    if old_class >= 0:
        for i in range(run[1] * stride):
            state.words[new + i] = state.words[old + i]
        state.words[old] = state.free[track, old_class]
        state.free[track, old_class] = old
    run[0], run[2] = new, size_class


@_inlined
def _place(state: State, slot: int, track: int, stride: int, index: int) -> int:
    """How many tiles of the run lie before `index`."""
    start, low, high = state.runs[slot, track, 0], 0, state.runs[slot, track, 1]
    if high and state.words[start + (high - 1) * stride] < index:
        return int(high)  # as is usual
    while low < high:
        middle = (low + high) >> 1
        if state.words[start + middle * stride] < index:
            low = middle + 1
        else:
            high = middle
    return int(low)


@_inlined
def _tile(state: State, slot: int, track: int, stride: int, index: int, oldest: int) -> int:
    """The first word of the tile, made when it is not there."""
    place = _place(state, slot, track, stride, index)
    run = state.runs[slot, track]
    at = run[0] + place * stride
    if place < run[1] and state.words[at] == index:
        return int(at)
    if run[2] < 0 or run[1] == state.sizes[run[2]]:
        _drop_expired(state, slot, track, stride, oldest)
        if run[2] < 0 or run[1] == state.sizes[run[2]]:
            _make_room(state, slot, track, stride, run[2] + 1)
        place = _place(state, slot, track, stride, index)
        at = run[0] + place * stride
    end = run[0] + run[1] * stride
    for i in range(end - 1, at - 1, -1):
        state.words[i + stride] = state.words[i]
    for i in range(at, at + stride):
        state.words[i] = 0
    state.words[at] = index
    run[1] += 1
    return int(at)


@_inlined
def _add(
    state: State, ops: NDArray[np.int64], first: int, end: int, at: int, inputs: Inputs, row: int, time: int
) -> None:
    """Fold one event into one tile."""
    words, reals = state.words, state.reals
    for o in range(first, end):
        lane = ops[o, 1]
        if not inputs.valid[lane, row]:
            continue
        op, w, n = ops[o, 0], at + ops[o, 2], words[at + ops[o, 3]]
        if op == N:
            words[w] += 1
        elif op == SUM_FLOAT:
            _add_real(reals, w, inputs.reals[lane, row])
        elif op == SUM_INT:
            words[w] += inputs.words[lane, row]
        elif op == MIN_FLOAT:
            reals[w] = inputs.reals[lane, row] if n == 0 else min(reals[w], inputs.reals[lane, row])
        elif op == MAX_FLOAT:
            reals[w] = inputs.reals[lane, row] if n == 0 else max(reals[w], inputs.reals[lane, row])
        elif op == MIN_INT:
            words[w] = inputs.words[lane, row] if n == 0 else min(words[w], inputs.words[lane, row])
        elif op == MAX_INT:
            words[w] = inputs.words[lane, row] if n == 0 else max(words[w], inputs.words[lane, row])
        elif op in (MOMENTS_FLOAT, MOMENTS_INT):
            value = inputs.reals[lane, row] if op == MOMENTS_FLOAT else float(inputs.words[lane, row])
            delta = value - reals[w]
            reals[w] += delta / (n + 1)
            reals[w + 1] += delta * (value - reals[w])
        elif n == 0 or (op == FIRST and time < words[w]) or (op == LAST and time >= words[w]):
            words[w] = time
            words[w + 1] = inputs.words[lane, row]


@_inlined
def _add_real(reals: NDArray[np.float64], w: int, value: float) -> None:
    total = reals[w] + value
    if np.isfinite(total):
        if abs(reals[w]) >= abs(value):
            reals[w + 1] += (reals[w] - total) + value
        else:
            reals[w + 1] += (value - total) + reals[w]
    reals[w] = total


@_inlined
def _overflows(a: int, b: int) -> bool:
    return (b > 0 and a > _INT_MAX - b) or (b < 0 and a < _INT_MIN - b)


@_inlined
def _merge(
    ops: NDArray[np.int64],
    first: int,
    end: int,
    acc: Accumulators,
    tile: int,
    words: NDArray[np.int64],
    reals: NDArray[np.float64],
) -> None:
    """Merge a tile into the accumulators."""
    aw, ar = acc.words, acc.reals
    for o in range(first, end):
        op, a, b = ops[o, 0], ops[o, 2], tile + ops[o, 2]
        na, nb = aw[ops[o, 3]], words[tile + ops[o, 3]]
        if nb == 0:
            continue
        if op == N:
            aw[a] = na + nb
        elif op == SUM_FLOAT:
            _add_real(ar, a, reals[b])
            ar[a + 1] += reals[b + 1]
        elif op == SUM_INT:
            if _overflows(aw[a], words[b]):
                acc.wraps[o] += 1 if words[b] > 0 else -1
            aw[a] += words[b]
        elif op == MIN_FLOAT:
            ar[a] = reals[b] if na == 0 else min(ar[a], reals[b])
        elif op == MAX_FLOAT:
            ar[a] = reals[b] if na == 0 else max(ar[a], reals[b])
        elif op == MIN_INT:
            aw[a] = words[b] if na == 0 else min(aw[a], words[b])
        elif op == MAX_INT:
            aw[a] = words[b] if na == 0 else max(aw[a], words[b])
        elif op in (MOMENTS_FLOAT, MOMENTS_INT):
            if na == 0:
                ar[a], ar[a + 1] = reals[b], reals[b + 1]
            else:
                delta, n = reals[b] - ar[a], na + nb
                ar[a] += delta * nb / n
                ar[a + 1] += reals[b + 1] + delta * delta * (na * (nb / n))
        elif na == 0 or (op == FIRST and words[b] < aw[a]) or (op == LAST and words[b] >= aw[a]):
            aw[a], aw[a + 1] = words[b], words[b + 1]


@_inlined
def _finish_one(out: NDArray[np.int64], acc: Accumulators, results: Results, step: int, j: int) -> None:
    aw, ar = acc.words, acc.reals
    code, w, n = out[0], out[1], aw[out[2]]
    valid = True
    if code == COUNT:
        results.words[step, j] = n
    elif code == TOTAL_FLOAT:
        results.reals[step, j] = ar[w] + ar[w + 1]
    elif code == TOTAL_INT:
        valid = acc.wraps[out[3]] == 0
        results.words[step, j] = aw[w]
    elif code == STD:
        valid = n > 1
        results.reals[step, j] = np.sqrt(ar[w + 1] / (n - 1)) if valid else 0.0
    elif n == 0:
        valid = False
    elif code == MEAN_FLOAT:
        results.reals[step, j] = (ar[w] + ar[w + 1]) / n
    elif code == MEAN_INT:
        results.reals[step, j] = (aw[w] + acc.wraps[out[3]] * _TWO_TO_64) / n
    elif code == TIMED_VALUE:
        results.words[step, j] = aw[w + 1]
    else:
        results.words[step, j] = aw[w]
    results.valid[step, j] = valid


@_inlined
def _recall(tables: Tables, state: State, slot: int, g: int, acc: Accumulators) -> None:
    """Take from the cache what is merged of a group's window."""
    track, at = tables.groups[g, 0], tables.groups[g, 4] + 2
    stride, first = tables.tracks[track, 2], tables.tracks[track, 3]
    for i in range(stride):
        acc.words[i] = state.cache[slot, at + i]
    for o in range(first, tables.tracks[track, 4]):
        acc.wraps[o] = state.cache[slot, at + stride + o - first]


@_inlined
def _remember(tables: Tables, state: State, slot: int, g: int, oldest: int, newest: int, acc: Accumulators) -> None:
    """Put into the cache what is merged of a group's window."""
    track, at = tables.groups[g, 0], tables.groups[g, 4]
    stride, first = tables.tracks[track, 2], tables.tracks[track, 3]
    state.cache[slot, at] = oldest
    state.cache[slot, at + 1] = newest
    for i in range(stride):
        state.cache[slot, at + 2 + i] = acc.words[i]
    for o in range(first, tables.tracks[track, 4]):
        state.cache[slot, at + 2 + stride + o - first] = acc.wraps[o]


@_inlined
def _forget(tables: Tables, state: State, slot: int) -> None:
    """Drop what the cache has of a slot."""
    for g in range(tables.groups.shape[0]):
        state.cache[slot, tables.groups[g, 4]] = _INT_MIN


@_inlined
def _window(tables: Tables, state: State, slot: int, g: int, oldest: int, acc: Accumulators) -> bool:
    """Merge the slot's tiles from `oldest` on into `acc`, oldest to newest; False when there are none.

    Tiles but the newest are closed: what they merge to is kept until the window moves on by a tile.
    """
    track, at = tables.groups[g, 0], tables.groups[g, 4]
    stride, first, end = tables.tracks[track, 2], tables.tracks[track, 3], tables.tracks[track, 4]
    start, tiles = state.runs[slot, track, 0], state.runs[slot, track, 1]
    if tiles == 0 or state.words[start + (tiles - 1) * stride] < oldest:
        return False
    newest = state.words[start + (tiles - 1) * stride]
    if state.cache[slot, at] == oldest:
        _recall(tables, state, slot, g, acc)
        known = state.cache[slot, at + 1]
        place = tiles - 1 if known == newest else _place(state, slot, track, stride, known)
    else:
        acc.words[:stride] = 0
        acc.wraps[:] = 0
        known = _INT_MIN
        place = _place(state, slot, track, stride, oldest)
    if known != newest:
        for k in range(place, tiles - 1):
            _merge(tables.ops, first, end, acc, start + k * stride, state.words, state.reals)
        _remember(tables, state, slot, g, oldest, newest, acc)
    _merge(tables.ops, first, end, acc, start + (tiles - 1) * stride, state.words, state.reals)
    return True


@_inlined
def _finish(
    tables: Tables,
    state: State,
    entity: int,
    as_of: int,
    acc: Accumulators,
    part: Accumulators,
    results: Results,
    step: int,
) -> None:
    """Write the entity's features as of `as_of`, or of its newest event when that is later; nulls for no entity.

    Each partition's tiles merge oldest to newest; the partitions' results then merge in partition order.
    """
    partitions = state.slots.shape[1]
    effective = as_of
    for p in range(partitions if entity >= 0 else 0):
        slot = state.slots[entity, p]
        if slot >= 0:
            effective = max(effective, state.newest[slot])
    results.effective[step] = effective
    if entity < 0:
        return
    for g in range(tables.groups.shape[0]):
        track = tables.groups[g, 0]
        first, end = tables.tracks[track, 3], tables.tracks[track, 4]
        oldest = (effective - tables.groups[g, 1] + 1) // tables.tracks[track, 0]
        found = False
        for p in range(partitions):
            slot = state.slots[entity, p]
            if slot < 0:
                continue
            if not found:
                found = _window(tables, state, slot, g, oldest, acc)
            elif _window(tables, state, slot, g, oldest, part):
                _merge(tables.ops, first, end, acc, 0, part.words, part.reals)
                for o in range(first, end):
                    acc.wraps[o] += part.wraps[o]
        if not found:
            acc.words[: tables.tracks[track, 2]] = 0
            acc.wraps[:] = 0
        for j in range(tables.groups[g, 2], tables.groups[g, 3]):
            _finish_one(tables.outs[j], acc, results, step, j)


@_inlined
def _is_late(tables: Tables, time: int, limit: int) -> bool:
    for k in range(tables.tracks.shape[0] - 1, -1, -1):  # the longest windows are the last
        hop = tables.tracks[k, 0]
        if time // hop >= (limit - tables.tracks[k, 1] + 1) // hop:
            return False
    return True


@_compiled
def _would_overflow(tables: Tables, state: State, slot: int, inputs: Inputs, row: int, time: int) -> bool:
    newest = max(state.newest[slot], time)
    for k in range(tables.tracks.shape[0]):
        hop, stride = tables.tracks[k, 0], tables.tracks[k, 2]
        index = time // hop
        if index < (newest - tables.tracks[k, 1] + 1) // hop:
            continue  # expired: whether its tile is still here must not matter
        place = _place(state, slot, k, stride, index)
        at = state.runs[slot, k, 0] + place * stride
        if place == state.runs[slot, k, 1] or state.words[at] != index:
            continue
        for o in range(tables.tracks[k, 3], tables.tracks[k, 4]):
            lane = tables.ops[o, 1]
            adds = tables.ops[o, 0] == SUM_INT and inputs.valid[lane, row]
            if adds and _overflows(state.words[at + tables.ops[o, 2]], inputs.words[lane, row]):
                return True
    return False


@_inlined
def _slot(tables: Tables, state: State, entity: int, partition: int) -> int:
    slot = state.slots[entity, partition]
    if slot < 0:
        slot = state.used[1]
        state.used[1] += 1
        state.slots[entity, partition] = slot
        state.owners[slot, 0] = entity
        state.owners[slot, 1] = partition
        state.newest[slot] = state.folded[slot] = _INT_MIN
        state.runs[slot, :, :2] = 0
        state.runs[slot, :, 2] = -1
        state.dirty[0, slot] = 0
        _forget(tables, state, slot)
    return int(slot)


@_inlined
def _fold(tables: Tables, state: State, slot: int, inputs: Inputs, row: int, time: int) -> None:
    newest = max(state.newest[slot], time)
    if time < state.newest[slot]:
        _forget(tables, state, slot)  # it may fall into a closed tile
    state.newest[slot] = newest
    if not state.dirty[0, slot]:
        state.dirty[0, slot] = 1
        state.dirty[1, state.used[2]] = slot
        state.used[2] += 1
    for k in range(tables.tracks.shape[0]):
        hop, stride = tables.tracks[k, 0], tables.tracks[k, 2]
        index, oldest = time // hop, (newest - tables.tracks[k, 1] + 1) // hop
        if index >= oldest:  # else no read can ever see it
            at = _tile(state, slot, k, stride, index, oldest)
            _add(state, tables.ops, tables.tracks[k, 3], tables.tracks[k, 4], at, inputs, row, time)


@_compiled
def run(
    tables: Tables,
    state: State,
    steps: Steps,
    inputs: Inputs,
    acc: Accumulators,
    part: Accumulators,
    results: Results,
    begin: int,
    lateness: int,
    checks: bool,
    emit: bool,
) -> int:
    """Do the steps from `begin` on; returns the number done: fewer than there are when the pool of words must grow.

    A folded event gets a row of results when `emit` is set; a read always does.
    """
    reserve = 0
    for k in range(tables.tracks.shape[0]):
        reserve += tables.tracks[k, 2] * tables.tracks[k, 5] * 2
    for i in range(begin, steps.row.shape[0]):
        row, entity, time = steps.row[i], steps.entity[i], steps.time[i]
        if row >= 0:
            partition = steps.partition[i]
            state.clock[partition] = max(state.clock[partition], time)
            if _is_late(tables, time, state.clock[partition] - lateness):
                results.status[i] = LATE
                continue
            if entity < 0:
                results.status[i] = KEYLESS
                continue
            if state.used[0] + reserve > state.words.shape[0]:
                return i
            slot = _slot(tables, state, entity, partition)
            if steps.offset[i] <= state.folded[slot]:
                if emit:
                    _finish(tables, state, entity, time, acc, part, results, i)
                continue
            if checks and _would_overflow(tables, state, slot, inputs, row, time):
                results.status[i] = OVERFLOW
                continue
            _fold(tables, state, slot, inputs, row, time)
            state.folded[slot] = steps.offset[i]
        if row < 0 or emit:
            _finish(tables, state, entity, time, acc, part, results, i)
    return int(steps.row.shape[0])


@njit(cache=True, nogil=True)
def sizes_of(tables: Tables, state: State, slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Words that each slot's state takes when encoded."""
    out = np.empty(slots.shape[0], np.int64)
    for i in range(slots.shape[0]):
        slot, size = slots[i], HEAD + tables.tracks.shape[0]
        for k in range(tables.tracks.shape[0]):
            hop, stride = tables.tracks[k, 0], tables.tracks[k, 2]
            oldest = (state.newest[slot] - tables.tracks[k, 1] + 1) // hop
            size += (state.runs[slot, k, 1] - _place(state, slot, k, stride, oldest)) * stride
        out[i] = size
    return out


@njit(cache=True, nogil=True)
def encode(
    tables: Tables, state: State, slots: NDArray[np.int64], ends: NDArray[np.int64], out: NDArray[np.int64]
) -> None:
    """Write the slots' states one after another.

    A state is its head (format and tracks, newest time, last offset), the number of tiles of each track, and the tiles.
    """
    tracks = tables.tracks.shape[0]
    for i in range(slots.shape[0]):
        slot, at = slots[i], 0 if i == 0 else ends[i - 1]
        out[at] = FORMAT | tracks << 8
        out[at + 1] = state.newest[slot]
        out[at + 2] = state.folded[slot]
        to = at + HEAD + tracks
        for k in range(tracks):
            hop, stride = tables.tracks[k, 0], tables.tracks[k, 2]
            first = _place(state, slot, k, stride, (state.newest[slot] - tables.tracks[k, 1] + 1) // hop)
            live = state.runs[slot, k, 1] - first
            out[at + HEAD + k] = live
            start = state.runs[slot, k, 0] + first * stride
            out[to : to + live * stride] = state.words[start : start + live * stride]
            to += live * stride


@_compiled
def is_sound(tables: Tables, blob: NDArray[np.int64]) -> bool:
    """Whether the words are an encoded state: of this format, as many tiles as they say, in order, none expired."""
    tracks = tables.tracks.shape[0]
    if blob.shape[0] < HEAD + tracks or blob[0] != FORMAT | tracks << 8:
        return False
    newest, at = blob[1], HEAD + tracks
    for k in range(tracks):
        hop, keep, stride, most = tables.tracks[k, 0], tables.tracks[k, 1], tables.tracks[k, 2], tables.tracks[k, 5]
        tiles, index = blob[HEAD + k], (newest - keep + 1) // hop - 1
        if tiles < 0 or tiles > most or at + tiles * stride > blob.shape[0]:
            return False
        for _ in range(tiles):
            if blob[at] <= index or blob[at] > newest // hop:
                return False
            index = blob[at]
            at += stride
    return bool(at == blob.shape[0])


@njit(cache=True, nogil=True)
def load(tables: Tables, state: State, entity: int, partition: int, blob: NDArray[np.int64]) -> None:
    """Put an encoded state (already checked) in place of what the entity has on the partition."""
    slot = _slot(tables, state, entity, partition)
    tracks = tables.tracks.shape[0]
    _forget(tables, state, slot)
    state.newest[slot], state.folded[slot] = blob[1], blob[2]
    at = HEAD + tracks
    for k in range(tracks):
        stride, tiles = tables.tracks[k, 2], blob[HEAD + k]
        state.runs[slot, k, 1] = 0
        size_class = max(state.runs[slot, k, 2], 0)
        while state.sizes[size_class] < tiles:
            size_class += 1
        if tiles and size_class > state.runs[slot, k, 2]:
            _make_room(state, slot, k, stride, size_class)
        start = state.runs[slot, k, 0]
        state.words[start : start + tiles * stride] = blob[at : at + tiles * stride]
        state.runs[slot, k, 1] = tiles
        at += tiles * stride
