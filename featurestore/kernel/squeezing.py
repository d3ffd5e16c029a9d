"""Words written shorter: most tiles of a state hold one event, whose value is their sum, least, greatest and mean.

Squeezed, the first word says in its upper half how many there are; its lower half is as it was. Behind it come blocks
for up to 31 words each: a word of 2 bits for each, from the lowest on, then those that have to be written out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numba.extending import register_jitable

from featurestore.kernel.bare import bared
from featurestore.kernel.layout import ZERO, compiled, entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.kernel.layout import Words

Size = TypeVar("Size", int, "NDArray[np.int64]")

#: Words of a block: with one more, the bits would be a negative number.
BLOCK = 31
# What two bits say of a word: it is 0; it is 1; it is the one that was written out last; it is written out.
_NOTHING, _ONE, _AGAIN, _WRITTEN = range(4)


@register_jitable
def room_for(size: Size) -> Size:
    """The most words that so many take when they are squeezed."""
    return size + size // BLOCK + 1


@compiled
def squeeze(words: Words, size: int, out: Words, to: int) -> int:
    """Write the first `size` words to `out`, from `to` on; returns where they end there."""
    out[to] = words[0] | size << 32
    to, last = to + 1, ZERO
    for first in range(1, size, BLOCK):
        bits, bits_at = ZERO, to
        to += 1
        for i in range(first, min(first + BLOCK, size)):
            word, code = words[i], _NOTHING
            if word == 1:
                code = _ONE
            elif word != 0 and word == last:
                code = _AGAIN
            elif word != 0:
                code, last = _WRITTEN, word
                out[to] = word
                to += 1
            bits |= code << 2 * (i - first)
        out[bits_at] = bits
    return to


@entry
def squeezed(words: NDArray[np.int64]) -> NDArray[np.int64]:
    """The words, squeezed."""
    out = np.empty(room_for(words.shape[0]), np.int64)
    return out[: squeeze(bared(words), words.shape[0], bared(out), ZERO)]


@entry
def expanded(short: NDArray[np.int64]) -> NDArray[np.int64]:
    """The words that were squeezed; none where these cannot be such."""
    size = short.shape[0]
    count = short[0] >> 32 if size else ZERO
    out = np.empty(count if 0 <= count <= BLOCK * size else 0, np.int64)
    short, made, at, last = bared(short), bared(out), 1, ZERO
    if made.shape[0]:
        made[0] = short[0] & 0xFFFFFFFF
    for first in range(1, made.shape[0], BLOCK):
        if at >= size:
            return out[:0]
        bits, at = short[at], at + 1
        for i in range(first, min(first + BLOCK, made.shape[0])):
            code, bits = bits & 3, bits >> 2
            if code == _WRITTEN:
                if at >= size:
                    return out[:0]
                last, at = short[at], at + 1
            made[i] = last if code >= _AGAIN else code
        if bits:
            return out[:0]
    return out if at == size else out[:0]
