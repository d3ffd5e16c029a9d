"""Texts as words: each has a code, the same everywhere and for ever, and states hold the texts of the codes in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from featurestore.kernel.lexicon import Lexicon, enter, numbers_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Longest text, in characters, that a state keeps: of a longer one the beginning.
MAX_TEXT = 256
#: So many texts are never too many.
CROWD = 100_000


class Texts:
    """The texts that one view's states know, by code."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._count = self._kept = self._marks = 0
        self.lexicon = _room(64, 1 << 10)

    @property
    def is_crowded(self) -> bool:
        """Whether most of the texts may be those of states that have moved on."""
        return self._count > max(4 * self._kept, CROWD)

    def keep(self, mark: int) -> None:
        """Forget the texts that are not marked so."""
        marked = np.flatnonzero(self.lexicon.marks[: self._count] == mark)
        texts = self.texts(self.lexicon.codes[marked]).to_pylist()
        self._codes, self._count, self.lexicon = {}, 0, _room(64, 1 << 10)
        self.codes(texts)
        self._kept = self._count

    def marks(self, count: int) -> int:
        """The first of `count` marks (see `kernel.sizes_of`) that have not been used before."""
        self._marks += count
        return self._marks - count

    def codes(self, texts: Iterable[str]) -> NDArray[np.int64]:
        """The codes of texts, which are known from now on."""
        known = self._codes
        return np.fromiter((known.get(text) or self._enter(text) for text in texts), np.int64)

    def texts(self, codes: NDArray[np.int64]) -> pa.Array:
        """The texts of codes, null for those that nobody knows: 0 is none's."""
        numbers = numbers_of(self.lexicon, np.ascontiguousarray(codes))
        buffers = [None, pa.py_buffer(self.lexicon.ends), pa.py_buffer(self.lexicon.text)]
        known = pa.Array.from_buffers(pa.large_string(), self._count, buffers)
        return known.take(pa.array(numbers, mask=numbers < 0))

    def _enter(self, text: str) -> int:
        code = code_of(text)
        self._codes[text] = code
        if numbers_of(self.lexicon, np.array([code]))[0] < 0:
            self._write(code, text.encode())
        return code

    def _write(self, code: int, text: bytes) -> None:
        used = int(self.lexicon.ends[self._count])
        if 2 * (self._count + 1) > len(self.lexicon.table) or used + len(text) > len(self.lexicon.text):
            self._grow(used + len(text))
        lexicon = self.lexicon
        lexicon.text[used : used + len(text)] = np.frombuffer(text, np.uint8)
        lexicon.ends[self._count + 1], lexicon.codes[self._count] = used + len(text), code
        enter(lexicon, self._count)
        self._count += 1

    def _grow(self, size: int) -> None:
        old, count = self.lexicon, self._count
        new = _room(2 * len(old.codes), max(2 * size, len(old.text)))
        new.text[: len(old.text)], new.codes[:count] = old.text, old.codes[:count]
        new.ends[: count + 1] = old.ends[: count + 1]
        for number in range(count):
            enter(new, number)
        self.lexicon = new


def code_of(text: str) -> int:
    """The code of a text, of 63 bits and not 0: nobody can find another text with the code of a given one."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1 or 1


def _room(texts: int, size: int) -> Lexicon:
    """A lexicon without texts, with room for so many, and for so many bytes."""
    codes, ends, marks = np.zeros(texts, np.int64), np.zeros(texts + 1, np.int64), np.full(texts, -1, np.int64)
    return Lexicon(codes, ends, np.zeros(size, np.uint8), np.full(2 * texts, -1, np.int32), marks)


def text_words(texts: Iterable[str]) -> NDArray[np.int64]:
    """Texts as they stand behind a state's runs (see `kernel.lexicon`)."""
    raw = [text.encode() for text in texts]
    words = b"".join(len(text).to_bytes(8, "little") + text + bytes(-len(text) % 8) for text in raw)
    return np.frombuffer(words, np.int64)


def read_texts(words: NDArray[np.int64]) -> list[str] | None:
    """The texts behind a state's runs; None when they are none."""
    raw, at, out = words.tobytes(), 0, []
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 8], "little", signed=True)
        begin, at = at + 8, at + 8 + -(-size // 8) * 8
        if size < 0 or at > len(raw):
            return None
        try:
            out.append(raw[begin : begin + size].decode())
        except UnicodeDecodeError:
            return None
    return out
