"""Events that came before: the same id again, within so many records of a partition."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from featurestore.growing import matrix
from featurestore.kernel.repeats import BORNE, SLOT, copy_borne, mark_repeats

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.sources import Source

    Ints = NDArray[np.int64]

# Another one in each process, as that of Python's own dicts: who sends ids must not know how to make them collide.
_KEY = np.array([hash(f"onceflow {half}") & (2**64 - 1) for half in range(2)], np.uint64)

#: Events that are looked at together, where there are all of a log.
_PIECE = 100_000


class Repeats:
    """The ids that a partition's newest records have borne.

    An event is a repeat if its id is borne by any event among the `source.dedup` records before it, or before it in its
    own; by one that was a repeat itself, too. So what an event is depends on as many records before it and on nothing
    else: who reads those first may begin anywhere. An event without an id is no repeat.

    Ids are known by 128 bits of a keyed hash, in 24 bytes each; tables have one and a third to four times the room.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._table = np.zeros((1 << 10, SLOT), np.uint64)
        self._taken = 0

    def sort_out(self, events: pl.DataFrame) -> tuple[pl.DataFrame, Ints]:
        """The partition's next events, in order of offset, without the repeats; and the offsets of those."""
        assert self._source.id is not None
        offsets = events["_offset"].to_numpy()
        if not len(offsets):
            return events, offsets
        records, again = offsets >> self._source.row_bits, np.zeros(len(offsets), np.bool_)
        self._make_room(len(records), int(records[0]) - self._source.dedup)
        given = events[self._source.id].is_not_null().to_numpy()
        ids = _bytes_of(events[self._source.id])
        hashes = matrix(len(records), 2, np.uint64)
        self._taken += mark_repeats(*ids, given, records, self._source.dedup, _KEY, self._table, hashes, again)
        return (events.filter(~pl.Series(again)), offsets[again]) if again.any() else (events, offsets[:0])

    def _make_room(self, count: int, since: int) -> None:
        """Have free slots for so many more ids; those that were last borne before a record are forgotten first."""
        if 4 * (self._taken + count) > 3 * len(self._table):
            kept = int(np.count_nonzero(self._table[:, BORNE].view(np.int64) > max(since, 0)))
            table = matrix(1 << (2 * (kept + count) - 1).bit_length(), SLOT, np.uint64)
            table[:] = 0
            self._taken, self._table = copy_borne(self._table, max(since, 0), table), table


def without_repeats(source: Source, events: pl.DataFrame) -> pl.DataFrame:
    """The events of whole logs, in order of partition and offset, but for repeats; all where the source has no id."""
    if source.id is None or not len(events):
        return events
    partitions = events["_partition"].to_numpy()
    begins = [0, *(np.flatnonzero(np.diff(partitions)) + 1).tolist(), len(events)]
    parts = []
    for begin, end in pairwise(begins):
        repeats = Repeats(source)
        cuts = range(begin, end, _PIECE)
        parts += [repeats.sort_out(events[at : min(at + _PIECE, end)])[0] for at in cuts]
    return pl.concat(parts)


def _bytes_of(ids: pl.Series) -> tuple[NDArray[np.uint8], Ints]:
    """The bytes of all ids, and where each ends; of a missing one anything."""
    if ids.dtype == pl.Int64:
        numbers = ids.fill_null(0).to_numpy()
        return np.frombuffer(numbers.tobytes(), np.uint8), np.arange(8, 8 * len(numbers) + 8, 8)
    texts = ids.to_arrow()
    ends, text = texts.buffers()[1:]
    whole = np.frombuffer(ends, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    # The bytes of the first one begin where those of none end.
    return np.frombuffer(text, np.uint8)[whole[0] :] if text else np.zeros(0, np.uint8), whole[1:] - whole[0]
