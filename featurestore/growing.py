"""Memory that grows in place: the pages of a large state move to a new address without being copied, or twice there."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray


class GrowingWords:
    """Words in memory of their own. `words` and `reals` are views of it, which are others after each `grow`."""

    def __init__(self, first: NDArray[np.int64]) -> None:
        """Begin with a copy of `first`."""
        self._map = _mapped(first.nbytes)
        self._look()
        self.words[: len(first)] = first

    def grow(self, length: int) -> None:
        """Have room for `length` words; those there keep their values, new ones are 0."""
        old, before = self._map, len(self.words)
        del self.words, self.reals
        # Not everywhere can a mapping be made longer, and never while somebody else looks at it.
        with suppress(SystemError, BufferError):
            old.resize(8 * length)
        if len(old) < 8 * length:
            self._map = _mapped(8 * length)
        self._look()
        if self._map is not old:
            self.words[:before] = np.frombuffer(old, np.int64)

    def _look(self) -> None:
        self.words: NDArray[np.int64] = np.frombuffer(self._map, np.int64)
        self.reals: NDArray[np.float64] = np.frombuffer(self._map, np.float64)


def _mapped(size: int) -> mmap.mmap:
    found = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    found.madvise(mmap.MADV_HUGEPAGE)
    return found
