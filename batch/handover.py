"""From history to the stream: states and positions, written as a worker would have written them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from batch.backfill import fresh_flow
from batch.events import chunks, logs_of
from featurestore.definitions import View
from featurestore.errors import StateError
from featurestore.flow import Flow
from featurestore.stores import Commit, OnlineStore, Position
from featurestore.times import ENDLESS

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
    stored = [None if position is None else position.next for position in claimed]
    flow = fresh_flow(view, partitions)
    states = done = 0
    for chunk in chunks(logs_of(topic, events), {topic: 0}, EVENTS):
        flow.lookups(chunk, {})
        flow.run(chunk, emit=False)
        commits = _commits(view, flow, chunk.spans, stored, owner, now)
        await store.commit(commits)
        states += sum(len(commit.entities) for commit in commits)
        done += chunk.events
        progress(done)
    tails = {(topic, partition): (0, end) for partition, end in ends.items()}
    await store.commit(_commits(view, flow, tails, stored, owner, now))
    return HandedOver(states, {partition: at for partition, at in enumerate(stored) if at is not None})


def _refuse_if_ahead(view: View, ends: Mapping[int, int], stored: Sequence[Position | None]) -> None:
    for partition, at in enumerate(stored):
        if at is not None and at.next > ends.get(partition, 0):
            raise StateError(
                f"{view.name} on {view.source.name}:{partition}: the stream has come to offset {at.next}, these events "
                f"only to {ends.get(partition, 0)}: there is nothing to hand over; nothing was written"
            )


def _commits(
    view: View,
    flow: Flow,
    spans: Mapping[tuple[str, int], tuple[int, int]],
    stored: list[int | None],
    owner: str,
    now: int,
) -> list[Commit]:
    """What brings the store to the ends of the spans, from where `stored` says it is; `stored` moves on."""
    changes = {change.partition: change for change in flow.changes()[view.key]}
    commits = []
    for (topic, partition), (start, end) in sorted(spans.items()):
        at = stored[partition]
        if end > (start if at is None else at):
            change, clock = changes.get(partition), flow.states[view.key].clock(partition)
            entities, blobs = (change.entities, change.blobs) if change is not None else ([], [])
            begin, ttl = start if at is None else at, _ttl(view, clock, now)
            commits.append(Commit(view.key, topic, partition, owner, begin, end, clock or 0, entities, blobs, ttl))
            stored[partition] = end
    return commits


def _ttl(view: View, clock: int | None, now: int) -> int | None:
    """How long a state must be kept (ms): while a window can see it, and as long again as history lies back."""
    longest = max(feature.window.length for feature in view.stored if feature.window is not None)
    if longest >= ENDLESS:
        return None
    return longest + view.source.lateness_ms + (max(0, now - clock) if clock is not None else 0)
