"""Memory in large pieces, which grows in place and is used again.

The first touch of a page is dear, above all on virtual machines: it can cost more than the work that is done on it. So
the pages of a large state move to a new address without being copied, and memory that nobody looks at any more serves
the next who needs some, within bounds.
"""

from __future__ import annotations

import mmap
import sys
import threading
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

#: Most bytes that wait for the next who needs them, and most pieces that are known.
KEPT, PIECES = 1 << 30, 64
#: What is smaller (bytes) is left to the allocator, which uses it again by itself.
LARGE = 1 << 20
#: Bytes of a huge page. Linux puts what is as long as some whole ones where a page begins; also what is made longer.
HUGE = 1 << 21

_pieces: list[mmap.mmap] = []
_lock = threading.Lock()


def _references(things: list[Any]) -> list[int]:
    return [sys.getrefcount(thing) for thing in things]


#: As many has a thing that is nowhere but in a list; by how much counting adds to it depends on the Python.
_ALONE = _references([object()])[0]


class GrowingWords:
    """Words in memory of their own. `words` and `reals` are views of it, which are others after each `grow`."""

    def __init__(self, first: NDArray[np.int64]) -> None:
        """Begin with a copy of `first`; there may be more words behind it, which say anything."""
        self._piece = _piece(first.nbytes)
        self._look()
        self.words[: len(first)] = first

    def grow(self, length: int) -> None:
        """Have room for `length` words; those there keep their values, new ones say anything."""
        old, before = self._piece, len(self.words)
        del self.words, self.reals
        self._piece = _longer(old, 8 * length)
        self._look()
        if self._piece is not old:
            self.words[:before] = np.frombuffer(old, np.int64, before)

    def _look(self) -> None:
        words = len(self._piece) // 8
        self.words: NDArray[np.int64] = np.frombuffer(self._piece, np.int64, words)
        self.reals: NDArray[np.float64] = np.frombuffer(self._piece, np.float64, words)


def matrix(rows: int, columns: int, dtype: type[T]) -> NDArray[T]:
    """A matrix whose values may be any."""
    count, size = rows * columns, rows * columns * np.dtype(dtype).itemsize
    if size < LARGE:
        return np.empty((rows, columns), dtype)
    return np.frombuffer(_piece(size), dtype, count).reshape(rows, columns)


def vector(count: int, dtype: type[T]) -> NDArray[T]:
    """A row of so many values, which may be any."""
    row: NDArray[T] = matrix(1, count, dtype)[0]
    return row


def flagged(rows: int, columns: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """A matrix of words and one that says which of them are there; they may say anything."""
    return matrix(rows, columns, np.int64), matrix(rows, columns, np.bool_)


def _longer(piece: mmap.mmap, size: int) -> mmap.mmap:
    """A piece of at least `size` bytes: one that is idle, the same made longer, or a new one."""
    size = _whole(size)
    with _lock:
        found = _idle(size, 16)  # what grows will grow on
    if found is None:
        # Not everywhere can a mapping be made longer, and never while somebody else looks at it.
        with suppress(SystemError, BufferError):
            piece.resize(size)
        found = piece if len(piece) >= size else _piece(size)
    if len(found) > KEPT:
        with _lock:
            _forget(found)
    return found


def _piece(size: int) -> mmap.mmap:
    """A piece of at least `size` bytes that nobody else uses, for as long as it, or a view of it, is held."""
    size = _whole(size)
    with _lock:
        found = _idle(size, 2)
        if found is None:
            found = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with suppress(AttributeError, OSError):  # not every system has huge pages
                found.madvise(mmap.MADV_HUGEPAGE)
            if size <= KEPT:
                _pieces.append(found)
                _let_go()
        return found


def _whole(size: int) -> int:
    """The size, up to whole huge pages where it is large."""
    return size if size < LARGE else -(-size // HUGE) * HUGE


def _idle(size: int, slack: int) -> mmap.mmap | None:
    """The smallest piece that nobody uses, of `size` bytes or up to `slack` times as many."""
    return min((piece for piece in _waiting() if size <= len(piece) <= slack * size), key=len, default=None)


def _waiting() -> list[mmap.mmap]:
    """The pieces that nobody uses."""
    return [piece for piece, count in zip(_pieces, _references(_pieces), strict=True) if count == _ALONE]


def _let_go() -> None:
    """Give back to the system what waits beyond the bounds, the largest first; forget the oldest beyond the others."""
    idle = sorted(_waiting(), key=len)
    while idle and (sum(map(len, idle)) > KEPT or len(_pieces) > PIECES):
        _forget(idle.pop())
    del _pieces[:-PIECES]


def _forget(gone: mmap.mmap) -> None:
    """Let a piece go back to the system when its user is done with it."""
    _pieces[:] = [piece for piece in _pieces if piece is not gone]
