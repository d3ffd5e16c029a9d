"""Byte strings in the form that Redis takes them in (RESP): many at once, in compiled code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.kernel.bare import bared
from featurestore.kernel.layout import ZERO, compiled, entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Ints = NDArray[np.int64]

_DOLLAR, _RETURN, _LINE, _NOUGHT = (ord(c) for c in "$\r\n0")
_FRAME = 5  # bytes around the digits and the string


@compiled
def _digits_of(number: int) -> int:
    count, number = ZERO + 1, number // 10
    while number:
        count, number = count + 1, number // 10
    return count


@entry
def packed_size(prefix: Bytes, lengths: Ints) -> int:
    """Bytes of strings of these lengths, each after the prefix, when they are packed."""
    size = ZERO
    for i in range(lengths.shape[0]):
        length = prefix.shape[0] + lengths[i]
        size += _FRAME + _digits_of(length) + length
    return size


@entry
def pack(prefix: Bytes, buffer: Bytes, starts: Ints, lengths: Ints, out: Bytes) -> None:
    """Write strings of the buffer, each after the prefix, one after another: `$<length>`, line end, bytes, line end."""
    first, text, packed, at = bared(prefix), bared(buffer), bared(out), ZERO
    for i in range(starts.shape[0]):
        rest = first.shape[0] + lengths[i]
        packed[at] = _DOLLAR
        end = at + 1 + _digits_of(rest)
        for place in range(end - 1, at, -1):
            packed[place] = _NOUGHT + rest % 10
            rest //= 10
        at = _line_end(packed, end)
        for j in range(first.shape[0]):
            packed[at + j] = first[j]
        at += first.shape[0]
        for j in range(lengths[i]):
            packed[at + j] = text[starts[i] + j]
        at = _line_end(packed, at + lengths[i])


@compiled
def _line_end(out: Bytes, at: int) -> int:
    out[at], out[at + 1] = _RETURN, _LINE
    return at + 2
