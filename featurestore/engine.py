"""A view running: the state of its entities, folded and read by the compiled kernel.

`ViewState` is a cache of what the online store holds. It does no I/O: the caller looks up what `missing` names, gives
it to `load`, runs its steps, and stores what `take_changes` returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurestore import kernel
from featurestore.errors import FormatError
from featurestore.kernel import Accumulators, Inputs, Results, State, Steps
from featurestore.plan import Plan

#: Entity number of a step whose entity key is null: it folds nothing and reads nulls.
NO_ENTITY = -1
_NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Changes:
    """States of one partition that were written to since the last time, encoded."""

    partition: int
    entities: list[bytes]
    blobs: list[memoryview]


class ViewState:
    """State of one view over all partitions of its source. Entities are known by number, in order of first sight."""

    def __init__(self, plan: Plan, partitions: int) -> None:
        self.plan = plan
        self.partitions = partitions
        self.numbers: dict[bytes, int] = {}
        self.names: list[bytes] = []
        tables = plan.tables
        sizes = _class_sizes(int(tables.tracks[:, 5].max()))
        self._reserve = int((tables.tracks[:, 2] * tables.tracks[:, 5]).sum()) * 2
        words = np.zeros(max(1 << 12, 2 * self._reserve), np.int64)
        self._loaded = np.zeros((64, partitions), np.bool_)
        self._fresh: set[int] = set()
        cache = np.zeros((64, plan.cache_words), np.int64)
        self._state = State(
            slots=np.full((64, partitions), -1, np.int64),
            newest=np.zeros(64, np.int64),
            folded=np.zeros(64, np.int64),
            runs=np.zeros((64, len(tables.tracks), 3), np.int64),
            words=words,
            reals=words.view(np.float64),
            free=np.full((len(tables.tracks), len(sizes)), -1, np.int64),
            sizes=sizes,
            used=np.zeros(3, np.int64),
            owners=np.zeros((64, 2), np.int64),
            dirty=np.zeros((2, 64), np.int64),
            clock=np.full(partitions, _NEVER, np.int64),
            cache=cache,
        )
        self._accumulators = (_accumulators(plan), _accumulators(plan))

    def clock(self, partition: int) -> int | None:
        """Newest event time of the partition; None before its first event."""
        newest = int(self._state.clock[partition])
        return None if newest == _NEVER else newest

    def set_clock(self, partition: int, newest: int) -> None:
        """Take the clock up where it was stored."""
        self._state.clock[partition] = newest

    def number(self, entities: Sequence[bytes]) -> NDArray[np.int64]:
        """The numbers of encoded entity keys, new ones given out as needed."""
        out = np.empty(len(entities), np.int64)
        for i, entity in enumerate(entities):
            number = self.numbers.get(entity)
            if number is None:
                number = self.numbers[entity] = len(self.names)
                self.names.append(entity)
            out[i] = number
        self._grow_entities(len(self.names))
        return out

    def missing(self, entities: NDArray[np.int64], partitions: Iterable[int]) -> list[tuple[int, int]]:
        """(entity, partition) pairs whose state has not been looked up yet, of distinct entity numbers."""
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
        words = _checked(self.plan, blob, self.names[entity]) if blob is not None else self._nothing()
        self._grow_slots(1)
        self._grow_words()
        kernel.load(self.plan.tables, self._state, entity, partition, words)
        self._loaded[entity, partition] = True

    def run(self, steps: Steps, inputs: Inputs, *, emit: bool) -> Results:
        """Do the steps in order: fold events, read entities. With `emit`, features come out after each event too."""
        outputs = len(self.plan.outputs)
        words = np.zeros((len(steps.row), outputs), np.int64)
        results = Results(
            words,
            words.view(np.float64),
            np.zeros((len(steps.row), outputs), np.bool_),
            np.zeros(len(steps.row), np.int64),
            np.zeros(len(steps.row), np.int8),
        )
        # Numba compiles anew for arrays that it may not write to, as Polars gives them.
        steps = Steps(*(np.require(array, np.int64, ["C", "W"]) for array in steps))
        self._grow_slots(len(steps.row))
        done, lateness = 0, self.plan.view.source.lateness_ms
        checks = self.plan.checks_overflow
        while done < len(steps.row):
            args = (self.plan.tables, self._state, steps, inputs, *self._accumulators, results, done)
            done = kernel.run(*args, lateness, checks, emit)
            if done < len(steps.row):
                self._grow_words()
        return results

    def take_changes(self) -> list[Changes]:
        """The states written to since the last call, by partition; they count as stored from now on."""
        state = self._state
        slots = state.dirty[1, : state.used[2]].copy()
        state.dirty[0, slots] = 0
        state.used[2] = 0
        return self._changes(slots)

    def blobs(self, partition: int) -> dict[bytes, bytes]:
        """Every state of a partition, encoded, by entity key."""
        state = self._state
        slots = state.slots[: len(self.names), partition]
        slots = slots[slots >= 0]
        changes = self._changes(slots[state.newest[slots] != _NEVER])
        return {name: bytes(blob) for c in changes for name, blob in zip(c.entities, c.blobs, strict=True)}

    def _changes(self, slots: NDArray[np.int64]) -> list[Changes]:
        """The slots' states, encoded into one buffer."""
        if not len(slots):
            return []
        ends = np.cumsum(kernel.sizes_of(self.plan.tables, self._state, slots))
        out = np.empty(int(ends[-1]), np.int64)
        kernel.encode(self.plan.tables, self._state, slots, ends, out)
        raw, starts, owners = out.data.cast("B"), ends - np.diff(ends, prepend=0), self._state.owners[slots]
        changes = []
        for partition in np.unique(owners[:, 1]).tolist():
            rows = np.flatnonzero(owners[:, 1] == partition)
            names = [self.names[e] for e in owners[rows, 0].tolist()]
            spans = zip((starts[rows] * 8).tolist(), (ends[rows] * 8).tolist(), strict=True)
            changes.append(Changes(partition, names, [raw[a:b] for a, b in spans]))
        return changes

    def _nothing(self) -> NDArray[np.int64]:
        tracks = len(self.plan.tables.tracks)
        return _frozen(np.array([kernel.FORMAT | tracks << 8, _NEVER, _NEVER, *[0] * tracks], np.int64))

    def _grow_entities(self, count: int) -> None:
        have = len(self._state.slots)
        if count > have:
            more = max(count, 2 * have) - have
            slots = np.concatenate([self._state.slots, np.full((more, self.partitions), -1, np.int64)])
            self._loaded = np.concatenate([self._loaded, np.zeros((more, self.partitions), np.bool_)])
            for partition in self._fresh:
                self._loaded[have:, partition] = True
            self._state = self._state._replace(slots=slots)

    def _grow_slots(self, more: int) -> None:
        state = self._state
        need, have = int(state.used[1]) + more, len(state.newest)
        if need > have:
            size = max(need, 2 * have)
            self._state = state._replace(
                newest=np.resize(state.newest, size),
                folded=np.resize(state.folded, size),
                runs=np.resize(state.runs, (size, *state.runs.shape[1:])),
                owners=np.resize(state.owners, (size, 2)),
                cache=np.resize(state.cache, (size, state.cache.shape[1])),
                dirty=np.column_stack([state.dirty, np.zeros((2, size - have), np.int64)]),
            )

    def _grow_words(self) -> None:
        state = self._state
        if state.used[0] + self._reserve > len(state.words):
            words = np.concatenate([state.words, np.zeros(len(state.words) + self._reserve, np.int64)])
            self._state = state._replace(words=words, reals=words.view(np.float64))


def _accumulators(plan: Plan) -> Accumulators:
    tile = np.zeros(int(plan.tables.tracks[:, 2].max()), np.int64)
    return Accumulators(tile, tile.view(np.float64), np.zeros(len(plan.tables.ops), np.int64))


def _frozen(words: NDArray[np.int64]) -> NDArray[np.int64]:
    """The words, read-only as those of most blobs are: Numba compiles anew for what may be written to."""
    words.flags.writeable = False
    return words


def _class_sizes(most: int) -> NDArray[np.int64]:
    """Tiles of each size class of a run: 1 2 3 4 6 8 12 16 24 ... up to at least `most`."""
    sizes = [1, 2, 3]
    while sizes[-1] < most:
        sizes.append(sizes[-2] * 2)
    return np.array(sizes, np.int64)


def _checked(plan: Plan, blob: bytes | memoryview, entity: bytes) -> NDArray[np.int64]:
    """The words of a stored state, or FormatError."""
    words = _frozen(np.frombuffer(blob, np.int64) if len(blob) % 8 == 0 else np.zeros(0, np.int64))
    if not kernel.is_sound(plan.tables, words):
        raise FormatError(
            f"the stored state of {plan.view.key}, entity {entity.decode()}, is not of format {kernel.FORMAT}: "
            f"it was written by another version or is damaged; rebuild the view from its topic with `onceflow backfill`"
        )
    return words
