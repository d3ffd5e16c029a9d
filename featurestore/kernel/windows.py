"""Windows: what a slot's tiles, records or sessions merge to, as of a time.

Each function returns the address of the merged accumulator, 0 for an empty window: the tile itself when it is the only
one, else scratch memory.

A window is two stacks, so that a step of it costs the same however many tiles it has. Tiles before a boundary, the last
multiple of as many tiles as the window may cover (of an exact window, of its length), are merged newest to oldest, each
sum kept: as the window's old end moves on, it finds its sum made. Those after the boundary are merged oldest to newest,
as they close. Then the two are merged, and the newest tile. The boundary depends on the newest tile alone, and so do
all bits of the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.kernel.bare import fetch, move, wipe
from featurestore.kernel.folding import add_record, forget, merge
from featurestore.kernel.gathering import forget_bags, latest_records, session_at
from featurestore.kernel.layout import (
    ACC,
    ACC_MOST,
    BAG_CLASS,
    BAG_GROUPS_END,
    BLOCK,
    CACHE,
    CACHE_FREE,
    CACHE_WORDS,
    CACHED,
    CLASS_BITS,
    CURSORS,
    DELAY,
    EVENTS,
    GROUP_WORDS,
    GROUPS,
    GROUPS_END,
    HOP,
    INT_MAX,
    KEPT,
    KIND,
    LATEST,
    LENGTH,
    MERGED,
    PARTITIONS,
    RUN,
    SCRATCH,
    SESSIONS,
    SIZES,
    SPARE,
    STRIDE,
    SUMS_FREE,
    TILES,
    TRACK,
    USED,
    WANTED,
    ZERO,
    compiled,
    inlined,
)
from featurestore.kernel.runs import class_for, count_of, free_room, place, place_from, start_of, take_room

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featurestore.kernel.layout import Reals, Words

#: A window of no more closed tiles than these is merged anew each time: its cache would take more memory than they do.
FEW = 6

# Words of a group's cache: the newest tile of the window, the boundary, from and to which first time the window has
# these tiles, where in the run its first tile and the boundary's lie; the sums of what came before the boundary
# (address, size class, how many); how many after it are merged; where all tiles but the newest are merged (0 for none).
# Then room for these, and those of them after the boundary. Of events the window's newest and its first time are not
# used, nor what is merged of all.
_NEWEST, _BOUNDARY, _FROM, _TO, _FIRST, _MIDDLE, _SUMS, _CLASS, _LENGTH, _DONE, _CLOSED, CACHE_HEAD = range(12)


@inlined
def fetch_closed(words: Words, h: int, g: int) -> None:
    """Fetch what the group's window will look at as it moves on: its first tiles, and the sums from there."""
    t, at = words[g + TRACK], words[h + CACHE] + words[g + CACHED]
    stride, first = words[t + STRIDE], words[at + _FIRST]
    fetch(words, start_of(words, h, t) + first * stride)
    fetch(words, start_of(words, h, t) + first * stride + stride)
    current = words[at + _SUMS] + (words[at + _MIDDLE] - first - 1) * words[t + ACC]
    for line in range(0, 16, 8):
        fetch(words, current - line)


@compiled
def cache_of(words: Words, h: int) -> int:
    """Address of the slot's cache, made when there is none."""
    if words[h + CACHE] == 0:
        words[h + CACHE] = take_room(words, CACHE_FREE + ZERO, ZERO, words[CACHE_WORDS])
        wipe(words, words[h + CACHE], words[CACHE_WORDS])
        for g in range(words[GROUPS], words[GROUPS_END], GROUP_WORDS):
            words[words[h + CACHE] + words[g + CACHED] + _CLASS] = -1
        for g in range(words[GROUPS_END], words[BAG_GROUPS_END], GROUP_WORDS):
            words[words[h + CACHE] + words[g + CACHED] + BAG_CLASS] = -1
        forget(words, h)
        forget_bags(words, h)
    return words[h + CACHE]


@compiled
def _room_for_sums(words: Words, g: int, at: int, length: int) -> bool:
    """Make room for `length` accumulators in the group's cache at `at`; False when memory has none."""
    sizes, stride, size_class = words[SIZES], words[words[g + TRACK] + ACC], words[at + _CLASS]
    if size_class >= 0 and words[sizes + size_class] >= length:
        return True
    needed = class_for(words, length)
    if (
        words[g + SUMS_FREE + needed] == 0
        and words[USED] + words[sizes + needed] * stride > words.shape[0] - words[KEPT]
    ):
        words[WANTED] = words[sizes + needed] * stride
        return False
    if size_class >= 0:
        free_room(words, g + SUMS_FREE, size_class, stride, words[at + _SUMS])
    words[at + _SUMS], words[at + _CLASS] = take_room(words, g + SUMS_FREE, needed, stride), needed
    return True


@inlined
def _prepended(words: Words, reals: Reals, t: int, to: int, item: int, rest: int) -> int:
    """Merge a tile, or a record of an event, and all that comes after it (`rest`, 0 for nothing): where that is."""
    if words[t + KIND] != TILES:
        wipe(words, to, words[t + ACC])
        add_record(words, reals, t, to, item)
        item = to
    if rest == 0:
        return item
    merge(words, reals, t, to, item, rest)
    return to


@compiled
def _merged_back(words: Words, reals: Reals, t: int, to: int, first: int, end: int) -> int:
    """Where the items from address `first` to before `end` are merged, newest to oldest.

    That is `to`, or the one tile itself; 0 for none.
    """
    rest, spare, stride = ZERO, words[SCRATCH] + SPARE * words[ACC_MOST], words[t + STRIDE]
    for item in range(end - stride, first - stride, -stride):
        rest = _prepended(words, reals, t, spare if item > first else to, item, rest)
        spare = 2 * words[SCRATCH] + (2 * SPARE + 1) * words[ACC_MOST] - spare
    return rest


@compiled
def _before(words: Words, reals: Reals, h: int, g: int, at: int, first: int, end: int, to: int) -> int:
    """Where items [first, end) of a run are merged, newest to oldest, by way of the sums kept for the cache's boundary.

    It is 0 for none, and may be `to`.
    """
    t = words[g + TRACK]
    acc, stride, start, count = words[t + ACC], words[t + STRIDE], start_of(words, h, t), end - first
    if count <= 0:
        return ZERO
    if count > words[at + _LENGTH] and (count <= 2 or not _room_for_sums(words, g, at, count)):
        return _merged_back(words, reals, t, to, start + first * stride, start + end * stride)
    if count > words[at + _LENGTH]:
        rest = ZERO
        for i in range(count):
            sums = words[at + _SUMS] + i * acc
            made = _prepended(words, reals, t, sums, start + (end - 1 - i) * stride, rest)
            if made != sums:
                move(words, sums, made, acc)
            rest = sums
        words[at + _LENGTH] = count
    return words[at + _SUMS] + (count - 1) * acc


@inlined
def _find_edges(words: Words, h: int, t: int, at: int, oldest: int) -> None:
    """Find the first tile not before `oldest`, and the first one not before the boundary.

    Both move on with time: they are looked for from where they were, unless the run has lost tiles since.
    """
    hop, acc, start, first = words[t + HOP], words[t + ACC], start_of(words, h, t), words[at + _FIRST]
    known = first < count_of(words, h, t) and words[start + first * acc] * hop + (hop - 1) == words[at + _TO]
    if known and oldest * hop >= words[at + _FROM]:
        while words[start + first * acc] < oldest:
            first += 1
    else:
        first = place(words, h, t, oldest)
        words[at + _MIDDLE] = place(words, h, t, words[at + _BOUNDARY])
    words[at + _FIRST] = first
    words[at + _FROM], words[at + _TO] = oldest * hop, words[start + first * acc] * hop + (hop - 1)


@inlined
def _closed(words: Words, reals: Reals, h: int, g: int, first_time: int) -> int:
    """Merge into the group's cache all tiles from the one of `first_time` on but the newest; the cache's address."""
    t = words[g + TRACK]
    acc, start, last = words[t + ACC], start_of(words, h, t), count_of(words, h, t) - 1
    newest, block = words[start + last * acc], words[g + BLOCK]
    at = cache_of(words, h) + words[g + CACHED]
    after = at + CACHE_HEAD + acc
    if newest >= words[at + _BOUNDARY] + block:
        words[at + _BOUNDARY], words[at + _LENGTH], words[at + _DONE] = newest // block * block, 0, 0
        words[at + _FROM] = INT_MAX  # the edges are unknown
    oldest = first_time // words[t + HOP]
    _find_edges(words, h, t, at, oldest)
    first, middle, whole = words[at + _FIRST], words[at + _MIDDLE], oldest <= words[at + _BOUNDARY]
    before = _before(words, reals, h, g, at, first, middle, at + CACHE_HEAD)
    begin = middle if whole else first
    done = begin + words[at + _DONE] if whole else begin
    if done == begin < last:
        move(words, after, start + begin * acc, acc)
        done += 1
    for i in range(done, last):
        merge(words, reals, t, after, after, start + i * acc)
    words[at + _NEWEST], words[at + _DONE] = newest, last - begin if whole else 0
    words[at + _CLOSED] = after if begin < last else before
    if before and begin < last:
        merge(words, reals, t, at + CACHE_HEAD, before, after)
        words[at + _CLOSED] = at + CACHE_HEAD
    fetch_closed(words, h, g)
    return at


@inlined
def _merged_few(words: Words, reals: Reals, t: int, to: int, first: int, last: int) -> int:
    """Where the tiles from address `first` to before `last` are merged: at `to`, or the one tile itself."""
    acc = words[t + ACC]
    for at in range(first + acc, last, acc):
        merge(words, reals, t, to, first, at)
        first = to
    return first


@inlined
def _merged_anew(words: Words, reals: Reals, g: int, first: int, last: int) -> int:
    """The same, in the order of a window: those before the boundary newest to oldest, then those after it."""
    t, to = words[g + TRACK], words[SCRATCH] + MERGED * words[ACC_MOST]
    boundary, middle = words[last] // words[g + BLOCK] * words[g + BLOCK], last
    while middle > first and words[middle - words[t + ACC]] >= boundary:
        middle -= words[t + ACC]
    before = _merged_back(words, reals, t, to, first, middle)
    if middle == last:
        return before
    after = _merged_few(words, reals, t, words[SCRATCH] + SPARE * words[ACC_MOST], middle, last)
    if before == 0:
        return after
    merge(words, reals, t, to, before, after)
    return to


@inlined
def tiles(words: Words, reals: Reals, h: int, g: int, first_time: int) -> tuple[int, int, int]:
    """Tiles from the one of `first_time` to the newest: where all but the newest are merged, and the newest.

    The first is 0 for only one tile, both are 0 for none. And up to which first time these are the same.
    """
    t = words[g + TRACK]
    hop, acc, run = words[t + HOP], words[t + ACC], h + words[t + RUN]
    count = words[run + 1] >> CLASS_BITS
    last = words[run] + (count - 1) * acc
    if count == 0 or words[last] * hop + (hop - 1) < first_time:
        return ZERO, ZERO, ZERO
    if count <= FEW + 1:
        first = words[run]
        while first < last and words[first] * hop + (hop - 1) < first_time:
            first += acc
        if first == last:
            return ZERO, last, INT_MAX
        return _merged_anew(words, reals, g, first, last), last, words[first] * hop + (hop - 1)
    closed = words[h + CACHE] + words[g + CACHED]
    fresh = words[h + CACHE] != 0 and words[closed + _FROM] <= first_time <= words[closed + _TO]
    if not fresh or words[closed + _NEWEST] != words[last]:
        closed = _closed(words, reals, h, g, first_time)
    return words[closed + _CLOSED], last, words[closed + _TO]


@compiled
def _merged_tiles(words: Words, reals: Reals, h: int, g: int, first_time: int, to: int) -> int:
    """The same, merged."""
    closed, last, _ = tiles(words, reals, h, g, first_time)
    if closed == 0:
        return last
    merge(words, reals, words[g + TRACK], to, closed, last)
    return to


@compiled
def _delayed_tiles(words: Words, reals: Reals, h: int, g: int, as_of: int, to: int) -> int:
    """Tiles, oldest to newest, of a window that ended some time ago; `as_of` is its end."""
    t = words[g + TRACK]
    hop, acc, start = words[t + HOP], words[t + ACC], start_of(words, h, t)
    first, end = place(words, h, t, (as_of - words[g + LENGTH] + 1) // hop), place(words, h, t, as_of // hop + 1)
    if first >= end:
        return 0
    return _merged_few(words, reals, t, to, start + first * acc, start + end * acc)


@compiled
def _delayed_events(words: Words, reals: Reals, h: int, g: int, as_of: int, to: int) -> int:
    """Events, oldest to newest, of an exact window that ended some time ago."""
    t = words[g + TRACK]
    first, end = place(words, h, t, as_of - words[g + LENGTH] + 1), place(words, h, t, as_of + 1)
    if first >= end:
        return 0
    wipe(words, to, words[t + ACC])
    for i in range(first, end):
        add_record(words, reals, t, to, start_of(words, h, t) + i * words[t + STRIDE])
    return to


@inlined
def _events(words: Words, reals: Reals, h: int, g: int, as_of: int, to: int) -> int:
    """The events of an exact window."""
    t, first_time = words[g + TRACK], as_of - words[g + LENGTH] + 1
    acc, stride, start, count = words[t + ACC], words[t + STRIDE], start_of(words, h, t), count_of(words, h, t)
    if count == 0 or words[start + (count - 1) * stride] < first_time:
        return 0
    boundary = words[start + (count - 1) * stride] // words[g + BLOCK] * words[g + BLOCK]
    at = cache_of(words, h) + words[g + CACHED]
    after = at + CACHE_HEAD + acc
    if words[at + _BOUNDARY] != boundary:
        words[at + _BOUNDARY], words[at + _LENGTH], words[at + _DONE] = boundary, 0, 0
    first = place_from(words, h, t, words[at + _FIRST], first_time)
    middle = place_from(words, h, t, words[at + _MIDDLE], boundary) if first_time < boundary else first
    words[at + _FIRST], words[at + _MIDDLE] = first, middle
    whole = first_time <= boundary
    begin = middle + words[at + _DONE] if whole else middle
    if begin == middle:
        wipe(words, after, acc)
    for i in range(begin, count):
        add_record(words, reals, t, after, start + i * stride)
    words[at + _DONE] = count - middle if whole else 0
    if first == middle:
        return after
    merge(words, reals, t, to, _before(words, reals, h, g, at, first, middle, to), after)
    fetch_closed(words, h, g)
    return to


@compiled
def _latest(words: Words, reals: Reals, slots: NDArray[np.int64], entity: int, g: int) -> int:
    """The last events by (time, partition, offset), folded oldest to newest."""
    t, to = words[g + TRACK], words[SCRATCH]
    first, end = latest_records(words, slots, entity, g, to + CURSORS * words[ACC_MOST])
    wipe(words, to, words[t + ACC])
    for i in range(first, end):
        add_record(words, reals, t, to, words[i])
    return to if first < end else ZERO


@compiled
def gathered(words: Words, reals: Reals, slots: NDArray[np.int64], entity: int, g: int, effective: int) -> int:
    """What the group's window holds of an entity: each partition merged by itself, then all in partition order."""
    t, to, as_of = words[g + TRACK], words[SCRATCH], effective - words[g + DELAY]
    kind, base, room = words[t + KIND], ZERO, to
    if kind == LATEST:
        return _latest(words, reals, slots, entity, g)
    for p in range(words[PARTITIONS]):
        h, at = slots[entity, p], ZERO
        if h == 0:
            continue
        if kind == SESSIONS:
            at = session_at(words, h, t, as_of)
        elif kind == EVENTS and words[g + DELAY]:
            at = _delayed_events(words, reals, h, g, as_of, room)
        elif kind == EVENTS:
            at = _events(words, reals, h, g, as_of, room)
        elif words[g + DELAY]:
            at = _delayed_tiles(words, reals, h, g, as_of, room)
        else:
            at = _merged_tiles(words, reals, h, g, as_of - words[g + LENGTH] + 1, room)
        if at == 0:
            continue
        if base == 0:
            base, room = at, to + words[ACC_MOST]
            continue
        merge(words, reals, t, to, base, at)
        base = to
    return base
