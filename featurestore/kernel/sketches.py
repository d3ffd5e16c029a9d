"""Sketches: HyperLogLog for how many values are distinct (Flajolet et al., AofA 2007), and bins for quantiles.

Hashes have 63 bits: the upper ones choose a register, the others give its rank. Eight registers share a word of a bag,
whose key is negative, as no hash is. The estimate is that of Ertl, arXiv:1702.01284 (2017), section 4, which needs no
tables of bias: its standard error is 1.04 / sqrt(2048), 2.3 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.kernel.layout import INT_MIN, ZERO, compiled, inlined

if TYPE_CHECKING:
    from featurestore.kernel.layout import Reals, Words

#: Registers, and the bits of a hash behind those that choose one.
REGISTERS, RANK_BITS = 2048, 52
#: Steps of a quantile's bin: so many low bits of a float are left out, which leaves 64 bins an octave.
BIN_BITS = 46

_SHARED = 3  # registers of a word, as a power of two
_RANKS = RANK_BITS + 2


@inlined
def register_of(hashed: int) -> int:
    """Key of the word that has the hash's register."""
    return INT_MIN + (hashed >> (RANK_BITS + _SHARED))


@compiled
def ranks_of(hashed: int) -> int:
    """That word, with the hash alone: the rank is one more than the leading zeros of the lower bits."""
    rank = 1
    while rank <= RANK_BITS and not hashed >> (RANK_BITS - rank) & 1:
        rank += 1
    return rank << 8 * (hashed >> RANK_BITS & ((1 << _SHARED) - 1))


@inlined
def larger_ranks(a: int, b: int) -> int:
    """Of two words of registers, the larger rank of each."""
    out = ZERO
    for i in range(1 << _SHARED):
        out |= max(a >> 8 * i & 255, b >> 8 * i & 255) << 8 * i
    return out


@compiled
def to_registers(words: Words, at: int, end: int, size: int) -> int:
    """Turn records of hashes, ascending and of `size` words, into words of registers; where these end.

    `at` is the first one's key; what it counts follows.
    """
    to = at
    for record in range(at, end, size):
        hashed = words[record]
        key, ranks = register_of(hashed), ranks_of(hashed)
        if to > at and words[to - size] == key:
            words[to - size + 1] = larger_ranks(words[to - size + 1], ranks)
        else:
            words[to], words[to + 1] = key, ranks
            to += size
    return to


@inlined
def _sigma(x: float) -> float:
    if x == 1:
        return np.inf
    y, z, before = 1.0, x, -1.0
    while z != before:
        x *= x
        before = z
        z += x * y
        y += y
    return z


@inlined
def _tau(x: float) -> float:
    if x in (0.0, 1.0):
        return 0.0
    y, z, before = 1.0, 1 - x, -1.0
    while z != before:
        x = np.sqrt(x)
        before = z
        y *= 0.5
        z -= (1 - x) * (1 - x) * y
    return z / 3


@compiled
def estimated(words: Words, at: int, end: int, size: int, spare: int) -> int:
    """About how many values are distinct, by the words of registers from `at` on; `spare` is memory to count in."""
    for i in range(_RANKS):
        words[spare + i] = 0
    words[spare] = REGISTERS
    for record in range(at, end, size):
        for i in range(1 << _SHARED):
            rank = words[record + 1] >> 8 * i & 255
            words[spare] -= 1
            words[spare + rank] += 1
    z = REGISTERS * _tau(1 - words[spare + RANK_BITS + 1] / REGISTERS)
    for rank in range(RANK_BITS, 0, -1):
        z = 0.5 * (z + words[spare + rank])
    z += REGISTERS * _sigma(words[spare] / REGISTERS)
    return int(np.rint(REGISTERS * REGISTERS / (2 * np.log(2.0) * z)))


@inlined
def float_of(words: Words, reals: Reals, ordered: int, bits: int, spare: int) -> float:
    """The float that a key stands for: the middle of its bin of 2^`bits` floats, or itself."""
    edge = ordered << bits
    words[spare] = edge if edge >= 0 else edge ^ np.int64(0x7FFFFFFFFFFFFFFF)
    low = reals[spare]
    if np.isnan(low):
        return -np.inf  # which no other value shares a bin with
    if bits == 0 or ordered in (0, -1) or not np.isfinite(low):
        return 0.0 if bits and ordered in (0, -1) else low
    middle = edge + (1 << (bits - 1))
    words[spare] = middle if middle >= 0 else middle ^ np.int64(0x7FFFFFFFFFFFFFFF)
    return reals[spare]
