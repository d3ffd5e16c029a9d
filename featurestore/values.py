"""Many byte strings in one buffer: what a topic's records hold, without an object for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, cast, overload

import numpy as np
import pyarrow as pa

from featurestore.kernel.objects import view_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Ints = NDArray[np.int64]


V = TypeVar("V", bytes, "bytes | None")
T = TypeVar("T", bound=np.generic)


class Values(Sequence[V]):
    """A sequence of bytes, or of bytes and None: `lengths[i]` bytes of `buffer` from `starts[i]` on; -1 for None."""

    __slots__ = ("buffer", "lengths", "starts")

    def __init__(self, buffer: Bytes, starts: Ints, lengths: Ints) -> None:
        # Numba compiles anew for each layout, and for what may not be written to.
        self.buffer = frozen(buffer)
        self.starts, self.lengths = (np.require(each, np.int64, ["C", "W"]) for each in (starts, lengths))

    @classmethod
    def of(cls, values: Sequence[V]) -> Values[V]:
        """The values as one buffer; those that are so already as they are."""
        if isinstance(values, Values):
            return values
        lengths = np.fromiter((-1 if value is None else len(value) for value in values), np.int64, len(values))
        ends = np.cumsum(np.maximum(lengths, 0))
        buffer = np.frombuffer(b"".join(value or b"" for value in values), np.uint8)
        return cls(buffer, ends - np.maximum(lengths, 0), lengths)

    @classmethod
    def joined(cls, parts: Sequence[Sequence[V]]) -> Values[V]:
        """All values of the parts, of which there is at least one, one part after the other."""
        several: list[Values[V]] = [cls.of(part) for part in parts]
        if len(several) == 1:
            return several[0]
        begins = np.cumsum([0, *(len(part.buffer) for part in several)])
        starts = [part.starts + begin for part, begin in zip(several, begins, strict=False)]
        lengths = [part.lengths for part in several]
        return cls(*map(np.concatenate, ([part.buffer for part in several], starts, lengths)))

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, at: int) -> V: ...
    @overload
    def __getitem__(self, at: slice) -> Values[V]: ...
    def __getitem__(self, at: int | slice) -> V | Values[V]:
        if isinstance(at, slice):
            return Values(self.buffer, self.starts[at], self.lengths[at])
        start, length = int(self.starts[at]), int(self.lengths[at])
        return cast("V", None if length < 0 else self.buffer[start : start + length].tobytes())  # type: ignore[redundant-cast]

    def __iter__(self) -> Iterator[V]:
        memory = self.buffer.data
        for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
            yield cast("V", None if length < 0 else bytes(memory[start : start + length]))  # type: ignore[redundant-cast]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Values({list(self)!r})"

    @property
    def nbytes(self) -> int:
        """How many bytes the strings have together."""
        return int(np.maximum(self.lengths, 0).sum())

    def taken(self, rows: NDArray[np.int64]) -> Values[V]:
        """The strings at these places."""
        return Values(self.buffer, self.starts[rows], self.lengths[rows])

    def to_arrow(self) -> pa.Array:
        """An Arrow array of binary views of the buffer."""
        words = np.zeros((len(self), 2), np.int64)
        view_all(self.buffer, self.starts, self.lengths, words)
        null = self.lengths < 0
        valid = validity(~null)
        return pa.Array.from_buffers(
            pa.binary_view(), len(self), [valid, pa.py_buffer(words), pa.py_buffer(self.buffer)]
        )


def validity(there: NDArray[np.bool_]) -> pa.Buffer | None:
    """Arrow's bitmap of which values are there; None where all are."""
    return None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))


def frozen(array: NDArray[T]) -> NDArray[T]:
    """The array, not to be written to: Numba compiles anew for what may be."""
    if not array.flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view
