"""Which entity is which: encoded keys, one after another in one array of bytes, found by an open hash table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.kernel.layout import ZERO, compiled, entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Ints = NDArray[np.int64]
    Table = NDArray[np.int32]

_ODD = np.uint64(0x9E3779B97F4A7C15)
_SHIFT, _BITS = np.uint64(32), np.uint64(8)


@compiled
def _hashed(text: Bytes, begin: int, end: int, seed: np.uint64) -> np.uint64:
    """A hash of bytes that nobody can choose collisions for who does not know the seed."""
    found = seed ^ np.uint64(end - begin)
    for at in range(begin, end, 8):
        word = np.uint64(0)
        for i in range(at, min(at + 8, end)):
            word = (word << _BITS) | np.uint64(text[i])
        found = (found ^ word) * _ODD
        found ^= found >> _SHIFT
    return (found * _ODD) ^ (found >> _SHIFT)


@compiled
def _same(one: Bytes, begin: int, other: Bytes, start: int, length: int) -> bool:
    for i in range(length):  # noqa: SIM110 - Numba has no generators
        if one[begin + i] != other[start + i]:
            return False
    return True


@entry
def number_all(
    text: Bytes, ends: Ints, seed: np.uint64, known: Bytes, known_ends: Ints, count: int, table: Table, out: Ints
) -> int:
    """Write the numbers of keys (one ends at each of `ends`, in `text`) to `out`; how many there are now in all.

    `known`, `known_ends` and `table` (of numbers, -1 for none; as long as a power of two) must have room for all.
    """
    mask, begin = np.uint64(table.shape[0] - 1), ZERO
    for i in range(ends.shape[0]):
        end = ends[i]
        place, length = _hashed(text, begin, end, seed) & mask, end - begin
        while True:
            number = table[place]
            if number < 0:
                number = count
                start = known_ends[count - 1] if count else 0
                for at in range(length):
                    known[start + at] = text[begin + at]
                known_ends[count] = start + length
                table[place] = number
                count += 1
                break
            start = known_ends[number - 1] if number else 0
            if known_ends[number] - start == length and _same(text, begin, known, start, length):
                break
            place = (place + np.uint64(1)) & mask
        out[i] = number
        begin = end
    return count


@entry
def fill_table(known: Bytes, known_ends: Ints, count: int, seed: np.uint64, table: Table) -> None:
    """Enter all known keys into an empty table."""
    mask, begin = np.uint64(table.shape[0] - 1), ZERO
    for number in range(count):
        place = _hashed(known, begin, known_ends[number], seed) & mask
        while table[place] >= 0:
            place = (place + np.uint64(1)) & mask
        table[place] = number
        begin = known_ends[number]


@entry
def hash_all(text: Bytes, ends: Ints, out: Ints) -> None:
    """Write hashes of texts (one ends at each of `ends`) to `out`; they are the same everywhere and for ever."""
    begin = ZERO
    for i in range(ends.shape[0]):
        out[i] = np.int64(_hashed(text, begin, ends[i], np.uint64(0)))
        begin = ends[i]
