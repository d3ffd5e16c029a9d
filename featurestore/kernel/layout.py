"""How everything lies in one memory of words.

The kernel knows one array, seen as integers (`words`) and as floats (`reals`), so that each keeps its own bits. Plan,
slots, tiles and caches are records in it: a record's address is the index of its first word, and the names below are
distances from there. So a call hands over two arrays and a few numbers, and memory
grows as one array.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numba import njit

from featurestore.kernel.parts import EntryCompiler, PartCompiler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = NDArray[np.int64]
    Reals = NDArray[np.float64]

#: Version of an encoded state; its first words are the format and the number of runs, the newest time, the last offset.
#: What is stored of it is squeezed but for the first word, whose upper half then says how many words there are.
FORMAT = 5
HEAD = 3

# Nothing here allocates: without Numba's reference counting a call costs nothing, with it some 15 atomic operations.
_OPTIONS = {"nogil": True, "error_model": "numpy", "_nrt": False, "no_cfunc_wrapper": True, "no_cpython_wrapper": True}
# A function takes over from who is compiled before it what it does not say itself.
compiled = njit(**_OPTIONS, forceinline=False, pipeline_class=PartCompiler)
# For what is called for each event, or each tile that closes, where a call costs as much as the work. It is compiled as
# often as it is called: not for what is large and called from several places.
inlined = njit(**_OPTIONS, forceinline=True, pipeline_class=PartCompiler)


def entry(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile what is called from Python, and keep it on disk.

    Numba's cache looks only at the file of the function itself, and would run what was compiled from another file's
    older text. So the text of the whole kernel is made part of the name by which the cache knows the function.
    """
    folder = Path(__file__).parent
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    function.__qualname__ += f"_{hashlib.sha256(text).hexdigest()[:12]}"
    return njit(cache=True, nogil=True, error_model="numpy", no_cfunc_wrapper=True, pipeline_class=EntryCompiler)(
        function
    )


INT_MAX = np.iinfo(np.int64).max
INT_MIN = np.iinfo(np.int64).min
TWO_TO_64 = 2.0**64
# Numba compiles a function anew for each literal that it is called with; this is no literal to it.
ZERO = cast("int", np.int64(0))

#: What became of an event: folded; too late for every window; quarantined, since an integer sum would overflow; left
#: out of the view, since its entity key is null.
FOLDED, LATE, OVERFLOW, KEYLESS = range(4)
# And before: a step still to do.
PENDING = -1

# Kinds of tracks. TILES hold what the events of a stretch of time add up to; EVENTS keeps them as they are, LATEST the
# newest ones whatever their age; SESSIONS are tiles with edges of their own. BAGS count which values came in a tile or
# session, LISTS keep its first or last values.
TILES, EVENTS, LATEST, SESSIONS, BAGS, LISTS = range(6)

# The first words: where the plan's records lie and what they need; then what changes.
TRACKS, TRACKS_END, GROUPS, GROUPS_END, HEAD_WORDS, CACHE_WORDS, CACHE_FREE = range(7)
SCRATCH, ACC_MOST, PARTITIONS, CLOCKS, SIZES, LATENESS, KEEPS, RESERVE, CHECKS = range(7, 16)
USED, DIRTY_FIRST, LONGEST, WANTED, BAG_GROUPS_END, ITEMS, ITEMS_WANTED = range(16, 23)
# Where slots and rooms begin; words of rooms that nobody has at the moment; whether stretches are folded together;
# words that are not to be taken for sums.
BEGIN, LEFT, PLAIN, KEPT, PLAN_WORDS = range(23, 28)

#: What is in SCRATCH, in accumulators: some to merge into, one that is always empty; notes of what a tile held after
#: each of NOTED events; then a word or two for each partition.
EMPTY, SPARE, MERGED, NOTES, NOTED = 2, 3, 5, 6, 64
CURSORS = NOTES + NOTED

#: Sizes of rooms, at most.
CLASSES = 63

# A track; ACC: words of an accumulator, STRIDE: of a tile or of an event's record; FIRST_LANE: where the numbers of the
# record's lanes lie; RUN: where a slot's head tells of its run; BAG: what a track of BAGS or LISTS keeps, 0 for others;
# PARENT: the track of the sessions that it is told by, if any; SPAN: so long (ms) is a stretch of which LISTS keep no
# more than they must; FIRST_TEXT: where the places of text codes in a record lie; FREE: room for runs, by size class,
# chained.
KIND, HOP, KEEP, STRIDE, FIRST_OP, END_OP, ACC, LIMIT, FIRST_LANE, LANES, RUN = range(11)
BAG, PARENT, SPAN, FIRST_TEXT, TEXTS, FREE = range(11, 17)
TRACK_WORDS = FREE + CLASSES
# An op: a primitive of a lane; WORD, N_WORD: where it and the lane's count lie in a tile; PLACE: of the lane in a
# record.
CODE, LANE, WORD, N_WORD, SIZE, PLACE, PARAMETER, OP_WORDS = range(8)
# A group: a window of a track; CACHED: where a slot's cache tells of it; BLOCK: its length in tiles,
# or in ms; SIMPLE: whether it is tiles, not delayed, of which nothing is wanted but COUNT and BUNDLE_FLOAT; OF_BAG: the
# bag or list that it is of, 0 for none; PLACED: where a record of LATEST has the bag's lane.
TRACK, LENGTH, DELAY, FIRST_OUT, END_OUT, CACHED, BLOCK, SIMPLE, OF_BAG, PLACED, SUMS_FREE = range(11)
GROUP_WORDS = SUMS_FREE + CLASSES
# An out, after its CODE; OUTPUT: the number of the first output.
OUT_WORD, OUT_N, OUT_PARAMETER, OUTPUT = range(1, 5)
OUT_WORDS = OUTPUT + 7

# A bag: how often a lane's values came (COUNTS), what those of the next lane sum up to by them (SUMS), or the first or
# last BOUND values (FIRSTS, LASTS). POLICY: what becomes of a new value in a tile that has BOUND of them.
BAG_LANE, BAG_KIND, POLICY, BOUND, BAG_WORDS, BAG_SIZE = range(6)
COUNTS, SUMS_FLOAT, SUMS_INT, FIRSTS, LASTS = range(5)
#: It is let in; it goes to OTHER; it takes the place, and the count, of the rarest; all become a HyperLogLog.
GROW, REFUSE, EVICT, SKETCH = range(4)
# What a slot's cache has of a bag's window: the index of its oldest tile (INT_MIN for nothing), then its entries: their
# address, the size class of their room, how many there are.
BAG_FIRST, BAG_START, BAG_CLASS, BAG_COUNT, BAG_HEAD = range(5)
#: The key of all values that were refused. Codes of texts and hashes are positive.
OTHER = INT_MIN

# A slot's head: one entity on one partition; then by track the address of its run, and count << 6 | size class + 1.
NEWEST, LAST_OFFSET, ENTITY, PARTITION, DIRTY_NEXT, CACHE, RUNS = range(7)
CLASS_BITS = 6


class Steps(NamedTuple):
    """What to do, in order: fold event `row` of the inputs, or (row below 0) read the entity as of the time.

    Features of step i, if it folds, are column i of the results; of one that reads, column ~row.
    """

    row: NDArray[np.int64]
    entity: NDArray[np.int64]
    partition: NDArray[np.int64]
    time: NDArray[np.int64]
    offset: NDArray[np.int64]  # ascending by partition: an event that its entity's state holds already is not folded


class Inputs(NamedTuple):
    """Values of each lane by event; `reals` is the same memory as `words`. Invalid ones are skipped."""

    words: NDArray[np.int64]  # [lane, row]
    reals: NDArray[np.float64]
    valid: NDArray[np.bool_]


class Results(NamedTuple):
    """What came out: feature values (two views of one memory), whether they are there, as of when; events' status."""

    words: NDArray[np.int64]  # [output, column]
    reals: NDArray[np.float64]
    valid: NDArray[np.bool_]
    effective: NDArray[np.int64]  # [column]
    status: NDArray[np.int8]  # [step]
    items: NDArray[np.int64]  # lists and maps: how many entries, then these; `words` say where each begins
