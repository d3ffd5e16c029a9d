"""A view running: the state of its entities, folded and read by the compiled kernel.

`ViewState` is a cache of what the online store holds. It does no I/O: the caller looks up what `missing` names, gives
it to `load`, runs its steps, and stores what `take_changes` returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from featurestore import kernel
from featurestore.errors import FormatError
from featurestore.expressions import TYPES
from featurestore.growing import GrowingWords, flagged, vector
from featurestore.kernel import Inputs, Results, Steps, layout
from featurestore.names import Names
from featurestore.planned import Plan
from featurestore.texts import Texts, read_texts
from featurestore.values import Values, frozen

#: Entity number of a step whose entity key is null: it folds nothing and reads nulls.
NO_ENTITY = -1
#: Words that a step's lists and maps are given room for at first.
ITEMS = 16
#: Steps done together: what they write must fit into a processor's cache, beside the states of their entities.
CHUNK = 4_096
#: One word of so many may lie idle in rooms that nobody has, before memory is made compact instead of larger.
WASTE = 8
#: Words of memory from which on it grows by an eighth, not by half: it is not copied then, but takes more pages.
LARGE = 1 << 27
_NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Changes:
    """States of one partition that were written to since the last time, encoded, and whose there are none any more."""

    partition: int
    entities: Sequence[bytes]
    blobs: Sequence[bytes]
    erased: Sequence[bytes] = ()


class ViewState:
    """State of one view over all partitions of its source. Entities are known by number, in order of first sight."""

    def __init__(self, plan: Plan, partitions: int, nameless: int = 0) -> None:
        """Hold nothing yet; of `nameless` entities, by number alone, no state is ever stored."""
        self.plan = plan
        self.partitions = partitions
        self.names = Names()
        self.texts = Texts()
        self._loaded = np.zeros((64, partitions), np.bool_)
        self._fresh: set[int] = set()
        self._erased: set[tuple[int, int]] = set()  # entity, partition
        self._slots = np.zeros((64, partitions), np.int64)  # addresses of heads by entity and partition, 0 for none
        self._last = np.full(64, -1, np.int32)  # see kernel.run
        self._used = np.zeros(64, np.int32)  # by entity: when it was used last, in turns
        self._turn = 0
        self._memory = GrowingWords(plan.memory(partitions, _SIZES.tolist()))
        self._grow_entities(nameless)

    @property
    def _words(self) -> NDArray[np.int64]:
        return self._memory.words

    def clock(self, partition: int) -> int | None:
        """Newest event time of the partition; None before its first event."""
        newest = int(self._words[self._words[layout.CLOCKS] + partition])
        return None if newest == _NEVER else newest

    def set_clock(self, partition: int, newest: int) -> None:
        """Take the clock up where it was stored."""
        self._words[self._words[layout.CLOCKS] + partition] = newest

    def number(self, entities: Sequence[bytes]) -> NDArray[np.int64]:
        """The numbers of encoded entity keys, new ones given out as needed."""
        out = self.names.number(entities)
        self._grow_entities(len(self.names))
        return out

    def missing(self, entities: NDArray[np.int64], partitions: Iterable[int]) -> list[tuple[int, int]]:
        """(entity, partition) pairs whose state has not been looked up yet, of distinct entity numbers."""
        self._used[entities] = self._turn
        return [(int(e), p) for p in partitions for e in entities[~self._loaded[entities, p]]]

    def assume_new(self, partition: int) -> None:
        """Nothing is stored for the partition: its states need no looking up, now or later."""
        self._fresh.add(partition)
        self._loaded[:, partition] = True

    def stale(self, partition: int) -> None:
        """The partition is written elsewhere: look its states up again."""
        self._fresh.discard(partition)
        self._loaded[:, partition] = False

    def load(self, entity: int, partition: int, blob: bytes | memoryview | None) -> None:
        """Take a stored state (None: there is none). Raises FormatError when it is not of this plan and version."""
        words = self._nothing() if blob is None else words_of(blob)
        if blob is not None and not self._take_texts(words):
            raise self._unreadable(entity)
        self._put(entity, partition, words)
        slot = self._slots[entity, partition : partition + 1]
        if self.plan.has_texts and not kernel.knows_all(self._words, slot, self.texts.lexicon, self.texts.marks(1)):
            self._put(entity, partition, self._nothing())
            raise self._unreadable(entity)
        self._loaded[entity, partition] = True

    def erase(self, entity: int, partition: int) -> None:
        """Let the entity have no state on the partition, whatever is stored; `take_changes` tells of it."""
        self.load(entity, partition, None)
        self._erased.add((entity, partition))

    def _put(self, entity: int, partition: int, words: NDArray[np.int64]) -> None:
        """Take the words of a state."""
        self._make_room(4 * len(words))
        kernel.load(self._words, self._slots, entity, partition, words)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, about, that the entities take."""
        return 8 * int(self._words[layout.USED]) + self.names.nbytes + len(self.names) * (9 * self.partitions + 8)

    def keep_newest(self, count: int) -> None:
        """Forget all but the `count` entities used last; those must be looked up again, so all changes be stored."""
        oldest_first = np.argsort(self._used[: len(self.names)], kind="stable")
        kept = np.sort(oldest_first[len(oldest_first) - count :])
        names, self.names = self.names, Names()
        self.names.number(names.taken(kept))
        self._slots, self._loaded, self._used = self._slots[kept], self._loaded[kept], self._used[kept]
        self._last = np.full(count, -1, np.int32)
        self._fresh.clear()
        rows, partitions = np.nonzero(self._slots)
        self._words[self._slots[rows, partitions] + layout.ENTITY] = rows
        kernel.compact(self._words, self._slots)

    def run(self, steps: Steps, inputs: Inputs, *, emit: bool) -> Results:
        """Do the steps in order: fold events, read entities (row -1). With `emit`, features come out after events too.

        What comes of a step is in its column. Without `emit`, that of a step that folds is not to be looked at, but for
        its status.
        """
        results = self._room_for(len(steps.row))
        if len(reads := np.flatnonzero(steps.row < 0)):
            steps = steps._replace(row=steps.row.copy())
            steps.row[reads] = ~reads
        # Numba compiles anew for arrays that it may write to; those that Polars gives are none.
        steps = Steps(*(frozen(np.ascontiguousarray(array, np.int64)) for array in steps))
        kernel.sort_out(self._words, steps, results, emit)
        results = self._done(steps, inputs, results, emit=emit)
        return results._replace(items=results.items[: self._words[layout.ITEMS]])

    def sweep(self, parts: Iterable[Steps], inputs: Inputs, reads: int) -> Results:
        """What so many reads found; the steps come in parts. Each event is folded, however old it is."""
        results = self._room_for(reads)
        for steps in parts:
            status = np.full(len(steps.row), layout.PENDING, np.int8)
            results = self._done(Steps(*map(frozen, steps)), inputs, results._replace(status=status), emit=False)
        return results._replace(items=results.items[: self._words[layout.ITEMS]])

    def _room_for(self, count: int) -> Results:
        """Results of so many steps, in which every feature is there until one is not."""
        words, valid = flagged(len(self.plan.outputs), count)
        effective, status = vector(count, np.int64), np.zeros(count, np.int8)
        items = np.zeros(1 + ITEMS * count if self.plan.bags else 1, np.int64)
        valid[:], effective[:], self._words[layout.ITEMS] = True, 0, 1  # at 0 is what has no entries
        return Results(words, words.view(np.float64), valid, effective, status, items)

    def _done(self, steps: Steps, inputs: Inputs, results: Results, *, emit: bool) -> Results:
        """The results, once the steps that are pending are done."""
        count = len(steps.row)
        order = np.empty((3, min(CHUNK, count)), np.int32)
        for begin in range(0, count, CHUNK):
            end = min(begin + CHUNK, count)
            while not kernel.run(
                self._memory.words,
                self._memory.reals,
                self._slots,
                steps,
                inputs,
                results,
                begin,
                end,
                order,
                self._last,
                emit,
                True if self.plan.bags else None,
            ):
                self._make_room(int(self._words[layout.WANTED]))
                results = self._with_room(results)
        return results

    def _with_room(self, results: Results) -> Results:
        """Results with room for the lists that are wanted next."""
        wanted = int(self._words[layout.ITEMS_WANTED])
        self._words[layout.ITEMS_WANTED] = 0
        if not wanted:
            return results
        items = np.zeros(2 * len(results.items) + wanted, np.int64)
        items[: len(results.items)] = results.items
        return results._replace(items=items)

    def take_changes(self) -> list[Changes]:
        """The states written to since the last call, by partition; they count as stored from now on."""
        slots, self._turn = kernel.take_dirty(self._words), self._turn + 1
        changes = self._with_erased(self._changes(self._filled(slots)))
        if self.texts.is_crowded:
            mark = self.texts.marks(1)
            kernel.knows_all(self._words, self._slots[self._slots > 0], self.texts.lexicon, mark)
            self.texts.keep(mark)
        return changes

    def blobs(self, partition: int) -> dict[bytes, bytes]:
        """Every state of a partition, encoded, by entity key."""
        slots = self._slots[: len(self.names), partition]
        changes = self._changes(self._filled(slots[slots > 0]))
        return {name: blob for c in changes for name, blob in zip(c.entities, c.blobs, strict=True)}

    def _filled(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the slots that hold an event."""
        filled: NDArray[np.int64] = slots[self._words[slots + layout.NEWEST] != _NEVER]
        return filled

    def _with_erased(self, changes: list[Changes]) -> list[Changes]:
        """The changes, and which of the states that were erased have not begun anew."""
        if not self._erased:
            return changes
        by_partition = {change.partition: change for change in changes}
        for partition in sorted({partition for _, partition in self._erased}):
            entities = np.array(sorted(e for e, p in self._erased if p == partition), np.int64)
            empty = self._words[self._slots[entities, partition] + layout.NEWEST] == _NEVER
            change = by_partition.get(partition, Changes(partition, [], []))
            by_partition[partition] = replace(change, erased=self.names.taken(entities[empty]))
        self._erased.clear()
        return list(by_partition.values())

    def _changes(self, slots: NDArray[np.int64]) -> list[Changes]:
        """The slots' states, encoded into one buffer."""
        if not len(slots):
            return []
        lexicon, mark = self.texts.lexicon, self.texts.marks(2 * len(slots))
        sizes = kernel.sizes_of(self._words, slots, lexicon, mark)
        out = vector(int(kernel.room_for(sizes).sum()), np.int64)
        state = np.empty(int(sizes.max()), np.int64)
        ends = kernel.encode(self._words, slots, sizes, out, state, lexicon, mark + len(slots))
        raw, starts = out.view(np.uint8), np.append(0, ends[:-1])
        partitions, entities = self._words[slots + layout.PARTITION], self._words[slots + layout.ENTITY]
        changes = []
        for partition in np.unique(partitions).tolist():
            rows = np.flatnonzero(partitions == partition)
            blobs = Values[bytes](raw, 8 * starts[rows], 8 * (ends - starts)[rows])
            changes.append(Changes(partition, self.names.taken(entities[rows]), blobs))
        return changes

    def _nothing(self) -> NDArray[np.int64]:
        runs = len(self.plan.tracks)
        return frozen(np.array([kernel.FORMAT | runs << 8, _NEVER, _NEVER, *[0] * runs], np.int64))

    def _take_texts(self, words: NDArray[np.int64]) -> bool:
        """Learn the texts of a stored state; False when it is not of this plan and format."""
        end = kernel.end_of_runs(self._words, words)
        if end < 0 or end == len(words):
            return bool(end >= 0)
        texts = read_texts(words[end:]) if self.plan.has_texts else None
        if texts is not None:
            self.texts.codes(texts)
        return texts is not None

    def _unreadable(self, entity: int) -> FormatError:
        return FormatError(
            f"the stored state of {self.plan.view.key}, entity {self.names[entity].decode()}, is not of format "
            f"{kernel.FORMAT}: it was written by another version or is damaged; rebuild the view from its topic "
            "with `onceflow backfill`"
        )

    def _grow_entities(self, count: int) -> None:
        have = len(self._slots)
        if count > have:
            more = max(count, 2 * have) - have
            self._slots = np.concatenate([self._slots, np.zeros((more, self.partitions), np.int64)])
            self._last = np.full(len(self._slots), -1, np.int32)
            self._used = np.concatenate([self._used, np.zeros(more, np.int32)])
            self._loaded = np.concatenate([self._loaded, np.zeros((more, self.partitions), np.bool_)])
            for partition in self._fresh:
                self._loaded[have:, partition] = True

    def _make_room(self, more: int) -> None:
        """Make sure that memory has room for a step, and for `more` words beside."""
        self._words[layout.WANTED] = 0
        longest = 2 * (self.plan.movable + 1) * int(self._words[layout.LONGEST])  # as kernel.run reckons
        more += longest + int(self._words[layout.RESERVE])
        if more > self._room and self._words[layout.LEFT] > self._words[layout.USED] // WASTE:
            kernel.compact(self._words, self._slots)
        if more > self._room:
            have = len(self._words)
            need = have - self._room + more
            self._memory.grow(max(need + need // 8, have + have // (2 if have < LARGE else 8)))

    @property
    def _room(self) -> int:
        """Words that nothing lies in."""
        return len(self._words) - int(self._words[layout.USED])


def words_of(blob: bytes | memoryview) -> NDArray[np.int64]:
    """The words of a stored state, not squeezed any more; none where it is damaged."""
    whole = np.frombuffer(blob[: len(blob) // 8 * 8], np.int64)
    return frozen(kernel.expanded(whole if 8 * len(whole) == len(blob) else whole[:0]))


def _nested(plan: Plan) -> NDArray[np.bool_]:
    """Which outputs are lists and maps: their words say where in the items each begins."""
    return np.array([feature.type not in TYPES for feature in plan.outputs])


def joined(plan: Plan, parts: Sequence[Results]) -> Results:
    """Results one after another, as one: lists and maps begin behind those of the parts before."""
    begin, lists = 0, _nested(plan)
    for part in parts:
        part.words[lists] += begin
        begin += len(part.items)
    names = ("words", "valid", "effective", "status", "items")
    whole = {name: np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in names}
    return Results(reals=whole["words"].view(np.float64), **whole)


def _class_sizes(most: int) -> NDArray[np.int64]:
    """Tiles of each size class of a run: 1 2 3 4 6 8 12 16 24 ... up to at least `most`."""
    sizes = [1, 2, 3, 4]
    while sizes[-1] < most:
        sizes.append(sizes[-2] * 2)
    return np.array(sizes, np.int64)


_SIZES = _class_sizes(1 << 29)
