"""Which ids were borne lately: hashes of them in an open table, each with the record that bore it last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.kernel.bare import bared, fetch
from featurestore.kernel.layout import ZERO, compiled, entry, inlined

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Ints = NDArray[np.int64]
    Words = NDArray[np.uint64]
    Bools = NDArray[np.bool_]

    State = tuple[np.uint64, np.uint64, np.uint64, np.uint64]

# A slot: the two halves of a hash, and one more than the record that bore the id last, 0 where the slot is free.
LOW, HIGH, BORNE, SLOT = range(4)

# How many ids ahead their slots are fetched.
_AHEAD = 16
_64, _BYTE, _ONE, _NONE = (np.uint64(number) for number in (64, 8, 1, 0))
_TURNS = tuple(np.uint64(bits) for bits in (13, 32, 16, 21, 17, 32))
_FIRST = tuple(
    np.uint64(word) for word in (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
)
_WIDE, _SECOND, _LENGTH_BITS = np.uint64(0xEE), np.uint64(0xDD), np.uint64(56)


@inlined
def _turned(word: np.uint64, bits: np.uint64) -> np.uint64:
    return (word << bits) | (word >> (_64 - bits))


@inlined
def _round(v0: np.uint64, v1: np.uint64, v2: np.uint64, v3: np.uint64) -> State:
    v0, v2 = v0 + v1, v2 + v3
    v1, v3 = _turned(v1, _TURNS[0]) ^ v0, _turned(v3, _TURNS[2]) ^ v2
    v0 = _turned(v0, _TURNS[1])
    v2, v0 = v2 + v1, v0 + v3
    v1, v3 = _turned(v1, _TURNS[4]) ^ v2, _turned(v3, _TURNS[3]) ^ v0
    return v0, v1, _turned(v2, _TURNS[5]), v3


@compiled
def hashed(text: Bytes, begin: int, end: int, key: Words) -> tuple[np.uint64, np.uint64]:
    """SipHash-2-4 with 128 bits, by Aumasson and Bernstein (2012): nobody makes ids collide who has not the key."""
    v0, v1, v2, v3 = _FIRST[0] ^ key[0], _FIRST[1] ^ key[1] ^ _WIDE, _FIRST[2] ^ key[0], _FIRST[3] ^ key[1]
    whole = end - ((end - begin) & 7)
    for at in range(begin, whole + 1, 8):
        word = _NONE if at < whole else np.uint64(end - begin) << _LENGTH_BITS
        for i in range(at, at + 8 if at < whole else end):
            word |= np.uint64(text[i]) << (_BYTE * np.uint64(i - at))
        v0, v1, v2, v3 = _round(*_round(v0, v1, v2, v3 ^ word))
        v0 ^= word
    v0, v1, v2, v3 = _round(*_round(*_round(*_round(v0, v1, v2 ^ _WIDE, v3))))
    low = v0 ^ v1 ^ v2 ^ v3
    v0, v1, v2, v3 = _round(*_round(*_round(*_round(v0, v1 ^ _SECOND, v2, v3))))
    return low, v0 ^ v1 ^ v2 ^ v3


@entry
def mark_repeats(
    text: Bytes, ends: Ints, given: Bools, records: Ints, reach: int, key: Words, table: Words, made: Words, out: Bools
) -> int:
    """Say of ids (one ends at each of `ends`, in `text`) whether one of the last `reach` records before bore them.

    Those that are not `given` are nobody's. `records` ascend. Every id is entered into the `table`, which is as long as
    a power of two and has room for all; `made` is room for their hashes. Returns how many slots that took.
    """
    count, mask, taken, begin = records.shape[0], np.uint64(table.shape[0] - 1), ZERO, ZERO
    letters, secret, slots, hashes = bared(text), bared(key), bared(table), bared(made)
    for i in range(count):
        hashes[i, LOW], hashes[i, HIGH] = hashed(letters, begin, ends[i], secret)
        begin = ends[i]
    for i in range(count):
        fetch(slots, (np.int64(hashes[min(i + _AHEAD, count - 1), LOW] & mask), ZERO))
        if given[i]:
            low, high = hashes[i, LOW], hashes[i, HIGH]
            place = np.int64(low & mask)
            while slots[place, BORNE] != _NONE and (slots[place, LOW] != low or slots[place, HIGH] != high):
                place = np.int64((np.uint64(place) + _ONE) & mask)
            last = np.int64(slots[place, BORNE])
            taken += last == 0
            out[i] = last > 0 and records[i] - last < reach
            slots[place, LOW], slots[place, HIGH], slots[place, BORNE] = low, high, np.uint64(records[i] + 1)
    return taken


@entry
def copy_borne(table: Words, since: int, into: Words) -> int:
    """Enter into an empty table the ids that were borne since a record; returns how many."""
    mask, count = np.uint64(into.shape[0] - 1), ZERO
    for at in range(table.shape[0]):
        if np.int64(table[at, BORNE]) > since:
            place = table[at, LOW] & mask
            while into[place, BORNE] != _NONE:
                place = (place + _ONE) & mask
            for word in range(SLOT):
                into[place, word] = table[at, word]
            count += 1
    return count
