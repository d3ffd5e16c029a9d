"""Tallies: a slot's cache of what the bags of a window come to, kept as events come and tiles leave it.

Counts are whole numbers, so those of a tile that a window leaves behind are taken away, and nothing is rounded. Sums
are not: a category that loses a tile, or gains an event, is summed up anew, oldest tile to newest. Registers of a
sketch only grow: when one tile leaves them, they are made anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.kernel.bare import move
from featurestore.kernel.gathering import combine, copied, has_room, merged, of_latest, spans, united
from featurestore.kernel.layout import (
    BAG_CLASS,
    BAG_COUNT,
    BAG_FIRST,
    BAG_GROUPS_END,
    BAG_KIND,
    BAG_START,
    BAG_WORDS,
    BAGS,
    CACHE,
    CACHED,
    COUNTS,
    DELAY,
    GROUP_WORDS,
    GROUPS_END,
    HOP,
    INT_MIN,
    KIND,
    LATEST,
    LENGTH,
    LONGEST,
    OF_BAG,
    PARENT,
    PARTITIONS,
    POLICY,
    SIZES,
    SKETCH,
    STRIDE,
    SUMS_FREE,
    TRACK,
    USED,
    ZERO,
    compiled,
    inlined,
)
from featurestore.kernel.runs import class_for, count_of, free_room, place, search, start_of, take_room
from featurestore.kernel.sketches import larger_ranks, ranks_of, register_of
from featurestore.kernel.windows import cache_of
from featurestore.times import ENDLESS

if TYPE_CHECKING:
    from featurestore.kernel.gathering import Slots
    from featurestore.kernel.layout import Reals, Words

#: Words behind entries that are left to who finishes them.
SPARE = 64


@inlined
def _is_kept(words: Words, g: int) -> bool:
    """Whether a tally of the group's window is worth its while: it has many tiles, and ends now."""
    t = words[g + TRACK]
    return words[t + KIND] == BAGS and not words[t + PARENT] and not words[g + DELAY] and words[g + LENGTH] < ENDLESS


@compiled
def _make_room(words: Words, g: int, at: int, count: int) -> None:
    """Move the tally at `at` to room for `count` entries, if it has none."""
    size, sizes, old = 1 + words[words[g + OF_BAG] + BAG_WORDS], words[SIZES], words[at + BAG_CLASS]
    if old >= 0 and words[sizes + old] >= count:
        return
    needed = class_for(words, count)
    new = take_room(words, g + SUMS_FREE, needed, size)
    if old >= 0:
        move(words, new, words[at + BAG_START], words[at + BAG_COUNT] * size)
        free_room(words, g + SUMS_FREE, old, size, words[at + BAG_START])
    words[at + BAG_START], words[at + BAG_CLASS] = new, needed
    words[LONGEST] = max(words[LONGEST], words[sizes + needed] * size)


@compiled
def _entry(words: Words, g: int, at: int, key: int) -> int:
    """Address of the key's entry, made when there is none."""
    size = 1 + words[words[g + OF_BAG] + BAG_WORDS]
    count = words[at + BAG_COUNT]
    i = search(words, words[at + BAG_START], size, ZERO, count, key)
    entry = words[at + BAG_START] + i * size
    if i < count and words[entry] == key:
        return entry
    _make_room(words, g, at, count + 1)
    entry = words[at + BAG_START] + i * size
    move(words, entry + size, entry, (count - i) * size)
    words[entry] = key
    for word in range(1, size):
        words[entry + word] = 0
    words[at + BAG_COUNT] = count + 1
    return entry


@compiled
def _drop(words: Words, at: int, entry: int, size: int) -> None:
    """Take an entry out of the tally."""
    end = words[at + BAG_START] + words[at + BAG_COUNT] * size
    move(words, entry, entry + size, end - entry - size)
    words[at + BAG_COUNT] -= 1


@compiled
def _sum_up(words: Words, reals: Reals, h: int, g: int, at: int, key: int) -> None:
    """Sum a category up anew."""
    t, bag = words[g + TRACK], words[g + OF_BAG]
    stride, start, entry = words[t + STRIDE], start_of(words, h, t), _entry(words, g, at, key)
    found = False
    for i in range(place(words, h, t, words[at + BAG_FIRST]), count_of(words, h, t)):
        record = start + i * stride + 1
        if words[record] == key:
            if found:
                combine(words, reals, bag, entry, record)
            else:
                copied(words, entry, record, stride - 1)
            found = True
    if not found:
        _drop(words, at, entry, stride - 1)


@compiled
def _tell(words: Words, reals: Reals, h: int, g: int, at: int, key: int, more: int) -> None:
    """Let the tally at `at` know that a key's count grew by `more`, or that its sum is another."""
    bag = words[g + OF_BAG]
    if words[bag + BAG_KIND] != COUNTS:
        _sum_up(words, reals, h, g, at, key)
    elif words[bag + POLICY] == SKETCH and words[at + BAG_COUNT] and words[words[at + BAG_START]] < 0:
        entry = _entry(words, g, at, register_of(key))
        words[entry + 1] = larger_ranks(words[entry + 1], ranks_of(key))
    else:
        entry = _entry(words, g, at, key)
        words[entry + 1] += more
        if words[entry + 1] == 0:
            _drop(words, at, entry, 2)


@compiled
def tell(words: Words, reals: Reals, h: int, t: int, index: int, key: int, more: int) -> None:
    """Let the tallies of a track know what happened to a key of the tile `index`."""
    if words[h + CACHE] == 0:
        return
    for g in range(words[GROUPS_END], words[BAG_GROUPS_END], GROUP_WORDS):
        at = words[h + CACHE] + words[g + CACHED]
        if words[g + TRACK] == t and words[at + BAG_FIRST] != INT_MIN and words[at + BAG_FIRST] <= index:
            _tell(words, reals, h, g, at, key, more)


@compiled
def forget_tallies(words: Words, h: int, t: int) -> None:
    """Drop the tallies of a track."""
    for g in range(words[GROUPS_END], words[BAG_GROUPS_END], GROUP_WORDS):
        if words[g + TRACK] == t and words[h + CACHE]:
            words[words[h + CACHE] + words[g + CACHED] + BAG_FIRST] = INT_MIN


@compiled
def _advance(words: Words, reals: Reals, h: int, g: int, first: int) -> bool:
    """Take out of the group's tally what lies before the tile `first`; False when it must be made anew."""
    t, at = words[g + TRACK], words[h + CACHE] + words[g + CACHED]
    before = words[at + BAG_FIRST]
    if before == INT_MIN or first < before:
        return False
    a, b = place(words, h, t, before), place(words, h, t, first)
    is_sketch = words[words[g + OF_BAG] + POLICY] == SKETCH
    if a < b and is_sketch and words[at + BAG_COUNT] and words[words[at + BAG_START]] < 0:
        return False
    words[at + BAG_FIRST] = first
    for i in range(a, b):
        record = start_of(words, h, t) + i * words[t + STRIDE] + 1
        _tell(words, reals, h, g, at, words[record], -words[record + 1])
    return True


@compiled
def advance_all(words: Words, reals: Reals, h: int, t: int, newest: int) -> None:
    """Take out of a track's tallies what no window sees any more, before its tiles go."""
    for g in range(words[GROUPS_END], words[BAG_GROUPS_END], GROUP_WORDS):
        if words[g + TRACK] == t and words[h + CACHE] and _is_kept(words, g):
            at, first = words[h + CACHE] + words[g + CACHED], (newest - words[g + LENGTH] + 1) // words[t + HOP]
            if words[at + BAG_FIRST] < first and not _advance(words, reals, h, g, first):
                words[at + BAG_FIRST] = INT_MIN


@compiled
def _tally(words: Words, reals: Reals, h: int, g: int, as_of: int) -> int:
    """Address, in the slot's cache, of the group's tally, brought up to date."""
    t, at = words[g + TRACK], cache_of(words, h) + words[g + CACHED]
    first = (as_of - words[g + LENGTH] + 1) // words[t + HOP]
    if _advance(words, reals, h, g, first):
        return at
    begin, size = place(words, h, t, first), words[t + STRIDE] - 1
    aside = words[USED] + 2 * (count_of(words, h, t) - begin + 1) * size  # behind the room that the tally may take
    start, end = united(words, reals, h, t, begin, count_of(words, h, t), aside)
    words[at + BAG_COUNT] = 0
    _make_room(words, g, at, max((end - start) // size, 1))
    move(words, words[at + BAG_START], start, end - start)
    words[at + BAG_FIRST], words[at + BAG_COUNT] = first, (end - start) // size
    return at


@compiled
def entries(
    words: Words, reals: Reals, slots: Slots, entity: int, g: int, effective: int, cursors: int
) -> tuple[int, int]:
    """The entries of the group's window, one of each key, ascending: where they begin and end; 0, 0 without room.

    Each partition's oldest to newest, then those of the partitions in their order.
    """
    t, bag, as_of = words[g + TRACK], words[g + OF_BAG], effective - words[g + DELAY]
    size, total = 1 + words[bag + BAG_WORDS], spans(words, slots, entity, g, effective, cursors)
    if not has_room(
        words, (6 * total + 4 * words[PARTITIONS]) * size + words[g + LENGTH] * (words[t + KIND] == LATEST) + SPARE
    ):
        return ZERO, ZERO
    if words[t + KIND] == LATEST:
        begin = words[USED] + words[g + LENGTH]
        return merged(words, reals, bag, begin, of_latest(words, slots, entity, g, cursors, begin))
    if _is_kept(words, g):
        for p in range(words[PARTITIONS]):
            if slots[entity, p]:
                _tally(words, reals, slots[entity, p], g, as_of)
    begin = words[USED]
    to, parts = begin, ZERO
    for p in range(words[PARTITIONS]):
        h, first, end = slots[entity, p], words[cursors + 2 * p], words[cursors + 2 * p + 1]
        if first == end:
            continue
        if _is_kept(words, g):
            at = words[h + CACHE] + words[g + CACHED]
            start, last = words[at + BAG_START], words[at + BAG_START] + words[at + BAG_COUNT] * size
        else:
            start, last = united(words, reals, h, t, first, end, to)
        move(words, to, start, last - start)
        to, parts = to + (last - start), parts + 1
    return merged(words, reals, bag, begin, to) if parts > 1 else (begin, to)
