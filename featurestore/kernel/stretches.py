"""Stretches: events of one slot that follow each other in time, folded together, track by track.

Where nothing but tiles is kept, what an event does to one track has nothing to do with the others. So a track takes all
events of a stretch, tile by tile and primitive by primitive, with the primitive in registers. What the tile holds after
each event is noted, and each window is finished from these notes. It comes to the same, to the bit, as one event after
the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.kernel.bare import flat
from featurestore.kernel.finishes import finish_simple
from featurestore.kernel.layout import (
    ACC,
    ACC_MOST,
    CODE,
    END_OP,
    END_OUT,
    FIRST_OP,
    FIRST_OUT,
    FOLDED,
    GROUP_WORDS,
    GROUPS,
    GROUPS_END,
    HOP,
    KEPT,
    LANE,
    LAST_OFFSET,
    LENGTH,
    NEWEST,
    NOTED,
    NOTES,
    OP_WORDS,
    OUT_WORDS,
    PARTITIONS,
    RESERVE,
    SCRATCH,
    STRIDE,
    TRACK,
    TRACK_WORDS,
    TRACKS,
    TRACKS_END,
    WANTED,
    WORD,
    ZERO,
    Inputs,
    Results,
    Steps,
    compiled,
    inlined,
)
from featurestore.kernel.primitives import STATS_FLOAT, added_moments, added_real
from featurestore.kernel.runs import count_of, mark_dirty, tile_of
from featurestore.kernel.windows import tiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featurestore.kernel.layout import Reals, Words

    Order = NDArray[np.int32]


@inlined
def _end_of_stretch(
    words: Words, slots: NDArray[np.int64], h: int, steps: Steps, order: Order, begin: int, end: int, emit: bool
) -> int:
    """Up to which place of the order, from `begin` on, the steps are events that go to slot `h` one after the other.

    Where features are wanted there are none if the entity has more slots than that one.
    """
    first, newest, last_offset = ZERO + order[begin], words[h + NEWEST], words[h + LAST_OFFSET]
    partition = steps.partition[first]
    for p in range(words[PARTITIONS]):
        if emit and p != partition and slots[steps.entity[first], p]:
            return begin
    for k in range(begin, end):
        i = ZERO + order[k]
        if steps.row[i] < 0 or steps.partition[i] != partition:
            return k
        if steps.time[i] < newest or steps.offset[i] <= last_offset:
            return k
        newest, last_offset = steps.time[i], steps.offset[i]
    return end


@inlined
def _room_for_stretch(words: Words, h: int, steps: Steps, order: Order, begin: int, end: int) -> int:
    """Words that the slot's runs may take for these events.

    A run that grows takes a room of each size on its way: together some 3.5 times the last, of which a third is empty.
    """
    span, need = steps.time[order[end - 1]] - steps.time[order[begin]], ZERO
    for t in range(words[TRACKS], words[TRACKS_END], TRACK_WORDS):
        need += 6 * (count_of(words, h, t) + min(end - begin, span // words[t + HOP] + 2)) * words[t + STRIDE]
    return need


@inlined
def _count(
    words: Words,
    o: int,
    tile: int,
    inputs: Inputs,
    steps: Steps,
    order: Order,
    k: int,
    end: int,
    note: int,
    acc: int,
    emit: bool,
) -> None:
    """Count events of a tile."""
    w, lane, valid = tile + words[o + WORD], words[o + LANE] * inputs.valid.shape[1], flat(inputs.valid)
    n, note = words[w], note + words[o + WORD]
    for j in range(k, end):
        n += valid[lane + steps.row[order[j]]]
        if emit:
            words[note] = n
            note += acc
    words[w] = n


@inlined
def _add_stats(
    words: Words,
    reals: Reals,
    o: int,
    tile: int,
    inputs: Inputs,
    steps: Steps,
    order: Order,
    k: int,
    end: int,
    note: int,
    acc: int,
    emit: bool,
) -> None:
    """Fold events into a tile's STATS_FLOAT, as `primitives.add_one` does."""
    w, lane, note = tile + words[o + WORD], words[o + LANE] * inputs.valid.shape[1], note + words[o + WORD]
    valid, values = flat(inputs.valid), flat(inputs.reals)
    n, total, more, low, high, mean, squares = (
        words[w],
        reals[w + 1],
        reals[w + 2],
        reals[w + 3],
        reals[w + 4],
        reals[w + 5],
        reals[w + 6],
    )
    for j in range(k, end):
        at = lane + steps.row[order[j]]
        if valid[at]:
            value, n = values[at], n + 1
            total, more = added_real(total, more, value)
            low, high = (value, value) if n == 1 else (min(low, value), max(high, value))
            mean, squares = added_moments(mean, squares, n, value)
        if emit:
            words[note], reals[note + 1], reals[note + 2], reals[note + 3] = n, total, more, low
            reals[note + 4], reals[note + 5], reals[note + 6] = high, mean, squares
            note += acc
    words[w], reals[w + 1], reals[w + 2], reals[w + 3] = n, total, more, low
    reals[w + 4], reals[w + 5], reals[w + 6] = high, mean, squares


@inlined
def _finish(
    words: Words,
    reals: Reals,
    h: int,
    g: int,
    steps: Steps,
    results: Results,
    order: Order,
    k: int,
    end: int,
    notes: int,
) -> None:
    """Finish a window for events of the newest tile."""
    length, acc = words[g + LENGTH], words[words[g + TRACK] + ACC]
    while k < end:
        closed, _, upto = tiles(words, reals, h, g, steps.time[order[k]] - length + 1)
        stop = k + 1
        while stop < end and steps.time[order[stop]] - length + 1 <= upto:
            stop += 1
        out = words[g + FIRST_OUT]
        while out < words[g + END_OUT]:
            note = notes
            for j in range(k, stop):
                finish_simple(words, reals, out, closed, note, results, ZERO + order[j])
                note += acc
            out += OUT_WORDS
        notes += (stop - k) * acc
        k = stop


@compiled
def _fold_all(
    words: Words,
    reals: Reals,
    h: int,
    steps: Steps,
    inputs: Inputs,
    results: Results,
    order: Order,
    begin: int,
    end: int,
    emit: bool,
) -> None:
    """Fold the events in these places of the order; if features are wanted, finish the windows after each of them."""
    g, t, notes = words[GROUPS], words[TRACKS], words[SCRATCH] + NOTES * words[ACC_MOST]
    while t < words[TRACKS_END]:
        k, hop, acc, first = begin, words[t + HOP], words[t + ACC], g
        while k < end:
            time = steps.time[order[k]]
            tile = tile_of(words, h, t, time, time)
            edge, stop, limit = words[tile] * hop + (hop - 1), k + 1, min(end, k + NOTED)
            while stop < limit and steps.time[order[stop]] <= edge:
                stop += 1
            o = words[t + FIRST_OP]
            while o < words[t + END_OP]:
                if words[o + CODE] == STATS_FLOAT:
                    _add_stats(words, reals, o, tile, inputs, steps, order, k, stop, notes, acc, emit)
                else:
                    _count(words, o, tile, inputs, steps, order, k, stop, notes, acc, emit)
                o += OP_WORDS
            g = first
            while emit and g < words[GROUPS_END] and words[g + TRACK] == t:
                _finish(words, reals, h, g, steps, results, order, k, stop, notes)
                g += GROUP_WORDS
            k = stop
        t += TRACK_WORDS
    for k in range(begin, end):
        results.status[order[k]] = FOLDED
        if emit:
            results.effective[order[k]] = steps.time[order[k]]
    words[h + NEWEST], words[h + LAST_OFFSET] = steps.time[order[end - 1]], steps.offset[order[end - 1]]


@inlined
def fold_stretch(
    words: Words,
    reals: Reals,
    slots: NDArray[np.int64],
    h: int,
    steps: Steps,
    inputs: Inputs,
    results: Results,
    order: Order,
    begin: int,
    end: int,
    free: int,
    emit: bool,
) -> int:
    """Fold those of the steps, from the one in place `begin` on, that make a stretch; the place after the last of them.

    That is `begin` for less than two, and when more than `free` words may be needed, which are WANTED then.
    """
    stop = _end_of_stretch(words, slots, h, steps, order, begin, end, emit)
    if stop < begin + 2:
        return begin
    need = _room_for_stretch(words, h, steps, order, begin, stop)
    if need > free:
        words[WANTED] = need
        return begin
    mark_dirty(words, h)
    words[KEPT] = need + words[RESERVE]
    _fold_all(words, reals, h, steps, inputs, results, order, begin, stop, emit)
    words[KEPT] = 0
    return stop
