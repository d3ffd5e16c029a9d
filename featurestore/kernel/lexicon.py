"""Texts behind codes, as the kernel finds and stores them.

Behind its runs a state has each text that its codes name, once: its length in bytes, then these, in whole words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from featurestore.kernel.bare import bared
from featurestore.kernel.layout import compiled, entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.kernel.layout import Words


class Lexicon(NamedTuple):
    """Texts, numbered in the order in which they came."""

    codes: NDArray[np.int64]
    ends: NDArray[np.int64]  # in `text`, from 0 on: a text begins where the one before ends
    text: NDArray[np.uint8]
    table: NDArray[np.int32]  # numbers by code, an open hash table as long as a power of two; -1 for none
    marks: NDArray[np.int64]  # by number, the mark of the state that it was last written for


@compiled
def number_of(lexicon: Lexicon, code: int) -> int:
    """The number of a code, -1 when nobody knows it."""
    mask = lexicon.table.shape[0] - 1
    place = code & mask
    while lexicon.table[place] >= 0 and lexicon.codes[lexicon.table[place]] != code:
        place = (place + 1) & mask
    return lexicon.table[place]


@entry
def enter(lexicon: Lexicon, number: int) -> None:
    """Let a text be found by its code."""
    lexicon = bared(lexicon)
    mask = lexicon.table.shape[0] - 1
    place = lexicon.codes[number] & mask
    while lexicon.table[place] >= 0:
        place = (place + 1) & mask
    lexicon.table[place] = number


@entry
def numbers_of(lexicon: Lexicon, codes: Words) -> Words:
    """The numbers of codes, -1 for those that nobody knows."""
    lexicon, out = bared(lexicon), np.empty(codes.shape[0], np.int64)
    for i in range(codes.shape[0]):
        out[i] = number_of(lexicon, codes[i]) if codes[i] > 0 else -1
    return out


@compiled
def text_words(lexicon: Lexicon, number: int) -> int:
    """Words that a text takes in a state."""
    return 1 + (lexicon.ends[number + 1] - lexicon.ends[number] + 7) // 8


@compiled
def write_text(lexicon: Lexicon, number: int, out: Words, at: int) -> None:
    """Write a text to `out`."""
    begin = lexicon.ends[number]
    size = lexicon.ends[number + 1] - begin
    out[at] = size
    for i in range((size + 7) // 8):
        word = np.int64(0)
        for j in range(8 * i, min(8 * i + 8, size)):
            word |= np.int64(lexicon.text[begin + j]) << 8 * (j & 7)
        out[at + 1 + i] = word
