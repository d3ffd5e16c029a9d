"""Runs: the sorted tiles, or records of events, of one slot in one track, in rooms of a few sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.kernel.bare import move, wipe
from featurestore.kernel.layout import (
    CLASS_BITS,
    DIRTY_FIRST,
    DIRTY_NEXT,
    FREE,
    HOP,
    KEEP,
    KIND,
    LEFT,
    LONGEST,
    RUN,
    SIZES,
    STRIDE,
    TILES,
    USED,
    ZERO,
    compiled,
    inlined,
)

if TYPE_CHECKING:
    from featurestore.kernel.layout import Words


@inlined
def start_of(words: Words, h: int, t: int) -> int:
    """Address of the run of slot `h` in track `t`."""
    return words[h + words[t + RUN]]


@inlined
def count_of(words: Words, h: int, t: int) -> int:
    """How many tiles or records the run has."""
    return words[h + words[t + RUN] + 1] >> CLASS_BITS


@inlined
def class_of(words: Words, h: int, t: int) -> int:
    """Size class of the run, -1 when it has no room at all."""
    return (words[h + words[t + RUN] + 1] & 63) - 1


@inlined
def mark_dirty(words: Words, h: int) -> None:
    """Chain a slot with those that were written to."""
    if words[h + DIRTY_NEXT] < 0:
        words[h + DIRTY_NEXT], words[DIRTY_FIRST] = words[DIRTY_FIRST], h


@inlined
def set_count(words: Words, h: int, t: int, count: int) -> None:
    """Say how many tiles or records the run has."""
    at = h + words[t + RUN] + 1
    words[at] = count << CLASS_BITS | words[at] & 63


@inlined
def search(words: Words, start: int, stride: int, low: int, high: int, wanted: int) -> int:
    """Of ascending words, `stride` apart, the first from the `low`-th to before the `high`-th not below `wanted`."""
    while low < high:
        middle = (low + high) >> 1
        if words[start + middle * stride] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@inlined
def place(words: Words, h: int, t: int, index: int) -> int:
    """How many tiles of the run lie before `index`."""
    start, stride, high = start_of(words, h, t), words[t + STRIDE], count_of(words, h, t)
    if high == 0 or words[start + (high - 1) * stride] < index:
        return high  # as is usual
    low = ZERO
    if words[t + KIND] == TILES:  # no two tiles have one index
        low = max(low, high - 1 - (words[start + (high - 1) * stride] - index))
        high = min(high, max(index - words[start], ZERO))
    return search(words, start, stride, low, high, index)


@inlined
def place_from(words: Words, h: int, t: int, near: int, index: int) -> int:
    """The same, looked for from where it was when `index` was less."""
    start, stride, count = start_of(words, h, t), words[t + STRIDE], count_of(words, h, t)
    at = min(near, count)
    if at > 0 and words[start + (at - 1) * stride] >= index:
        return place(words, h, t, index)
    while at < count and words[start + at * stride] < index:
        at += 1
    return at


@compiled
def first_session(words: Words, h: int, t: int, newest: int) -> int:
    """How many sessions of the run are over for good; the newest is kept whatever its age."""
    first, start, stride = ZERO, start_of(words, h, t), words[t + STRIDE]
    while first + 1 < count_of(words, h, t) and words[start + first * stride + 1] < newest - words[t + KEEP]:
        first += 1
    return first


@inlined
def class_for(words: Words, count: int) -> int:
    """The smallest size class with room for so many."""
    size_class = ZERO
    while words[words[SIZES] + size_class] < count:
        size_class += 1
    return size_class


@compiled
def take_room(words: Words, free: int, size_class: int, stride: int) -> int:
    """Address of room for a run: freed before (`free` is the list), or new."""
    start, size = words[free + size_class], words[words[SIZES] + size_class] * stride
    if start:
        words[free + size_class] = words[start]
        words[LEFT] -= size
    else:
        start = words[USED]
        words[USED] += size
    return start


@compiled
def free_room(words: Words, free: int, size_class: int, stride: int, start: int) -> None:
    """Keep room for the next run of its size."""
    words[start] = words[free + size_class]
    words[free + size_class] = start
    words[LEFT] += words[words[SIZES] + size_class] * stride


@compiled
def remove(words: Words, h: int, t: int, at: int, gone: int) -> None:
    """Take `gone` tiles out of the run, from the `at`-th one on."""
    if gone > 0:
        start, stride, left = start_of(words, h, t), words[t + STRIDE], count_of(words, h, t) - gone
        move(words, start + at * stride, start + (at + gone) * stride, (left - at) * stride)
        set_count(words, h, t, left)


@compiled
def enlarge(words: Words, h: int, t: int, size_class: int) -> None:
    """Move a run to a larger size."""
    old, count, old_class, stride = (
        start_of(words, h, t),
        count_of(words, h, t),
        class_of(words, h, t),
        words[t + STRIDE],
    )
    new = take_room(words, t + FREE, size_class, stride)
    if old_class >= 0:
        move(words, new, old, count * stride)
        free_room(words, t + FREE, old_class, stride, old)
    words[h + words[t + RUN]] = new
    words[h + words[t + RUN] + 1] = count << CLASS_BITS | (size_class + 1)
    words[LONGEST] = max(words[LONGEST], words[words[SIZES] + size_class] * stride)


@inlined
def is_full(words: Words, h: int, t: int) -> bool:
    """Whether the next tile needs more room."""
    size_class = class_of(words, h, t)
    return size_class < 0 or count_of(words, h, t) == words[words[SIZES] + size_class]


@compiled
def make_room(words: Words, h: int, t: int, gone: int) -> None:
    """Drop the first tiles of a run that is full, and enlarge it unless a quarter of it is free then.

    Or a run that is as long as its room would be moved for each tile that comes.
    """
    remove(words, h, t, ZERO, gone)
    size_class = class_of(words, h, t)
    if size_class < 0 or 4 * count_of(words, h, t) > 3 * words[words[SIZES] + size_class]:
        enlarge(words, h, t, size_class + 1)


@inlined
def insert(words: Words, h: int, t: int, at: int, index: int) -> int:
    """Put a tile, which begins with `index`, before the `at`-th one of a run that is not full; returns its address."""
    count, stride = count_of(words, h, t), words[t + STRIDE]
    first = start_of(words, h, t) + at * stride
    if at < count:
        move(words, first + stride, first, (count - at) * stride)
    wipe(words, first, stride)
    words[first] = index
    set_count(words, h, t, count + 1)
    return first


@inlined
def tile(words: Words, h: int, t: int, time: int, newest: int) -> int:
    """Address of the tile that holds `time`, made when it is not there; 0 when no window can see it."""
    hop = words[t + HOP]
    index, oldest = time // hop, (newest - words[t + KEEP] + 1) // hop
    if index < oldest:
        return 0
    at = place(words, h, t, index)
    first = start_of(words, h, t) + at * words[t + STRIDE]
    if at < count_of(words, h, t) and words[first] == index:
        return first
    if is_full(words, h, t):
        gone = place(words, h, t, oldest)
        make_room(words, h, t, gone)
        at -= gone  # the tile is not older than the oldest
    return insert(words, h, t, at, index)


@inlined
def _append(words: Words, h: int, t: int, time: int) -> int:
    """Put a tile for `time`, which is newer than all others, at the end of a run; returns its address."""
    hop = words[t + HOP]
    if is_full(words, h, t):
        make_room(words, h, t, place(words, h, t, (time - words[t + KEEP] + 1) // hop))
    return insert(words, h, t, count_of(words, h, t), time // hop)


@inlined
def tile_of(words: Words, h: int, t: int, time: int, newest: int) -> int:
    """The same, for events that mostly fall into the newest tile."""
    run, hop = h + words[t + RUN], words[t + HOP]
    count = words[run + 1] >> CLASS_BITS
    at = words[run] + (count - 1) * words[t + STRIDE]
    if count == 0 or time < words[at] * hop or time - words[at] * hop >= hop:
        at = _append(words, h, t, time) if time == newest else tile(words, h, t, time, newest)
    return at
