"""Memory made compact where it lies: slots and runs move down over the rooms that nobody has any more.

Caches are dropped, since they are made anew as they are wanted. Done piece by piece of memory, in three steps each:
find what begins in it, sort that by address, and move it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.kernel.bare import bared, move, wipe
from featurestore.kernel.layout import (
    BAG_GROUPS_END,
    BEGIN,
    CACHE,
    CACHE_FREE,
    CLASS_BITS,
    CLASSES,
    DIRTY_FIRST,
    DIRTY_NEXT,
    ENTITY,
    FREE,
    GROUP_WORDS,
    GROUPS,
    HEAD_WORDS,
    LEFT,
    PARTITION,
    PARTITIONS,
    RUN,
    SIZES,
    STRIDE,
    SUMS_FREE,
    TRACK_WORDS,
    TRACKS,
    TRACKS_END,
    USED,
    entry,
)
from featurestore.kernel.runs import class_for, class_of, count_of, start_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.kernel.layout import Words

#: Words of memory done at a time: what is found in them takes up to a quarter of that beside.
PIECE = 1 << 26


def compact(words: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
    """Move all slots, whose addresses are `slots` (by entity and partition, 0 for none), and their runs together."""
    begin, end, to = int(words[BEGIN]), int(words[USED]), int(words[BEGIN])
    smallest = min(words[HEAD_WORDS], *words[words[TRACKS] + STRIDE : words[TRACKS_END] : TRACK_WORDS])
    most = min(PIECE, end - begin) // int(smallest) + 1
    addresses, owners = np.empty(most, np.int64), np.empty(most, np.int64)
    _prepare(words, slots)
    for low in range(begin, end, PIECE):
        found = _find(words, slots, low, low + PIECE, addresses, owners)
        to = _slide(words, slots, addresses, owners, np.argsort(addresses[:found]), to)
    words[USED] = to
    _chain_again(words, slots)


@entry
def _prepare(words: Words, slots: NDArray[np.int64]) -> None:
    """Forget caches and rooms that wait; chain the slots that were written to by number instead of address.

    Slots are numbered by entity, then partition, from 1.
    """
    words, slots = bared(words), bared(slots)
    for t in range(words[TRACKS], words[TRACKS_END], TRACK_WORDS):
        wipe(words, t + FREE, CLASSES)
    for g in range(words[GROUPS], words[BAG_GROUPS_END], GROUP_WORDS):
        wipe(words, g + SUMS_FREE, CLASSES)
    words[CACHE_FREE], words[LEFT] = 0, 0
    for entity in range(slots.shape[0]):
        for partition in range(slots.shape[1]):
            if slots[entity, partition]:
                words[slots[entity, partition] + CACHE] = 0
    before, h = DIRTY_FIRST, words[DIRTY_FIRST]
    while h > 0:
        words[before] = 1 + words[h + ENTITY] * words[PARTITIONS] + words[h + PARTITION]
        before, h = h + DIRTY_NEXT, words[h + DIRTY_NEXT]


@entry
def _find(
    words: Words,
    slots: NDArray[np.int64],
    low: int,
    high: int,
    addresses: NDArray[np.int64],
    owners: NDArray[np.int64],
) -> int:
    """What begins from `low` to before `high`: addresses, and whose it is; returns how many.

    With n tracks, the head of slot s (from 0) is owner s * (n + 1), and its run in the t-th track the t-th one after.
    """
    words, slots, addresses, owners = bared(words), bared(slots), bared(addresses), bared(owners)
    found, owner = 0, 0
    for entity in range(slots.shape[0]):
        for partition in range(slots.shape[1]):
            h = slots[entity, partition]
            if low <= h < high:
                addresses[found], owners[found] = h, owner
                found += 1
            owner += 1
            for t in range(words[TRACKS], words[TRACKS_END], TRACK_WORDS):
                if h and class_of(words, h, t) >= 0 and low <= start_of(words, h, t) < high:
                    addresses[found], owners[found] = start_of(words, h, t), owner
                    found += 1
                owner += 1
    return found


@entry
def _slide(
    words: Words,
    slots: NDArray[np.int64],
    addresses: NDArray[np.int64],
    owners: NDArray[np.int64],
    order: NDArray[np.int64],
    to: int,
) -> int:
    """Move what was found to `to` and on, in order of address; returns where it ends.

    A run that fills less than half of its room gets a smaller one.
    """
    words, slots, addresses, owners, order = bared(words), bared(slots), bared(addresses), bared(owners), bared(order)
    ways = 1 + (words[TRACKS_END] - words[TRACKS]) // TRACK_WORDS
    for i in range(order.shape[0]):
        at, owner = addresses[order[i]], owners[order[i]]
        slot, part = owner // ways, owner % ways
        entity, partition = slot // words[PARTITIONS], slot % words[PARTITIONS]
        if part == 0:
            move(words, to, at, words[HEAD_WORDS])
            slots[entity, partition] = to
            to += words[HEAD_WORDS]
            continue
        h, t = slots[entity, partition], words[TRACKS] + (part - 1) * TRACK_WORDS
        count, size_class = count_of(words, h, t), class_of(words, h, t)
        if 2 * count < words[words[SIZES] + size_class]:
            size_class = class_for(words, count)
        move(words, to, at, count * words[t + STRIDE])
        words[h + words[t + RUN]] = to
        words[h + words[t + RUN] + 1] = count << CLASS_BITS | (size_class + 1)
        to += words[words[SIZES] + size_class] * words[t + STRIDE]
    return to


@entry
def _chain_again(words: Words, slots: NDArray[np.int64]) -> None:
    """Chain the slots that were written to by address again, after `_prepare`."""
    words, slots = bared(words), bared(slots)
    before, number = DIRTY_FIRST, words[DIRTY_FIRST]
    while number > 0:
        h = slots[(number - 1) // words[PARTITIONS], (number - 1) % words[PARTITIONS]]
        words[before] = h
        before, number = h + DIRTY_NEXT, words[h + DIRTY_NEXT]
