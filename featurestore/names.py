"""Numbers for names: some forty bytes each, where a dict would take two hundred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.kernel import hashing
from featurestore.values import Values

# Another one in each process, as that of Python's own dicts: who sends keys must not know how to make them collide.
_SEED = np.uint64(hash("onceflow") & (2**64 - 1))


class Names:
    """Encoded keys, numbered in order of first sight: `names[number]` is the key."""

    def __init__(self) -> None:
        self._count = 0
        self._text = np.zeros(1 << 10, np.uint8)
        self._ends = np.zeros(64, np.int64)
        self._table = np.full(128, -1, np.int32)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> bytes:
        if not 0 <= number < self._count:
            raise IndexError(number)
        return self._text[self._ends[number - 1] if number else 0 : self._ends[number]].tobytes()

    @property
    def nbytes(self) -> int:
        """Bytes of memory that names and table take."""
        return self._text.nbytes + self._ends.nbytes + self._table.nbytes

    def taken(self, numbers: NDArray[np.int64]) -> Values[bytes]:
        """The keys of these numbers."""
        starts = np.where(numbers > 0, self._ends[numbers - 1], 0)
        return Values[bytes](self._text, starts, self._ends[numbers] - starts)

    def number(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """The numbers of keys; those not seen before get the next ones."""
        text = np.frombuffer(b"".join(keys), np.uint8)
        ends = np.cumsum(np.fromiter(map(len, keys), np.int64, len(keys)))
        self._make_room(len(keys), len(text))
        out = np.empty(len(keys), np.int64)
        known = (self._text, self._ends, self._count, self._table)
        self._count = hashing.number_all(text, ends, _SEED, *known, out)
        return out

    def _make_room(self, keys: int, size: int) -> None:
        used = int(self._ends[self._count - 1]) if self._count else 0
        self._text = _grown(self._text, used + size)
        self._ends = _grown(self._ends, self._count + keys)
        if 2 * (self._count + keys) > len(self._table):
            self._table = np.full(1 << (2 * (self._count + keys) - 1).bit_length(), -1, np.int32)
            hashing.fill_table(self._text, self._ends, self._count, _SEED, self._table)


def _grown(array: NDArray[Any], need: int) -> NDArray[Any]:
    if need <= len(array):
        return array
    more = np.zeros(max(need, len(array) * 3 // 2), array.dtype)
    more[: len(array)] = array
    return more
