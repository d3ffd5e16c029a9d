"""Picking: how features come out of what was gathered of a window's bags, and lists out of its records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.kernel.gathering import combine, has_room, latest_records, next_record, spans
from featurestore.kernel.layout import (
    ACC_MOST,
    BAG_GROUPS_END,
    BAG_KIND,
    BAG_WORDS,
    BOUND,
    CODE,
    COUNTS,
    CURSORS,
    END_OUT,
    FIRST_OUT,
    FIRSTS,
    GROUP_WORDS,
    GROUPS_END,
    ITEMS,
    ITEMS_WANTED,
    KIND,
    LATEST,
    OF_BAG,
    OTHER,
    OUT_N,
    OUT_PARAMETER,
    OUT_WORD,
    OUT_WORDS,
    OUTPUT,
    PLACED,
    POLICY,
    REFUSE,
    SCRATCH,
    SUMS_FLOAT,
    TRACK,
    TWO_TO_64,
    USED,
    ZERO,
    Results,
    compiled,
    inlined,
)
from featurestore.kernel.sketches import estimated, float_of, to_registers
from featurestore.kernel.tallies import entries

if TYPE_CHECKING:
    from featurestore.kernel.gathering import Slots
    from featurestore.kernel.layout import Reals, Words

#: How a feature comes out of a bag. OUT_WORD is how many entries, or buckets, there are at most; OUT_N the bits that
#: a quantile's bin leaves out; OUT_PARAMETER the quantile.
MAP, TOP, MODE, DISTINCT, QUANTILE, HISTOGRAM, LIST = range(7)
#: Words of an entry of a map: key, value, whether the value is there.
MAP_WORDS = 3


@compiled
def _items(words: Words, results: Results, need: int) -> int:
    """Where the next list begins, with room for so many words and its length; 0 when there is no room."""
    at = words[ITEMS]
    if at + need + 1 > results.items.shape[0]:
        words[ITEMS_WANTED] = need + 1
        return ZERO
    words[ITEMS] = at + need + 1
    return at


@inlined
def _weight(words: Words, reals: Reals, bag: int, at: int) -> float:
    """By what entries are ranked: their count, or how large their sum is."""
    if words[bag + BAG_KIND] == COUNTS:
        return float(words[at + 1])
    if words[bag + BAG_KIND] == SUMS_FLOAT:
        total = abs(reals[at + 1] + reals[at + 2])
        return np.inf if np.isnan(total) else total
    return abs(words[at + 1] + words[at + 2] * TWO_TO_64)


@compiled
def _rank(words: Words, reals: Reals, bag: int, at: int, end: int, most: int) -> int:
    """Bring the entries of the largest weight to the front, by weight, then key; where the last of them ends."""
    size = 1 + words[bag + BAG_WORDS]
    stop = min(at + most * size, end)
    for to in range(at, stop, size):
        best, weight = to, _weight(words, reals, bag, to)
        for other in range(to + size, end, size):
            found = _weight(words, reals, bag, other)
            if found > weight or (found == weight and words[other] < words[best]):
                best, weight = other, found
        for i in range(size):
            words[to + i], words[best + i] = words[best + i], words[to + i]
    return stop


@compiled
def _put(words: Words, reals: Reals, bag: int, entry: int, results: Results, to: int) -> None:
    """Write an entry of a map."""
    results.items[to], results.items[to + 1], results.items[to + 2] = words[entry], words[entry + 1], 1
    if words[bag + BAG_KIND] == SUMS_FLOAT:
        reals[entry + 1] += reals[entry + 2]
        results.items[to + 1] = words[entry + 1]
    elif words[bag + BAG_KIND] != COUNTS:
        results.items[to + 2] = words[entry + 2] == 0


@compiled
def _finish_map(
    words: Words, reals: Reals, bag: int, at: int, end: int, most: int, results: Results, j: int, column: int
) -> bool:
    """Write the entries of the largest weight, and (of a bag that refuses) OTHER: what all others come to."""
    size, rest = 1 + words[bag + BAG_WORDS], ZERO
    refuses = words[bag + POLICY] == REFUSE
    if refuses and at < end and words[at] == OTHER:
        rest, at = at, at + size
    stop = _rank(words, reals, bag, at, end, most)
    if refuses and stop < end:
        if rest == 0:
            rest, words[stop], stop_after = stop, OTHER, stop + size
        else:
            stop_after = stop
        for other in range(stop_after, end, size):
            combine(words, reals, bag, rest, other)
    count = (stop - at) // size + (rest > 0)
    to = _items(words, results, MAP_WORDS * count)
    if to == 0:
        return False
    results.words[j, column], results.items[to] = to, count
    to += 1
    for entry in range(at, stop, size):
        _put(words, reals, bag, entry, results, to)
        to += MAP_WORDS
    if rest:
        _put(words, reals, bag, rest, results, to)
    return True


@compiled
def _distinct(words: Words, bag: int, at: int, end: int) -> int:
    """How many keys there are: exactly up to the bag's bound, else about."""
    size = 1 + words[bag + BAG_WORDS]
    if at == end or (words[at] >= 0 and (end - at) // size <= words[bag + BOUND]):
        return (end - at) // size
    if words[at] >= 0:
        end = to_registers(words, at, end, size)
    return estimated(words, at, end, size, end)


@compiled
def _ranked(words: Words, reals: Reals, at: int, end: int, rank: int, bits: int) -> float:
    """The value of a rank, from 0 on."""
    while rank >= words[at + 1] and at + 2 < end:
        rank -= words[at + 1]
        at += 2
    return float_of(words, reals, words[at], bits, end)


@compiled
def _quantile(words: Words, reals: Reals, at: int, end: int, q: float, bits: int) -> float:
    """Between the two values nearest to the rank q (n - 1), in proportion; NaN for none."""
    n = ZERO
    for entry in range(at, end, 2):
        n += words[entry + 1]
    if n == 0:
        return np.nan
    rank = np.int64(np.floor(q * (n - 1)))
    low, part = _ranked(words, reals, at, end, rank, bits), q * (n - 1) - rank
    if part == 0:
        return low
    high = _ranked(words, reals, at, end, rank + 1, bits)
    between = high - low
    return low + between * part if np.isfinite(between) else low * (1 - part) + high * part


@compiled
def _finish(words: Words, reals: Reals, bag: int, at: int, end: int, out: int, results: Results, column: int) -> bool:
    """Write what row `out` of the outs says; False when there was no room."""
    code, j, most = words[out + CODE], words[out + OUTPUT], words[out + OUT_WORD]
    if code in (MAP, TOP):
        return _finish_map(words, reals, bag, at, end, most, results, j, column)
    if code == HISTOGRAM:
        to = _items(words, results, most)
        if to == 0:
            return False
        results.words[j, column], results.items[to] = to, most
        for i in range(most):
            results.items[to + 1 + i] = 0
        for entry in range(at, end, 2):
            results.items[to + 1 + words[entry]] = words[entry + 1]
    elif code == DISTINCT:
        results.words[j, column] = _distinct(words, bag, at, end)
    elif code == MODE:
        _rank(words, reals, bag, at, end, ZERO + 1)
        results.valid[j, column], results.words[j, column] = at < end, words[at] if at < end else ZERO
    else:
        value = _quantile(words, reals, at, end, reals[out + OUT_PARAMETER], words[out + OUT_N])
        results.valid[j, column], results.reals[j, column] = not np.isnan(value), 0.0 if np.isnan(value) else value
    return True


@compiled
def _listed(words: Words, slots: Slots, entity: int, g: int, effective: int, cursors: int) -> tuple[int, int]:
    """Where the addresses of the values lie that a list of the window has, oldest first, and where they end."""
    t, bound, base = words[g + TRACK], words[words[g + OF_BAG] + BOUND], words[USED]
    backward = words[words[g + OF_BAG] + BAG_KIND] != FIRSTS
    if words[t + KIND] == LATEST:
        first, end = latest_records(words, slots, entity, g, cursors)
        to = first
        for i in range(first, end):
            if words[words[i] + 1] >> words[g + PLACED] & 1:
                words[to] = words[i] + 2 + words[g + PLACED]
                to += 1
        return (max(first, to - bound), to) if backward else (first, min(to, first + bound))
    count = min(spans(words, slots, entity, g, effective, cursors), bound)
    for i in range(count):
        record = next_record(words, slots, entity, t, cursors, backward)
        words[base + count - 1 - i if backward else base + i] = record + 1
    return base, base + count


@compiled
def _finish_lists(
    words: Words, slots: Slots, entity: int, g: int, effective: int, cursors: int, results: Results, column: int
) -> bool:
    """Write the first or last values of the window; False when there was no room."""
    if not has_room(words, words[words[g + OF_BAG] + BOUND]):
        return False
    first, end = _listed(words, slots, entity, g, effective, cursors)
    for out in range(words[g + FIRST_OUT], words[g + END_OUT], OUT_WORDS):
        at = _items(words, results, end - first)
        if at == 0:
            return False
        results.words[words[out + OUTPUT], column], results.items[at] = at, end - first
        for i in range(first, end):
            results.items[at + 1 + i - first] = words[words[i]]
    return True


@compiled
def finish_bags(
    words: Words, reals: Reals, slots: Slots, entity: int, effective: int, results: Results, column: int
) -> bool:
    """Write all features of an entity that come of bags and lists; False when memory or `items` must grow first."""
    cursors = words[SCRATCH] + CURSORS * words[ACC_MOST]
    for g in range(words[GROUPS_END], words[BAG_GROUPS_END], GROUP_WORDS):
        bag = words[g + OF_BAG]
        if words[bag + BAG_KIND] >= FIRSTS:
            if not _finish_lists(words, slots, entity, g, effective, cursors, results, column):
                return False
            continue
        at, end = ZERO, ZERO
        for out in range(words[g + FIRST_OUT], words[g + END_OUT], OUT_WORDS):
            if at == 0:
                at, end = entries(words, reals, slots, entity, g, effective, cursors)
            if at == 0 or not _finish(words, reals, bag, at, end, out, results, column):
                return False
            if words[out + CODE] in (MAP, DISTINCT):
                at = ZERO  # these leave sums where entries were
    return True
