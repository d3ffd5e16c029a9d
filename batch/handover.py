"""From history to the stream: states and positions, written as a worker would have written them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from batch.backfill import fresh_flow
from batch.events import chunks, logs_of
from featurestore.definitions import View
from featurestore.engine import Changes
from featurestore.errors import StateError
from featurestore.flow import Flow
from featurestore.stores import Commit, OnlineStore, Position, time_to_live

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
    progress: Callable[[int], None] = lambda _: None,
) -> HandedOver:
    """Bring the view's states in the store to the offsets `ends` (by partition, the first not covered by `events`).

    `events` are the log from its beginning. `owner` is a new random token: a worker that has the view's partitions is
    fenced. `now` is wall-clock time in ms; `progress` is told how many events have been done. What a run that was
    interrupted has stored is not stored again. Raises StateError, with nothing written, when the stream has gone
    further than `ends`.
    """
    topic = view.source.name
    partitions = max(ends, default=0) + 1
    _refuse_if_ahead(view, ends, await store.positions(view.key, topic, partitions))
    claimed = [await store.claim(view.key, topic, partition, owner) for partition in range(partitions)]
    _refuse_if_ahead(view, ends, claimed)
    flow = fresh_flow(view, partitions)
    writer = _Writer(view, flow, owner, now, [None if position is None else position.next for position in claimed])
    states = done = 0
    for chunk in chunks(logs_of(topic, events), {topic: 0}, EVENTS):
        flow.lookups(chunk, {})
        flow.run(chunk, emit=False)
        commits = writer.commits({partition: span for (_, partition), span in chunk.spans.items()})
        await store.commit(commits)
        states += sum(len(commit.entities) for commit in commits)
        done += chunk.events
        progress(done)
    await store.commit(writer.commits({partition: (0, end) for partition, end in ends.items()}))
    return HandedOver(states, {partition: at for partition, at in enumerate(writer.stored) if at is not None})


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
