"""States as words to store: a head, the number of tiles of each run, then their tiles; only what may still be seen.

Behind these are the texts of codes in them (see `kernel.lexicon`). All are stored squeezed (`kernel.squeezing`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.kernel.bags import first_seen
from featurestore.kernel.bare import bared
from featurestore.kernel.folding import forget
from featurestore.kernel.gathering import forget_bags
from featurestore.kernel.layout import (
    BAG,
    BAGS,
    BOUND,
    DIRTY_FIRST,
    DIRTY_NEXT,
    FIRST_TEXT,
    FORMAT,
    GROW,
    HEAD,
    HOP,
    KEEP,
    KIND,
    LAST_OFFSET,
    LATEST,
    LIMIT,
    LISTS,
    NEWEST,
    POLICY,
    SESSIONS,
    SKETCH,
    STRIDE,
    TEXTS,
    TILES,
    TRACK_WORDS,
    TRACKS,
    TRACKS_END,
    ZERO,
    compiled,
    entry,
)
from featurestore.kernel.lexicon import Lexicon, number_of, text_words, write_text
from featurestore.kernel.run import new_slot
from featurestore.kernel.runs import class_for, class_of, count_of, enlarge, first_session, place, set_count, start_of
from featurestore.kernel.sketches import RANK_BITS
from featurestore.kernel.squeezing import squeeze

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.kernel.layout import Words


@compiled
def _first_live(words: Words, h: int, t: int) -> int:
    """How many tiles of the run no window can see any more."""
    kind, keep, newest, count = words[t + KIND], words[t + KEEP], words[h + NEWEST], count_of(words, h, t)
    if kind in (BAGS, LISTS):
        return first_seen(words, h, t, newest)
    if kind == TILES:
        return place(words, h, t, (newest - keep + 1) // words[t + HOP])
    if kind == LATEST:
        return max(count - words[t + LIMIT], 0)
    if kind == SESSIONS:
        return first_session(words, h, t, newest)
    return place(words, h, t, newest - keep + 1)


@entry
def take_dirty(words: Words) -> NDArray[np.int64]:
    """The slots that were written to since the last call, in order of their first write."""
    words = bared(words)
    count, h = 0, words[DIRTY_FIRST]
    while h > 0:
        count, h = count + 1, words[h + DIRTY_NEXT]
    out = np.empty(count, np.int64)
    h = words[DIRTY_FIRST]
    for i in range(count - 1, -1, -1):
        out[i], h = h, words[h + DIRTY_NEXT]
        words[out[i] + DIRTY_NEXT] = -1
    words[DIRTY_FIRST] = 0
    return out


@compiled
def _texts(words: Words, h: int, lexicon: Lexicon, mark: int, out: Words, to: int) -> int:
    """Words that the texts of a slot's state take. They are written to `out`, from `to` on, unless that is negative."""
    size = ZERO
    for t in range(words[TRACKS], words[TRACKS_END], TRACK_WORDS):
        if words[t + TEXTS] == 0:
            continue
        start, stride = start_of(words, h, t), words[t + STRIDE]
        for i in range(_first_live(words, h, t), count_of(words, h, t)):
            for place_of in range(words[t + FIRST_TEXT], words[t + FIRST_TEXT] + words[t + TEXTS]):
                code = words[start + i * stride + words[place_of]]
                number = number_of(lexicon, code) if code > 0 else -1
                if number < 0 or lexicon.marks[number] == mark:
                    continue
                lexicon.marks[number] = mark
                if to >= 0:
                    write_text(lexicon, number, out, to + size)
                size += text_words(lexicon, number)
    return size


@entry
def sizes_of(words: Words, slots: NDArray[np.int64], lexicon: Lexicon, mark: int) -> NDArray[np.int64]:
    """Words that each slot's state takes when encoded. `mark` and the next ones, one a slot, must be new."""
    words, out, lexicon = bared(words), np.empty(slots.shape[0], np.int64), bared(lexicon)
    for i in range(slots.shape[0]):
        size = HEAD
        for t in range(words[TRACKS], words[TRACKS_END], TRACK_WORDS):
            size += 1 + (count_of(words, slots[i], t) - _first_live(words, slots[i], t)) * words[t + STRIDE]
        out[i] = size + _texts(words, slots[i], lexicon, mark + i, out, ZERO - 1)
    return out


@entry
def encode(
    words: Words,
    slots: NDArray[np.int64],
    sizes: NDArray[np.int64],
    out: NDArray[np.int64],
    state: NDArray[np.int64],
    lexicon: Lexicon,
    mark: int,
) -> NDArray[np.int64]:
    """Write the slots' states squeezed, as they are stored; returns where each one ends.

    `sizes` are those of `sizes_of`; `out` must have room for `room_for` each, `state` for the largest.
    """
    ends, to = np.empty(slots.shape[0], np.int64), 0
    words, slots, sizes, out, lexicon = bared(words), bared(slots), bared(sizes), bared(out), bared(lexicon)
    state = bared(state)
    for i in range(slots.shape[0]):
        _write(words, slots[i], lexicon, mark + i, state, ZERO)
        ends[i] = to = squeeze(state, sizes[i], out, to)
    return ends


@compiled
def _write(words: Words, h: int, lexicon: Lexicon, mark: int, out: Words, at: int) -> None:
    """Write a slot's state to `out`, from `at` on."""
    runs = (words[TRACKS_END] - words[TRACKS]) // TRACK_WORDS
    out[at], out[at + 1], out[at + 2] = FORMAT | runs << 8, words[h + NEWEST], words[h + LAST_OFFSET]
    to = at + HEAD + runs
    for run in range(runs):
        t = words[TRACKS] + run * TRACK_WORDS
        first, stride = _first_live(words, h, t), words[t + STRIDE]
        live, start = count_of(words, h, t) - first, start_of(words, h, t) + first * stride
        out[at + HEAD + run] = live
        for j in range(live * stride):
            out[to + j] = words[start + j]
        to += live * stride
    _texts(words, h, lexicon, mark, out, to)


@entry
def end_of_runs(words: Words, blob: NDArray[np.int64]) -> int:
    """Where a state's texts begin, -1 when its runs are not of this format and plan."""
    words, blob = bared(words), bared(blob)
    runs = (words[TRACKS_END] - words[TRACKS]) // TRACK_WORDS
    if blob.shape[0] < HEAD + runs or blob[0] != FORMAT | runs << 8:
        return -1
    at = HEAD + runs
    for run in range(runs):
        t, tiles = words[TRACKS] + run * TRACK_WORDS, blob[HEAD + run]
        if tiles < 0 or tiles > (blob.shape[0] - at) // words[t + STRIDE] or not _are_sound(words, t, blob, at, tiles):
            return -1
        at += tiles * words[t + STRIDE]
    return at


@entry
def knows_all(words: Words, slots: NDArray[np.int64], lexicon: Lexicon, mark: int) -> bool:
    """Mark the text of each code in the slots' states; whether all of them are known."""
    words, slots, lexicon = bared(words), bared(slots), bared(lexicon)
    for slot in range(slots.shape[0]):
        h = slots[slot]
        for t in range(words[TRACKS], words[TRACKS_END], TRACK_WORDS):
            start, stride = start_of(words, h, t), words[t + STRIDE]
            for i in range(count_of(words, h, t)):
                for place_of in range(words[t + FIRST_TEXT], words[t + FIRST_TEXT] + words[t + TEXTS]):
                    code = words[start + i * stride + words[place_of]]
                    number = number_of(lexicon, code) if code > 0 else -1
                    if number >= 0:
                        lexicon.marks[number] = mark
                    elif code > 0:
                        return False
    return True


@compiled
def _fits(words: Words, bag: int, key: int, counted: int) -> bool:
    """Whether a bag's record names a bucket that there is, or ranks that a register can have."""
    if words[bag + POLICY] == GROW and words[bag + BOUND]:
        return 0 <= key < words[bag + BOUND]
    if words[bag + POLICY] == SKETCH and key < 0:
        for i in range(8):
            if counted >> 8 * i & 255 > RANK_BITS + 1:
                return False
    return True


@compiled
def _are_sound(words: Words, t: int, blob: NDArray[np.int64], at: int, tiles: int) -> bool:
    """Whether a stored run's tiles are in order, and none is expired or of the future."""
    kind, hop, newest, before, stride = words[t + KIND], words[t + HOP], blob[1], ZERO, words[t + STRIDE]
    if kind == LATEST and tiles > words[t + LIMIT]:
        return False
    for i in range(tiles):
        index = blob[at + i * stride]
        if kind == TILES:
            if index < (newest - words[t + KEEP] + 1) // hop or index > newest // hop or (i and index <= before):
                return False
        elif index > newest or (i and index < before):
            return False
        if kind == BAGS:
            key, counted = blob[at + i * stride + 1], blob[at + i * stride + 2]
            if i and index == before and key <= blob[at + (i - 1) * stride + 1]:
                return False
            if not _fits(words, words[t + BAG], key, counted):
                return False
        before = index
    return True


@entry
def load(words: Words, slots: NDArray[np.int64], entity: int, partition: int, blob: NDArray[np.int64]) -> None:
    """Put the words of a state (already checked) in place of what an entity has on a partition."""
    words, slots, blob = bared(words), bared(slots), bared(blob)
    h = slots[entity, partition]
    if h == 0:
        h = slots[entity, partition] = new_slot(words, entity, partition)
    forget(words, h)
    forget_bags(words, h)
    words[h + NEWEST], words[h + LAST_OFFSET] = blob[1], blob[2]
    runs = (words[TRACKS_END] - words[TRACKS]) // TRACK_WORDS
    at = HEAD + runs
    for run in range(runs):
        t, tiles = words[TRACKS] + run * TRACK_WORDS, blob[HEAD + run]
        set_count(words, h, t, ZERO)
        size_class = class_for(words, tiles)
        if tiles and size_class > class_of(words, h, t):
            enlarge(words, h, t, size_class)
        start = start_of(words, h, t)
        for i in range(tiles * words[t + STRIDE]):
            words[start + i] = blob[at + i]
        set_count(words, h, t, tiles)
        at += tiles * words[t + STRIDE]
