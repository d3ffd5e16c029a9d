"""Gathering: entries of bags sorted and united by key, and records of several partitions in one order.

It is made in memory that is free, from `USED` on, where nothing is kept. An entry is a bag's record without its index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.kernel.layout import (
    BAG,
    BAG_COUNT,
    BAG_FIRST,
    BAG_GROUPS_END,
    BAG_KIND,
    BAG_WORDS,
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
    LISTS,
    OF_BAG,
    PARENT,
    PARTITIONS,
    PLACED,
    POLICY,
    SKETCH,
    STRIDE,
    SUMS_FLOAT,
    TRACK,
    USED,
    WANTED,
    ZERO,
    compiled,
    inlined,
)
from featurestore.kernel.primitives import add_int, add_real
from featurestore.kernel.runs import count_of, place, start_of
from featurestore.kernel.sketches import larger_ranks, to_registers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featurestore.kernel.layout import Reals, Words

    Slots = NDArray[np.int64]


@inlined
def has_room(words: Words, need: int) -> bool:
    """Whether memory has so many free words; if not, it says that they are wanted."""
    fits = words[USED] + need <= words.shape[0]
    if not fits:
        words[WANTED] = max(words[WANTED], need)
    return fits


@compiled
def combine(words: Words, reals: Reals, bag: int, to: int, at: int) -> None:
    """Merge the entry at `at` into that of the same key at `to`, which is older."""
    if words[bag + BAG_KIND] == SUMS_FLOAT:
        add_real(reals, to + 1, reals[at + 1])
        reals[to + 2] += reals[at + 2]
    elif words[bag + BAG_KIND] != COUNTS:
        add_int(words, to + 1, words[at + 1], words[at + 2])
    elif words[bag + POLICY] == SKETCH and words[to] < 0:
        words[to + 1] = larger_ranks(words[to + 1], words[at + 1])
    else:
        words[to + 1] += words[at + 1]


@inlined
def copied(words: Words, to: int, at: int, size: int) -> int:
    """Copy an entry; where the next one goes."""
    for i in range(size):
        words[to + i] = words[at + i]
    return to + size


@compiled
def _merge_two(words: Words, size: int, first: int, second: int, end: int, to: int) -> int:
    """Merge two ascending stretches that follow each other, of equal keys the older first; where their entries end."""
    a, b = first, second
    while a < second or b < end:
        if b == end or (a < second and words[a] <= words[b]):
            to, a = copied(words, to, a, size), a + size
        else:
            to, b = copied(words, to, b, size), b + size
    return to


@compiled
def _stretch(words: Words, at: int, end: int, size: int) -> int:
    """Where the keys from `at` on stop ascending."""
    at += size
    while at < end and words[at] >= words[at - size]:
        at += size
    return min(at, end)


@compiled
def _sorted(words: Words, size: int, at: int, there: int, end: int) -> tuple[int, int, int]:
    """Sort entries from `at` to `end` by key, older first, with the help of memory `there`.

    Returned are where they lie and end, and the other memory.
    """
    stretches = 2
    while stretches > 1:
        to, here, stretches = there, at, ZERO
        while here < end:
            second = _stretch(words, here, end, size)
            after = _stretch(words, second, end, size)
            to = _merge_two(words, size, here, second, after, to)
            here, stretches = after, stretches + 1
        at, there, end = there, at, to
    return at, end, there


@compiled
def _one_of_each(words: Words, reals: Reals, bag: int, at: int, end: int) -> int:
    """Make one entry of those of each key, in their order; where they end."""
    size, to = 1 + words[bag + BAG_WORDS], at
    for entry in range(at, end, size):
        if to > at and words[to - size] == words[entry]:
            combine(words, reals, bag, to - size, entry)
        else:
            to = copied(words, to, entry, size)
    return to


@compiled
def merged(words: Words, reals: Reals, bag: int, at: int, end: int) -> tuple[int, int]:
    """Sort entries by key and make one of those of each key, oldest to newest; where they begin and end then.

    As much memory again is used behind them. Where there are registers, hashes become registers too.
    """
    size, there = 1 + words[bag + BAG_WORDS], end
    at, end, there = _sorted(words, size, at, there, end)
    end = _one_of_each(words, reals, bag, at, end)
    if words[bag + POLICY] == SKETCH and at < end and words[at] < 0 and words[end - size] >= 0:
        hashes = at
        while words[hashes] < 0:
            hashes += size
        at, end, _ = _sorted(words, size, at, there, to_registers(words, hashes, end, size))
        end = _one_of_each(words, reals, bag, at, end)
    return at, end


@compiled
def united(words: Words, reals: Reals, h: int, t: int, first: int, end: int, to: int) -> tuple[int, int]:
    """Write the entries of a run's records [first, end), merged, to `to` or behind; where they begin and end."""
    stride, at = words[t + STRIDE], to
    for i in range(first, end):
        at = copied(words, at, start_of(words, h, t) + i * stride + 1, stride - 1)
    return merged(words, reals, words[t + BAG], to, at)


@compiled
def forget_bags(words: Words, h: int) -> None:
    """Drop what a slot's cache has of bags."""
    cache = words[h + CACHE]
    if cache:
        for g in range(words[GROUPS_END], words[BAG_GROUPS_END], GROUP_WORDS):
            words[cache + words[g + CACHED] + BAG_FIRST] = INT_MIN
            words[cache + words[g + CACHED] + BAG_COUNT] = 0


@compiled
def session_at(words: Words, h: int, t: int, as_of: int) -> int:
    """Address of the session, in track `t`, that is not over yet; 0 for none."""
    count = count_of(words, h, t)
    at = start_of(words, h, t) + (count - 1) * words[t + STRIDE]
    return at if count and as_of - words[at + 1] <= words[t + HOP] else ZERO


@compiled
def _span(words: Words, h: int, g: int, as_of: int) -> tuple[int, int]:
    """Which records of a run of bags or lists the group's window holds: the first one, and the one after the last."""
    t, first, last = words[g + TRACK], ZERO, ZERO
    is_list = words[t + KIND] == LISTS
    if words[t + KIND] == LATEST:
        return first, count_of(words, h, t)
    if words[t + PARENT]:
        session = session_at(words, h, words[t + PARENT], as_of)
        if session == 0:
            return first, last
        first, last = words[session], words[session + is_list] + 1
    else:
        hop = words[t + HOP]
        first, last = (as_of - words[g + LENGTH] + 1) // hop, as_of // hop + 1
        if is_list:
            first, last = first * hop, last * hop
    return place(words, h, t, first), place(words, h, t, last)


@compiled
def spans(words: Words, slots: Slots, entity: int, g: int, effective: int, to: int) -> int:
    """Write the group's span of each partition to `to`, two words each; how many records they have in all."""
    total = ZERO
    for p in range(words[PARTITIONS]):
        first, end, h = ZERO, ZERO, slots[entity, p]
        if h:
            first, end = _span(words, h, g, effective - words[g + DELAY])
        words[to + 2 * p], words[to + 2 * p + 1] = first, max(first, end)
        total += words[to + 2 * p + 1] - first
    return total


@compiled
def next_record(words: Words, slots: Slots, entity: int, t: int, cursors: int, backward: bool) -> int:
    """Address of the next record by (time, partition, offset), from the front of the spans at `cursors` or the back.

    It is taken out of them; 0 when there is none.
    """
    chosen, found = ZERO, ZERO
    for p in range(words[PARTITIONS]):
        first, end = words[cursors + 2 * p], words[cursors + 2 * p + 1]
        if first == end:
            continue
        at = start_of(words, slots[entity, p], t) + (end - 1 if backward else first) * words[t + STRIDE]
        if found == 0 or (words[at] >= words[found] if backward else words[at] < words[found]):
            chosen, found = p, at
    if found:
        words[cursors + 2 * chosen + backward] += -1 if backward else 1
    return found


@compiled
def latest_records(words: Words, slots: Slots, entity: int, g: int, cursors: int) -> tuple[int, int]:
    """Where the addresses of the window `last(n)`'s records lie, oldest first, and where they end.

    They take n words of what is free, which a plan reserves.
    """
    t, end = words[g + TRACK], words[USED] + words[g + LENGTH]
    at = end
    spans(words, slots, entity, g, ZERO, cursors)
    while at > words[USED]:
        record = next_record(words, slots, entity, t, cursors, True)
        if record == 0:
            break
        at -= 1
        words[at] = record
    return at, end


@compiled
def of_latest(words: Words, slots: Slots, entity: int, g: int, cursors: int, to: int) -> int:
    """Write an entry for each of the last events that has the bag's value; where they end."""
    bag, at = words[g + OF_BAG], to
    first, end = latest_records(words, slots, entity, g, cursors)
    for i in range(first, end):
        record, place_of = words[i], words[g + PLACED]
        if words[record + 1] >> place_of & 1:
            value = record + 2 + place_of
            words[at] = words[value]
            if words[bag + BAG_KIND] == COUNTS:
                words[at + 1] = 1
            else:
                words[at + 1], words[at + 2] = words[value + 1], 0
            at += 1 + words[bag + BAG_WORDS]
    return at
