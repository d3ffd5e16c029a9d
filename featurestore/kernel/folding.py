"""Folding: an event into the tiles, records or sessions of its entity.

Loops that every event goes through are written with `while`: `range` with a step divides to know how often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.kernel.bare import flat
from featurestore.kernel.layout import (
    CACHE,
    CACHED,
    CODE,
    END_OP,
    FIRST_LANE,
    FIRST_OP,
    GROUP_WORDS,
    GROUPS,
    GROUPS_END,
    HOP,
    INT_MIN,
    KEEP,
    KIND,
    LANE,
    LANES,
    LIMIT,
    OP_WORDS,
    PLACE,
    SESSIONS,
    STRIDE,
    TILES,
    TRACK_WORDS,
    TRACKS,
    TRACKS_END,
    WORD,
    ZERO,
    Inputs,
    compiled,
    inlined,
)
from featurestore.kernel.primitives import STATS_INT, SUM_INT, add_one, merge_one, overflows
from featurestore.kernel.runs import count_of, first_session, insert, is_full, make_room, place, remove, start_of

if TYPE_CHECKING:
    from featurestore.kernel.layout import Reals, Words


def _added(words: Words, reals: Reals, inputs: Inputs, t: int, at: int, row: int, time: int) -> None:
    """Fold an event of the inputs into the tile at `at`."""
    lanes, real_lanes, valid, rows = flat(inputs.words), flat(inputs.reals), flat(inputs.valid), inputs.valid.shape[1]
    o = words[t + FIRST_OP]
    while o < words[t + END_OP]:
        value = words[o + LANE] * rows + row
        if valid[value]:
            add_one(words, reals, o, at, time, lanes, real_lanes, value, rows)
        o += OP_WORDS


# Within the loop over tiles a call would cost as much as the work.
add_input, _add_input_apart = inlined(_added), compiled(_added)


@inlined
def add_record(words: Words, reals: Reals, t: int, at: int, record: int) -> None:
    """Fold a record of an event of track `t` into the accumulator at `at`."""
    time, mask = words[record], words[record + 1]
    o = words[t + FIRST_OP]
    while o < words[t + END_OP]:
        if mask >> words[o + PLACE] & 1:
            add_one(words, reals, o, at, time, words, reals, record + 2 + words[o + PLACE], ZERO + 1)
        o += OP_WORDS


@inlined
def merge(words: Words, reals: Reals, t: int, to: int, a: int, b: int) -> None:
    """Write to `to`, which may be `a`, what the accumulator at `a` comes to with the later one at `b`."""
    o = words[t + FIRST_OP]
    while o < words[t + END_OP]:
        merge_one(words, reals, o, to, a, b)
        o += OP_WORDS


@compiled
def forget(words: Words, h: int) -> None:
    """Drop what a slot's cache has."""
    cache = words[h + CACHE]
    if cache:
        for g in range(words[GROUPS], words[GROUPS_END], GROUP_WORDS):
            for i in range(2):
                words[cache + words[g + CACHED] + i] = INT_MIN


@compiled
def _add_event(words: Words, inputs: Inputs, h: int, t: int, row: int, time: int, newest: int) -> None:
    """Put an event into a run of records, by (time, arrival)."""
    limit, oldest = words[t + LIMIT], newest - words[t + KEEP] + 1
    if limit == 0 and time < oldest:
        return
    if is_full(words, h, t):
        make_room(words, h, t, max(count_of(words, h, t) - limit, 0) if limit else place(words, h, t, oldest))
    record, mask = insert(words, h, t, place(words, h, t, time + 1), time), 0
    for i in range(words[t + LANES]):
        lane = words[words[t + FIRST_LANE] + i]
        if inputs.valid[lane, row]:
            mask |= 1 << i
            words[record + 2 + i] = inputs.words[lane, row]
    words[record + 1] = mask


@compiled
def _fold_session(words: Words, reals: Reals, inputs: Inputs, h: int, t: int, row: int, time: int, newest: int) -> None:
    """Fold an event into its session, which it may make, lengthen or join to the next one."""
    gap, stride, oldest = words[t + HOP], words[t + STRIDE], newest - words[t + KEEP]
    if time < oldest:
        return
    if is_full(words, h, t):
        make_room(words, h, t, first_session(words, h, t, newest))
    i, start, count = count_of(words, h, t), start_of(words, h, t), count_of(words, h, t)
    while i > 0 and words[start + (i - 1) * stride + 1] >= max(time - gap, oldest):
        i -= 1
    if i == count or words[start + i * stride] > time + gap:
        words[insert(words, h, t, i, time) + 1] = time
    at = start_of(words, h, t) + i * stride
    words[at], words[at + 1] = min(words[at], time), max(words[at + 1], time)
    _add_input_apart(words, reals, inputs, t, at, row, time)
    if i + 1 < count_of(words, h, t) and words[at + stride] - words[at + 1] <= gap:
        words[at + 1] = words[at + stride + 1]
        merge(words, reals, t, at, at, at + stride)
        remove(words, h, t, i + 1, ZERO + 1)


@compiled
def fold_apart(words: Words, reals: Reals, inputs: Inputs, h: int, t: int, row: int, time: int, newest: int) -> None:
    """Fold an event into a track of events or sessions; `newest` is the slot's newest event time, with this one."""
    if words[t + KIND] == SESSIONS:
        _fold_session(words, reals, inputs, h, t, row, time, newest)
    else:
        _add_event(words, inputs, h, t, row, time, newest)


@compiled
def would_overflow(words: Words, inputs: Inputs, h: int, row: int, time: int, newest: int) -> bool:
    """Whether an integer sum of a tile would leave int64 with this event."""
    for t in range(words[TRACKS], words[TRACKS_END], TRACK_WORDS):
        hop = words[t + HOP]
        index = time // hop
        if words[t + KIND] != TILES or index < (newest - words[t + KEEP] + 1) // hop:
            continue  # expired: whether its tile is still here must not matter
        at = place(words, h, t, index)
        first = start_of(words, h, t) + at * words[t + STRIDE]
        if at == count_of(words, h, t) or words[first] != index:
            continue
        for o in range(words[t + FIRST_OP], words[t + END_OP], OP_WORDS):
            op, lane, w = words[o + CODE], words[o + LANE], first + words[o + WORD]
            if op in (SUM_INT, STATS_INT) and inputs.valid[lane, row]:
                w += op == STATS_INT
                if overflows(words[w], inputs.words[lane, row]):
                    return True
    return False
