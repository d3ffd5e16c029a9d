"""States as words to store: a head, the number of tiles of each run, then their tiles; only what may still be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.kernel.bare import bared
from featurestore.kernel.folding import forget
from featurestore.kernel.layout import (
    DIRTY_FIRST,
    DIRTY_NEXT,
    FORMAT,
    HEAD,
    HOP,
    KEEP,
    KIND,
    LAST_OFFSET,
    LATEST,
    LIMIT,
    NEWEST,
    SESSIONS,
    SIZES,
    STRIDE,
    TILES,
    TRACK_WORDS,
    TRACKS,
    TRACKS_END,
    ZERO,
    compiled,
    entry,
)
from featurestore.kernel.run import new_slot
from featurestore.kernel.runs import class_of, count_of, enlarge, place, set_count, start_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.kernel.layout import Words


@compiled
def _first_live(words: Words, h: int, t: int) -> int:
    """How many tiles of the run no window can see any more."""
    kind, keep, newest, count = words[t + KIND], words[t + KEEP], words[h + NEWEST], count_of(words, h, t)
    if kind == TILES:
        return place(words, h, t, (newest - keep + 1) // words[t + HOP])
    if kind == LATEST:
        return max(count - words[t + LIMIT], 0)
    if kind == SESSIONS:
        first, start = ZERO, start_of(words, h, t)
        while first + 1 < count and words[start + first * words[t + STRIDE] + 1] < newest - keep:
            first += 1
        return first
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


@entry
def sizes_of(words: Words, slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Words that each slot's state takes when encoded."""
    words, out = bared(words), np.empty(slots.shape[0], np.int64)
    for i in range(slots.shape[0]):
        size = HEAD
        for t in range(words[TRACKS], words[TRACKS_END], TRACK_WORDS):
            size += 1 + (count_of(words, slots[i], t) - _first_live(words, slots[i], t)) * words[t + STRIDE]
        out[i] = size
    return out


@entry
def encode(words: Words, slots: NDArray[np.int64], ends: NDArray[np.int64], out: NDArray[np.int64]) -> None:
    """Write the slots' states one after another; `ends` says where each one ends."""
    words, slots, ends, out = bared(words), bared(slots), bared(ends), bared(out)
    runs = (words[TRACKS_END] - words[TRACKS]) // TRACK_WORDS
    for i in range(slots.shape[0]):
        h, at = slots[i], 0 if i == 0 else ends[i - 1]
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


@compiled
def _are_sound(words: Words, t: int, blob: NDArray[np.int64], at: int, tiles: int) -> bool:
    """Whether a stored run's tiles are in order, and none is expired or of the future."""
    kind, hop, newest, before = words[t + KIND], words[t + HOP], blob[1], ZERO
    if kind == LATEST and tiles > words[t + LIMIT]:
        return False
    for i in range(tiles):
        index = blob[at + i * words[t + STRIDE]]
        if kind == TILES:
            if index < (newest - words[t + KEEP] + 1) // hop or index > newest // hop or (i and index <= before):
                return False
        elif index > newest or (i and index < before):
            return False
        before = index
    return True


@entry
def is_sound(words: Words, blob: NDArray[np.int64]) -> bool:
    """Whether the words of `blob` are an encoded state of this format and plan."""
    words, blob = bared(words), bared(blob)
    runs = (words[TRACKS_END] - words[TRACKS]) // TRACK_WORDS
    if blob.shape[0] < HEAD + runs or blob[0] != FORMAT | runs << 8:
        return False
    at = HEAD + runs
    for run in range(runs):
        t, tiles = words[TRACKS] + run * TRACK_WORDS, blob[HEAD + run]
        if tiles < 0 or tiles > (blob.shape[0] - at) // words[t + STRIDE] or not _are_sound(words, t, blob, at, tiles):
            return False
        at += tiles * words[t + STRIDE]
    return at == blob.shape[0]


@entry
def load(words: Words, slots: NDArray[np.int64], entity: int, partition: int, blob: NDArray[np.int64]) -> None:
    """Put an encoded state (already checked) in place of what the entity has on the partition."""
    words, slots, blob = bared(words), bared(slots), bared(blob)
    h = slots[entity, partition]
    if h == 0:
        h = slots[entity, partition] = new_slot(words, entity, partition)
    forget(words, h)
    words[h + NEWEST], words[h + LAST_OFFSET] = blob[1], blob[2]
    runs = (words[TRACKS_END] - words[TRACKS]) // TRACK_WORDS
    at = HEAD + runs
    for run in range(runs):
        t, tiles = words[TRACKS] + run * TRACK_WORDS, blob[HEAD + run]
        set_count(words, h, t, ZERO)
        size_class = max(class_of(words, h, t), 0)
        while words[words[SIZES] + size_class] < tiles:
            size_class += 1
        if tiles and size_class > class_of(words, h, t):
            enlarge(words, h, t, size_class)
        start = start_of(words, h, t)
        for i in range(tiles * words[t + STRIDE]):
            words[start + i] = blob[at + i]
        set_count(words, h, t, tiles)
        at += tiles * words[t + STRIDE]
