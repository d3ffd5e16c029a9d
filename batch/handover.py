"""From history to the stream: states and positions, written as a worker would have written them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import polars as pl

from batch.events import chunks, logs_of
from featurestore.definitions import View
from featurestore.engine import Changes
from featurestore.errors import StateError
from featurestore.flow import Flow, from_offsets
from featurestore.forgotten import Forgotten, erased_from
from featurestore.stores import UNFINISHED, Commit, OnlineStore, Position, Request, time_to_live

#: Events between two commits: their states must fit into one call of a script.
EVENTS = 50_000


@dataclass(frozen=True)
class HandedOver:
    """What was written: states, and by partition the offset from which the stream goes on."""

    states: int
    next: dict[int, int]


async def hand_over(
    view: View,
    events: pl.DataFrame,
    ends: Mapping[int, int],
    store: OnlineStore,
    *,
    owner: str,
    now: int,
    forgotten: Mapping[int, Sequence[Forgotten]] = MappingProxyType({}),
    progress: Callable[[int], None] = lambda _: None,
) -> HandedOver:
    """Bring the view's states in the store to the offsets `ends` (by partition, the first not covered by `events`).

    `events` are the log from its beginning, or at least from where the stored states stand, from which it goes on: so
    after an interrupted run too. `owner` is a new random token: a worker that has the view's partitions is fenced.
    `now` is wall-clock time in ms; `forgotten` are the erased entities by partition, whose events lack their keys;
    `progress` is told how many events have been done. Raises StateError, with nothing written, when the stream has gone
    further than `ends`.
    """
    topic = view.source.name
    partitions = max(ends, default=0) + 1
    _refuse_if_ahead(view, ends, await store.positions(view.key, topic, partitions))
    claimed = [await claim(view, partition, store, owner) for partition in range(partitions)]
    _refuse_if_ahead(view, ends, claimed)
    flow = Flow([view], [], {topic: partitions})
    for partition, position in enumerate(claimed):
        if position is not None:
            gone = erased_from(view, forgotten.get(partition, ()), position.next)
            await store.erase(view.key, topic, partition, gone)
        flow.begin(view.key, (topic, partition), None if position is None else (position.next, position.clock))
    writer = _Writer(view, flow, owner, now, [None if position is None else position.next for position in claimed])
    left = from_offsets(events, {partition: at or 0 for partition, at in enumerate(writer.stored)})
    states, done = 0, len(events) - len(left)
    for chunk in chunks(logs_of(topic, left), {topic: 0}, EVENTS):
        await _load(view, flow, flow.lookups(chunk, {}).get(view.key, []), store)
        flow.run(chunk, emit=False)
        commits = writer.commits({partition: span for (_, partition), span in chunk.spans.items()})
        await store.commit(commits)
        states += sum(len(commit.entities) for commit in commits)
        done += chunk.events
        progress(done)
    await store.commit(writer.commits({partition: (0, end) for partition, end in ends.items()}))
    return HandedOver(states, {partition: at for partition, at in enumerate(writer.stored) if at is not None})


async def claim(view: View, partition: int, store: OnlineStore, owner: str) -> Position | None:
    """Become the view's only writer on a partition; states of which a backfill has not written all are dropped."""
    position = await store.claim(view.key, view.source.name, partition, owner)
    if position is None or position.next != UNFINISHED:
        return position
    await store.drop(view.key, view.source.name, partition)
    return await store.claim(view.key, view.source.name, partition, owner)


async def _load(view: View, flow: Flow, missing: Sequence[tuple[int, int]], store: OnlineStore) -> None:
    """Load the stored states of (entity, partition) pairs."""
    state = flow.states[view.key]
    for partition in sorted({partition for _, partition in missing}):
        entities = [entity for entity, its in missing if its == partition]
        names = [state.names[entity] for entity in entities]
        (blobs,) = await store.read_many([Request(view.key, view.source.name, [partition], names)])
        for entity, (blob,) in zip(entities, blobs, strict=True):
            state.load(entity, partition, blob)


def _refuse_if_ahead(view: View, ends: Mapping[int, int], stored: Sequence[Position | None]) -> None:
    for partition, at in enumerate(stored):
        end = ends.get(partition, 0)
        if at is not None and at.next > end:
            raise StateError(
                f"{view.name} on {view.source.name}:{partition}: the stream has come to offset {at.next}, these events "
                f"only to {end}: there is nothing to hand over; nothing was written"
            )


@dataclass
class _Writer:
    """Turns what a flow has changed into commits; `stored` is the next offset of each partition in the store."""

    view: View
    flow: Flow
    owner: str
    now: int
    stored: list[int | None]

    def commits(self, spans: Mapping[int, tuple[int, int]]) -> list[Commit]:
        """What brings the store to the ends of the spans, by partition."""
        changes = {change.partition: change for change in self.flow.changes()[self.view.key]}
        nothing = Changes(0, [], [])
        return [
            self._commit(changes.get(partition, nothing), partition, start, end)
            for partition, (start, end) in sorted(spans.items())
            if end > (self.stored[partition] or start)
        ]

    def _commit(self, change: Changes, partition: int, start: int, end: int) -> Commit:
        at, clock = self.stored[partition], self.flow.states[self.view.key].clock(partition)
        self.stored[partition] = end
        return Commit(
            self.view.key,
            self.view.source.name,
            partition,
            self.owner,
            start if at is None else at,
            end,
            clock or 0,
            change.entities,
            change.blobs,
            time_to_live(self.view.keep, clock, self.now),
            first=at is None,
        )
