"""Views running together over merged events: fold, read, and say what changed.

`Flow` is the one path that events take, online and in a replay. It does no I/O: `lookups` names the states that must
be loaded before `run` may see a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from featurestore import kernel
from featurestore.align import Chunk, Partition
from featurestore.definitions import View
from featurestore.engine import NO_ENTITY, Changes, ViewState, joined
from featurestore.erasures import Erasure
from featurestore.errors import StateError
from featurestore.frames import entity_codes, feature_frame, lane_inputs
from featurestore.kernel import Inputs, Results, Steps
from featurestore.plan import compiled
from featurestore.stores import UNFINISHED


@dataclass(frozen=True)
class Read:
    """Read the view's features at every event of `topic`, for the entity that the event's `keys` columns name.

    A view of the same topic is read right after the event is folded or, with `before`, right before.
    """

    view: View
    topic: str
    keys: tuple[str, ...]
    before: bool = False


@dataclass(frozen=True)
class ViewOutput:
    """What a chunk did to one view."""

    events: pl.DataFrame  # the folded events: _partition, _offset, _time, entity keys, features right after the event
    late: pl.DataFrame  # events that came too late
    overflowed: pl.DataFrame  # events that an integer sum could not take
    reads: dict[Read, pl.DataFrame]  # features at each event that was read at, with _step and _effective


@dataclass
class _Work:
    """One view's part of a chunk: events to fold and events to read at."""

    view: View
    folds: pl.DataFrame
    reads: list[tuple[Read, pl.DataFrame]]
    fold_entities: NDArray[np.int64]
    read_entities: list[NDArray[np.int64]] = field(default_factory=list)
    erasures: list[tuple[int, Erasure]] = field(default_factory=list)  # with their steps


class Flow:
    """Runs views over chunks. `partitions` gives the number of partitions of every topic."""

    def __init__(self, views: Sequence[View], reads: Sequence[Read], partitions: Mapping[str, int]) -> None:
        self.views = {view.key: view for view in [*views, *(read.view for read in reads)]}
        self.states = {key: ViewState(compiled(view), partitions[view.source.name]) for key, view in self.views.items()}
        self._reads = {key: [read for read in reads if read.view.key == key] for key in self.views}
        self._next: dict[tuple[str, Partition], int] = {}
        self._work: dict[str, _Work] = {}
        self.touched = 0  # entities of all views that the prepared chunk has to do with
        # By frame (kept, so that its id stays its own) and key columns.
        self._codes: dict[tuple[int, tuple[str, ...]], tuple[pl.DataFrame, NDArray[np.int64], list[bytes]]] = {}

    def begin(self, view_key: str, partition: Partition, position: tuple[int, int] | None) -> None:
        """Take a partition on for a view, at its stored (next offset, clock); None when nothing is stored.

        Raises StateError where a backfill has not finished writing the states.
        """
        if position is not None and position[0] == UNFINISHED:
            raise StateError(
                f"view {view_key} on {partition[0]}:{partition[1]}: a backfill was interrupted while it wrote its "
                "states; run it again, and start the stream then"
            )
        state = self.states[view_key]
        if position is None:
            state.assume_new(partition[1])
            self._next.pop((view_key, partition), None)
        else:
            self._next[view_key, partition] = position[0]
            state.set_clock(partition[1], position[1])

    def lookups(self, chunk: Chunk, read_from: Mapping[tuple[str, int], int]) -> dict[str, list[tuple[int, int]]]:
        """Prepare the chunk; returns by view the (entity, partition) pairs whose states must be loaded first.

        `read_from` gives the offset of each (topic, partition) from which reads are wanted.
        """
        self._codes.clear()
        self._work = {key: self._work_of(view, chunk, read_from) for key, view in self.views.items()}
        self.touched, out = 0, {}
        for key, work in self._work.items():
            touched = np.unique(np.concatenate([work.fold_entities, *work.read_entities]))
            touched = touched[touched != NO_ENTITY]
            self.touched += len(touched)
            state = self.states[key]
            missing = state.missing(touched, range(state.partitions))
            if missing:
                out[key] = missing
        return out

    def run(self, chunk: Chunk, *, emit: bool = True) -> dict[str, ViewOutput]:
        """Fold and read the prepared chunk; by view what came of it."""
        outputs = {key: self._run_view(self.states[key], work, emit=emit) for key, work in self._work.items()}
        for key, view in self.views.items():
            for partition, (_, end) in chunk.spans.items():
                if partition[0] == view.source.name:
                    at = (key, partition)
                    self._next[at] = max(end, self._next.get(at, end))
        self._work = {}
        self._codes.clear()
        return outputs

    def changes(self) -> dict[str, list[Changes]]:
        """By view the states that were written to since the last call."""
        return {key: state.take_changes() for key, state in self.states.items()}

    def forget_oldest(self, budget: int) -> None:
        """Where all states take more than `budget` bytes, keep of each the half of its entities that was used last.

        All changes must have been taken, and be stored before anything is looked up.
        """
        sizes = {key: state.nbytes for key, state in self.states.items()}
        if sum(sizes.values()) > budget:
            for key, state in self.states.items():
                if sizes[key] * len(sizes) > budget // 2:
                    state.keep_newest(len(state.names) // 2)

    def next_offset(self, view_key: str, partition: Partition) -> int | None:
        """First offset of the partition that the view has not folded."""
        return self._next.get((view_key, partition))

    def _work_of(self, view: View, chunk: Chunk, read_from: Mapping[Partition, int]) -> _Work:
        topic = view.source.name
        work = _Work(view, pl.DataFrame(), [], np.zeros(0, np.int64))
        state = self.states[view.key]
        if topic in chunk.frames:
            folded = {p: self._next.get((view.key, (topic, p)), 0) for p in range(state.partitions)}
            work.folds = from_offsets(chunk.frames[topic], folded)
            work.fold_entities = self._numbers(state, work.folds, view.entity.keys)
        for read in self._reads[view.key]:
            if read.topic in chunk.frames:
                wanted = {p: offset for (name, p), offset in read_from.items() if name == read.topic}
                frame = from_offsets(chunk.frames[read.topic], wanted)
                work.reads.append((read, frame))
                work.read_entities.append(self._numbers(state, frame, read.keys))
        for step, erasure in chunk.erasures:
            done = self._next.get((view.key, (topic, erasure.partition)), 0)
            if (erasure.topic, erasure.entity) == (topic, view.entity.name) and erasure.offset >= done:
                work.erasures.append((step, erasure))
        return work

    def _numbers(self, state: ViewState, frame: pl.DataFrame, keys: tuple[str, ...]) -> NDArray[np.int64]:
        at = (id(frame), keys)  # views often share a topic and an entity
        if at not in self._codes:
            self._codes[at] = (frame, *entity_codes(frame, keys))
        _, codes, encoded = self._codes[at]
        numbers = state.number(encoded)
        return np.where(codes < 0, NO_ENTITY, numbers[codes] if len(numbers) else NO_ENTITY)

    @staticmethod
    def _run_view(state: ViewState, work: _Work, *, emit: bool) -> ViewOutput:
        parts = [
            _Part(frame, entities, read) for (read, frame), entities in zip(work.reads, work.read_entities, strict=True)
        ]
        parts.sort(key=lambda part: not part.before)
        if len(work.folds):
            parts.insert(sum(part.before for part in parts), _Part(work.folds, work.fold_entities, None))
        steps, places, order = _steps(parts)
        inputs = lane_inputs(state.plan, work.folds, state.texts) if len(work.folds) else _no_inputs(state)
        erased = [(int(np.searchsorted(order, step)), erasure) for step, erasure in work.erasures]
        results = _run(state, steps, inputs, erased, emit=emit)
        reads, fold_rows = {}, np.zeros(0, np.int64)
        for part, rows in zip(parts, places, strict=True):
            if part.read is None:
                fold_rows = rows
            else:
                reads[part.read] = _read_frame(state, results, rows, part.frame)
        return _view_output(state, work, results, fold_rows, reads, emit=emit)


@dataclass(frozen=True)
class _Part:
    """Rows of one frame that become steps: events to fold (read None), or events to read at."""

    frame: pl.DataFrame
    entities: NDArray[np.int64]
    read: Read | None

    @property
    def before(self) -> bool:
        return self.read is not None and self.read.before


def from_offsets(frame: pl.DataFrame, offsets: Mapping[int, int]) -> pl.DataFrame:
    """Rows at or after each partition's offset (partitions that are not named are left out)."""
    partitions, row_offsets = frame["_partition"].to_numpy(), frame["_offset"].to_numpy()
    keep = np.zeros(len(frame), np.bool_)
    for partition, offset in offsets.items():
        keep |= (partitions == partition) & (row_offsets >= offset)
    return frame if keep.all() else frame.filter(pl.Series(keep))


def _run(
    state: ViewState, steps: Steps, inputs: Inputs, erasures: Sequence[tuple[int, Erasure]], *, emit: bool
) -> Results:
    """Do the steps in order; each erasure, in between, before the step that is named.

    Entities do not know of each other: an erasure divides the steps only where its own has some before and after.
    """
    if not erasures:
        return state.run(steps, inputs, emit=emit)
    count = len(steps.entity)
    entities = state.number([erasure.key for _, erasure in erasures])
    by_entity = np.argsort(steps.entity, kind="stable")
    firsts, ends = (np.searchsorted(steps.entity[by_entity], entities, side) for side in ("left", "right"))
    cuts: dict[int, list[tuple[int, int]]] = {0: [], count: []}
    for (at, erasure), entity, first, end in zip(erasures, entities.tolist(), firsts, ends, strict=True):
        own = by_entity[first:end]
        before = int(np.searchsorted(own, at))
        cut = 0 if not before else count if before == len(own) else at
        cuts.setdefault(cut, []).append((entity, erasure.partition))
    found, begin = [], 0
    for end in sorted(cuts):
        if end > begin or end == count:
            found.append(state.run(Steps(*(column[begin:end] for column in steps)), inputs, emit=emit))
        for erased in cuts[end]:
            state.erase(*erased)
        begin = end
    return joined(state.plan, found)


def _steps(parts: Sequence[_Part]) -> tuple[Steps, list[NDArray[np.int64]], NDArray[np.int64]]:
    """The steps in merged order, where the rows of each part went, and places in the whole chunk.

    At one event, parts keep their order.
    """
    nothing = np.zeros(0, np.int64)
    columns = (
        [np.arange(len(part.frame)) if part.read is None else np.full(len(part.frame), -1) for part in parts],
        [part.entities for part in parts],
        [part.frame["_partition"].to_numpy().astype(np.int64) for part in parts],
        [part.frame["_time"].to_numpy() for part in parts],
        [part.frame["_offset"].to_numpy() for part in parts],
    )
    places_in_chunk = np.concatenate([nothing, *(part.frame["_step"].to_numpy() for part in parts)])
    order = np.argsort(places_in_chunk, kind="stable")
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    steps = Steps(*(np.ascontiguousarray(np.concatenate([nothing, *column])[order]) for column in columns))
    rows = np.split(places, np.cumsum([len(part.frame) for part in parts])[:-1]) if parts else []
    return steps, rows, places_in_chunk[order]


def _no_inputs(state: ViewState) -> Inputs:
    words = np.zeros((len(state.plan.lanes), 0), np.int64)
    return Inputs(words, words.view(np.float64), np.zeros(words.shape, np.bool_))


def _read_frame(state: ViewState, results: Results, rows: NDArray[np.int64], frame: pl.DataFrame) -> pl.DataFrame:
    features = feature_frame(state.plan, results, rows, state.texts)
    return features.with_columns(frame["_step"], pl.Series("_effective", results.effective[rows]))


def _view_output(
    state: ViewState,
    work: _Work,
    results: Results,
    rows: NDArray[np.int64],
    reads: dict[Read, pl.DataFrame],
    *,
    emit: bool,
) -> ViewOutput:
    status = results.status[rows]
    nothing = pl.DataFrame()
    if not len(rows):
        return ViewOutput(nothing, nothing, nothing, reads)
    events = nothing
    if emit:
        folded = status == kernel.FOLDED
        keys = [key for key in work.view.entity.keys if key not in state.plan.view.outputs]
        head = work.folds.select("_partition", "_offset", "_time", *keys).filter(pl.Series(folded))
        events = head.hstack(feature_frame(state.plan, results, rows[folded], state.texts))
    late, overflowed = (_where(work.folds, status == each) for each in (kernel.LATE, kernel.OVERFLOW))
    return ViewOutput(events, late, overflowed, reads)


def _where(frame: pl.DataFrame, wanted: NDArray[np.bool_]) -> pl.DataFrame:
    return frame.filter(pl.Series(wanted)) if wanted.any() else frame[:0]  # as is usual, and takes no time
