"""Folding into bags, which count the values of a tile or session, and into lists, which keep its first or last ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.kernel.gathering import copied, united
from featurestore.kernel.layout import (
    BAG,
    BAG_KIND,
    BAG_LANE,
    BAGS,
    BOUND,
    COUNTS,
    EVICT,
    FIRSTS,
    GROW,
    HOP,
    KEEP,
    KIND,
    LISTS,
    OTHER,
    PARENT,
    POLICY,
    REFUSE,
    SKETCH,
    SPAN,
    STRIDE,
    SUMS_FLOAT,
    USED,
    ZERO,
    Inputs,
    compiled,
)
from featurestore.kernel.primitives import add_int, add_real
from featurestore.kernel.runs import (
    count_of,
    first_session,
    insert,
    is_full,
    make_room,
    place,
    remove,
    search,
    start_of,
)
from featurestore.kernel.sketches import larger_ranks, ranks_of, register_of, to_registers
from featurestore.kernel.tallies import advance_all, forget_tallies, tell

if TYPE_CHECKING:
    from featurestore.kernel.layout import Reals, Words


@compiled
def first_seen(words: Words, h: int, t: int, newest: int) -> int:
    """How many records, of a run of bags or lists, no window can see any more."""
    parent, hop, oldest = words[t + PARENT], words[t + HOP], newest - words[t + KEEP] + 1
    if parent:
        session = start_of(words, h, parent) + first_session(words, h, parent, newest) * words[parent + STRIDE]
        return place(words, h, t, words[session]) if count_of(words, h, parent) else ZERO
    return place(words, h, t, oldest // hop * hop if words[t + KIND] == LISTS else oldest // hop)


@compiled
def _one_session(words: Words, reals: Reals, h: int, t: int, start: int, end: int) -> None:
    """Make one bag of those whose sessions were joined, or whose session begins earlier than it did."""
    stride, first, after = words[t + STRIDE], place(words, h, t, start), place(words, h, t, end + 1)
    if place(words, h, t, start + 1) >= after:
        return
    at, end_at = united(words, reals, h, t, first, after, words[USED])
    count, to = (end_at - at) // (stride - 1), start_of(words, h, t) + first * stride
    for entry in range(at, end_at, stride - 1):
        words[to] = start
        to = copied(words, to + 1, entry, stride - 1)
    remove(words, h, t, first + count, after - first - count)


@compiled
def _in_session(words: Words, h: int, parent: int, time: int, newest: int) -> int:
    """Address of the session that took an event; 0 when it was too old for any."""
    if time < newest - words[parent + KEEP]:
        return ZERO
    return start_of(words, h, parent) + (place(words, h, parent, time + 1) - 1) * words[parent + STRIDE]


@compiled
def _new_key(words: Words, h: int, t: int, at: int, index: int, key: int) -> int:
    """Address of a new record of a tile, put before the `at`-th one."""
    record = insert(words, h, t, at, index)
    words[record + 1] = key
    return record


@compiled
def _evicted(words: Words, reals: Reals, h: int, t: int, first: int, end: int, at: int, key: int) -> int:
    """Give the record of the rarest key of a tile, and its count, to another key; its address then.

    Metwally, Agrawal and El Abbadi, ICDT (2005): no count is too low, nor too high by more than the rarest's.
    """
    stride, start, rarest = words[t + STRIDE], start_of(words, h, t), first
    for i in range(first, end):
        if words[start + i * stride + 2] < words[start + rarest * stride + 2]:
            rarest = i
    gone = start + rarest * stride
    index, count = words[gone], words[gone + 2]
    tell(words, reals, h, t, index, words[gone + 1], -count)
    tell(words, reals, h, t, index, key, count)
    remove(words, h, t, rarest, ZERO + 1)
    record = _new_key(words, h, t, at - (rarest < at), index, key)
    words[record + 2] = count
    return record


@compiled
def _add_rank(words: Words, h: int, t: int, first: int, index: int, hashed: int) -> None:
    """Add a hash to a tile of registers."""
    stride, key = words[t + STRIDE], register_of(hashed)
    at = _key_place(words, h, t, first, place(words, h, t, index + 1), key)
    record = start_of(words, h, t) + at * stride
    if at == count_of(words, h, t) or words[record] != index or words[record + 1] != key:
        record = _new_key(words, h, t, at, index, key)
    words[record + 2] = larger_ranks(words[record + 2], ranks_of(hashed))


@compiled
def _key_place(words: Words, h: int, t: int, first: int, end: int, key: int) -> int:
    """Where the key is, or belongs, in a tile: the records from `first` to before `end`."""
    return search(words, start_of(words, h, t) + 1, words[t + STRIDE], first, end, key)


@compiled
def _record(words: Words, reals: Reals, h: int, t: int, first: int, end: int, index: int, key: int) -> int:
    """Address of the record, of a tile that has no registers, that counts the key; 0 when they are to be made."""
    stride, bag, start = words[t + STRIDE], words[t + BAG], start_of(words, h, t)
    at = _key_place(words, h, t, first, end, key)
    if at < end and words[start + at * stride + 1] == key:
        return start + at * stride
    policy, head = words[bag + POLICY], start + first * stride
    has_other = policy == REFUSE and first < end and words[head + 1] == OTHER
    if policy == GROW or end - first - has_other < words[bag + BOUND]:
        return _new_key(words, h, t, at, index, key)
    if policy == EVICT:
        return _evicted(words, reals, h, t, first, end, at, key)
    if policy == SKETCH:
        return ZERO
    return head if has_other else _new_key(words, h, t, first, index, OTHER)


@compiled
def _fold_bag(words: Words, reals: Reals, inputs: Inputs, h: int, t: int, row: int, time: int, newest: int) -> None:
    """Fold an event, which its session (if the bag is of sessions) has taken already."""
    bag, hop, stride = words[t + BAG], words[t + HOP], words[t + STRIDE]
    lane, index = words[bag + BAG_LANE], time // hop
    if words[t + PARENT]:
        session = _in_session(words, h, words[t + PARENT], time, newest)
        if session == 0:
            return
        index = words[session]
        _one_session(words, reals, h, t, index, words[session + 1])
    elif index < (newest - words[t + KEEP] + 1) // hop:
        return
    if not inputs.valid[lane, row]:
        return
    if is_full(words, h, t):
        advance_all(words, reals, h, t, newest)
        make_room(words, h, t, first_seen(words, h, t, newest))
    key, first, end = inputs.words[lane, row], place(words, h, t, index), place(words, h, t, index + 1)
    head = start_of(words, h, t) + first * stride + 1
    if words[bag + POLICY] == SKETCH and first < end and words[head] < 0:
        _add_rank(words, h, t, first, index, key)
        tell(words, reals, h, t, index, key, ZERO + 1)
        return
    record = _record(words, reals, h, t, first, end, index, key)
    if record == 0:
        left = to_registers(words, head, head + (end - first) * stride, stride)
        count = (left - head) // stride
        remove(words, h, t, first + count, end - first - count)
        _add_rank(words, h, t, first, index, key)
        forget_tallies(words, h, t)
        return
    if words[bag + BAG_KIND] == COUNTS:
        words[record + 2] += 1
    elif words[bag + BAG_KIND] == SUMS_FLOAT:
        add_real(reals, record + 2, inputs.reals[lane + 1, row])
    else:
        add_int(words, record + 2, inputs.words[lane + 1, row], ZERO)
    tell(words, reals, h, t, index, words[record + 1], ZERO + 1)


@compiled
def _fold_list(words: Words, inputs: Inputs, h: int, t: int, row: int, time: int, newest: int) -> None:
    """Keep an event's value, by (time, arrival), unless its stretch of time has enough that come before, or after."""
    bag, hop, low = words[t + BAG], words[t + HOP], time // words[t + SPAN] * words[t + SPAN]
    lane, high, firsts = words[bag + BAG_LANE], low + words[t + SPAN] - 1, words[bag + BAG_KIND] == FIRSTS
    if words[t + PARENT]:
        session = _in_session(words, h, words[t + PARENT], time, newest)
        if session == 0:
            return
        if firsts:
            low, high = words[session], words[session + 1]
    elif time // hop < (newest - words[t + KEEP] + 1) // hop:
        return
    if not inputs.valid[lane, row]:
        return
    if is_full(words, h, t):
        make_room(words, h, t, first_seen(words, h, t, newest))
    words[insert(words, h, t, place(words, h, t, time + 1), time) + 1] = inputs.words[lane, row]
    first, end = place(words, h, t, low), place(words, h, t, high + 1)
    if end - first > words[bag + BOUND]:
        remove(words, h, t, end - 1 if firsts else first, ZERO + 1)


@compiled
def fold_bags(words: Words, reals: Reals, inputs: Inputs, h: int, t: int, row: int, time: int, newest: int) -> None:
    """Fold an event into a track of bags or lists; `newest` is the slot's newest event time, with this one."""
    if words[t + KIND] == BAGS:
        _fold_bag(words, reals, inputs, h, t, row, time, newest)
    else:
        _fold_list(words, inputs, h, t, row, time, newest)
