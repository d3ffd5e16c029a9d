"""What a turn of the worker computes: features and predictions of a chunk, and what must be stored of them.

No I/O happens here. A `Turn` says what to send and what to commit; the worker does it in the right order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from featurestore.align import Chunk, Partition
from featurestore.definitions import View
from featurestore.engine import Changes
from featurestore.errors import StateError
from featurestore.flow import Flow, Read, ViewOutput, from_offsets
from featurestore.joined import Joined
from featurestore.pairing import Place
from featurestore.partitioners import check_place
from featurestore.stores import Commit, Position, Request, time_to_live
from streams.joins import Ends, Join, Made, made_key, waiting_key
from streams.messages import Message, feature_messages, late, prediction_messages, records_of, rejected
from streams.processor import Processor
from streams.stats import Stats

LOOKED_AT = 10_000
"""So many lookups a worker makes on all partitions, to make sure that states lie where readers will find them."""


@dataclass(frozen=True)
class Turn:
    """The outcome of a chunk: messages to send, then checkpoints to write, then states to commit, in this order."""

    chunk: Chunk
    messages: Sequence[Message]
    checkpoints: Sequence[Callable[[], None]]
    commits: Sequence[Commit]


class Work:
    """Views, processors and joins, and how far each has come in each partition. `owner` is the worker's token.

    Where states take more than `memory` bytes, those used longest ago are forgotten: the online store has them. With
    `publish`, online writes are messages too.
    """

    def __init__(
        self,
        views: Sequence[View],
        processors: Sequence[Processor],
        partitions: Mapping[str, int],
        owner: str,
        stats: Stats,
        memory: int,
        joins: Sequence[Join] = (),
        *,
        publish: bool,
    ) -> None:
        reads = [read for processor in processors for read in processor.reads]
        self._flow = Flow(views, reads, partitions)
        self._processors = processors
        self._owner = owner
        self._stats = stats
        self._memory, self._publish = memory, publish
        self._joins = joins
        self._looked_at = 0  # lookups so far
        self._done: dict[tuple[str, Partition], int] = {}  # by processor or join: position, as it is stored
        self._owned: set[Partition] = set()

    def keys(self, partition: Partition) -> list[str]:
        """The identities under which the online store keeps positions of a source partition."""
        views = [key for key, view in self._flow.views.items() if view.source.name == partition[0]]
        joins = self._joins_of(partition[0])
        waiting = [waiting_key(join.source) for join in joins]
        predicted = [_key(processor) for processor in self._takers(partition[0])]
        return [*views, *predicted, *(made_key(join.source) for join in joins), *waiting]

    def begin(self, partition: Partition, positions: Mapping[str, Position | None]) -> Position | None:
        """Go on with a partition where the online store says, by identity.

        Returns the first of the positions, where the partition must be taken up, with the clock that it had there; None
        is its beginning. Raises StateError where a processor has forgotten what it had done already.
        """
        self._owned.add(partition)
        for key in self._flow.views.keys() & positions.keys():
            position = positions[key]
            self._flow.begin(key, partition, None if position is None else (position.next, position.clock))
        for processor in self._takers(partition[0]):
            if (position := positions[_key(processor)]) is not None:
                self._done[_key(processor), partition] = position.next
                _check_memory(processor, partition, position)
        positions = dict(positions)
        for join in self._joins_of(partition[0]):
            if (made := positions[made_key(join.source)]) is not None:
                self._done[made_key(join.source), partition] = made.next
            self._wait(join, partition, positions.pop(waiting_key(join.source)))
        found = [position for position in positions.values() if position is not None]
        return min(found, key=lambda at: at.next) if len(found) == len(positions) else None

    def _wait(self, join: Join, partition: Partition, stored: Position | None) -> None:
        if stored is not None:
            self._done[waiting_key(join.source), partition] = stored.next
            join.wait(partition, Place(stored.next, stored.clock))

    def begin_join(self, source: Joined, partition: int, sent: Ends | None) -> None:
        """Go on with a join whose topic says that pairs were `sent`, once both logs have begun."""
        left, right = (self._done.get((made_key(source), (side.name, partition)), 0) for side in source.sides)
        next(join for join in self._joins if join.source is source).begin(partition, (left, right), sent)

    def reread(self, partition: Partition, begin: Position | None) -> Place:
        """From where a partition is read that begins there: what waits of it to be joined may lie before."""
        begins = Place(0, None) if begin is None else Place(begin.next, begin.clock)
        waiting = [join.begins(partition) for join in self._joins_of(partition[0])]
        return min([begins, *waiting], key=lambda place: place.offset)

    def _joins_of(self, topic: str) -> list[Join]:
        return [join for join in self._joins if topic in join.topics]

    def _takers(self, topic: str) -> list[Processor]:
        return [x for x in self._processors if topic in {source.name for source in x.sources}]

    def next_offset(self, view_key: str, partition: Partition) -> int | None:
        """First offset of the partition that the view has not folded; None before it has folded any."""
        return self._flow.next_offset(view_key, partition)

    def lookups(
        self, chunk: Chunk
    ) -> tuple[list[Request], Callable[[Sequence[Sequence[Sequence[bytes | None]]]], None]]:
        """Prepare the chunk: what must be read from the online store first, and where its answers go."""
        wanted: dict[Partition, int] = {}
        for processor in self._processors:
            for place, at in self._positions(processor, chunk).items():
                wanted[place] = min(at, wanted.get(place, at))
        for view in self._flow.views.values():
            for p in range(self._flow.states[view.key].partitions):
                if (view.source.name, p) not in self._owned:
                    self._flow.states[view.key].stale(p)  # another worker writes there
        with self._stats.timed("prepare"):
            narrow = self._looked_at >= LOOKED_AT
            pairs = self._flow.lookups(chunk, wanted, emit=self._publish, narrow=narrow)
        self._stats.looked_up(self._flow.touched, sum(len({e for e, _ in missing}) for missing in pairs.values()))
        requests, places = [], []
        for key, missing in pairs.items():
            state, topic = self._flow.states[key], self._flow.views[key].source.name
            for partition in sorted({p for _, p in missing}):
                entities = [e for e, p in missing if p == partition]
                requests.append(Request(key, topic, [partition], state.names.taken(np.array(entities, np.int64))))
                places.append((state, partition, entities))

        def load(answers: Sequence[Sequence[Sequence[bytes | None]]]) -> None:
            for (state, partition, entities), blobs in zip(places, answers, strict=True):
                for entity, (blob,) in zip(entities, blobs, strict=True):
                    state.load(entity, partition, blob)
                    self._looked_at += 1
                    if blob is not None and self._looked_at <= LOOKED_AT:
                        check_place(state.plan.view, state.names[entity], partition, state.partitions)

        return requests, load

    def turn(self, chunk: Chunk, now: int) -> Turn:
        """Fold, read and predict over a prepared chunk."""
        views = {
            (key, p): self._flow.next_offset(key, p)
            for key, view in self._flow.views.items()
            for p in chunk.spans
            if p[0] == view.source.name
        }
        with self._stats.timed("fold"):
            outputs = self._flow.run(chunk, emit=self._publish)
        with self._stats.timed("predict"):
            reads = {read: frame for output in outputs.values() for read, frame in output.reads.items()}
            predictions = [(x, self._process(x, chunk, reads)) for x in self._processors]
            checkpoints = [x.checkpoint() for x in self._processors]
        with self._stats.timed("join"):
            made = [join.take(chunk) for join in self._joins]
        spans = {at: _span(chunk, at[1], before) for at, before in views.items()}
        with self._stats.timed("encode"):
            # In this order: a view that ran ahead of a prediction would show it the future.
            new = {at for at, before in views.items() if before is None}
            commits = [*self._prediction_commits(chunk), *self._join_commits(made)]
            commits += self._view_commits(spans, new, now)
            self._flow.forget_oldest(self._memory)
        with self._stats.timed("messages"):
            messages = list(self._messages(outputs, predictions, spans))
            messages += self._joined_messages(made)
        return Turn(chunk, messages, checkpoints, commits)

    def _process(self, processor: Processor, chunk: Chunk, reads: Mapping[Read, pl.DataFrame]) -> pl.DataFrame:
        """Predictions for what of the chunk is new to the processor."""
        rest = _rest(chunk, self._positions(processor, chunk))
        if rest is not chunk and processor.on.name in rest.frames:
            steps = rest.frames[processor.on.name]["_step"].implode()
            reads = {read: reads[read].filter(pl.col("_step").is_in(steps)) for read in processor.reads}
        return processor.process(rest, reads)

    def _positions(self, processor: Processor, chunk: Chunk) -> dict[Partition, int]:
        """How far the processor has come in its partitions of the chunk."""
        topics, own = {source.name for source in processor.sources}, processor.positions() or {}
        mine = [p for p in chunk.spans if p[0] in topics]
        return {p: own.get(p, self._done.get((_key(processor), p), 0)) for p in mine}

    def _view_commits(
        self, spans: Mapping[tuple[str, Partition], tuple[int, int]], new: Collection[tuple[str, Partition]], now: int
    ) -> Iterator[Commit]:
        changes = {(key, c.partition): c for key, changed in self._flow.changes().items() for c in changed}
        for (key, partition), (start, end) in spans.items():
            if start < end:
                change = changes.get((key, partition[1]))
                change = change or Changes(partition[1], [], [])
                clock = self._flow.states[key].clock(partition[1])
                ttl = time_to_live(self._flow.views[key].keep, clock, now)
                first = (key, partition) in new
                made = Commit(key, *partition, self._owner, start, end, clock or 0, change.entities, change.blobs)
                yield replace(made, ttl=ttl, first=first, erased=change.erased)

    def _prediction_commits(self, chunk: Chunk) -> Iterator[Commit]:
        for partition in chunk.spans:
            for key in map(_key, self._takers(partition[0])):
                before = self._done.get((key, partition))
                start, end = _span(chunk, partition, before)
                if start < end:
                    self._done[key, partition] = end
                    clock = chunk.clocks.get(partition, 0)
                    yield Commit(key, *partition, self._owner, start, end, clock, [], [], first=before is None)

    def _join_commits(self, made: Sequence[Made]) -> Iterator[Commit]:
        """Where joins stand, as far as that has moved."""
        for join, each in zip(self._joins, made, strict=True):
            for log, reached, waiting in each.stands:
                for key, place in ((made_key(join.source), reached), (waiting_key(join.source), waiting)):
                    before = self._done.get((key, log))
                    if place.offset > (before or 0):
                        self._done[key, log] = place.offset
                        first, clock = before is None, place.clock or 0
                        yield Commit(key, *log, self._owner, before or 0, place.offset, clock, [], [], first=first)

    def _joined_messages(self, made: Sequence[Made]) -> Iterator[Message]:
        for each in made:
            self._stats.pairs += each.pairs
            self._stats.late += each.late
            self._stats.unpaired += each.dropped
            yield from each.messages

    def _messages(
        self,
        outputs: Mapping[str, ViewOutput],
        predictions: Sequence[tuple[Processor, pl.DataFrame]],
        spans: Mapping[tuple[str, Partition], tuple[int, int]],
    ) -> Iterator[Message]:
        for key, output in outputs.items():
            view = self._flow.views[key]
            yield from self._refusals(view, output)
            if self._publish:
                covered = {p: span for (k, p), span in spans.items() if k == key and span[0] < span[1]}
                yield from feature_messages(view, output.events, covered)
        for processor, frame in predictions:
            if len(frame):
                missing = frame["probability"].null_count()
                self._stats.predictions += len(frame) - missing
                self._stats.unanswered[processor.name] += missing
                yield from prediction_messages(processor.name, frame)

    def _refusals(self, view: View, output: ViewOutput) -> Iterator[Message]:
        for record in records_of(view.source, output.late):
            self._stats.late += 1
            yield late(record, f"older than every window of {view.key}")
        for record in records_of(view.source, output.overflowed):
            self._stats.rejected["overflow"] += 1
            yield rejected(record, "overflow", f"an integer sum of {view.key} would overflow")


def _key(processor: Processor) -> str:
    """The identity under which the online store keeps a processor's positions."""
    return f"predict.{processor.name}@1"


def _check_memory(processor: Processor, partition: Partition, stored: Position) -> None:
    own = processor.positions()
    if own is not None and (at := own.get(partition, 0)) < stored.next:
        raise StateError(
            f"service {processor.name!r} stands at offset {at} of {partition[0]}[{partition[1]}], the online store at "
            f"{stored.next}: its snapshot is missing or an older one. Restore it, or empty the online store to replay"
        )


def _rest(chunk: Chunk, positions: Mapping[Partition, int]) -> Chunk:
    """What of the chunk lies at or after these positions."""
    starts = {at: max(start, positions.get(at, start)) for at, (start, _) in chunk.spans.items()}
    if all(starts[at] == start for at, (start, _) in chunk.spans.items()):
        return chunk
    frames = {}
    for topic, frame in chunk.frames.items():
        rest = from_offsets(frame, {p: start for (name, p), start in starts.items() if name == topic})
        if len(rest):
            frames[topic] = rest
    spans = {at: (starts[at], end) for at, (_, end) in chunk.spans.items() if starts[at] < end}
    return Chunk(frames, spans, chunk.clocks, chunk.erasures)


def _span(chunk: Chunk, partition: Partition, before: int | None) -> tuple[int, int]:
    """What of the chunk's span is new to one that has come as far as `before`."""
    start, end = chunk.spans[partition]
    return (start if before is None else max(start, before)), end
