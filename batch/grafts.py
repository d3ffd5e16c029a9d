"""A changed view takes over what its older definition has in the store; only what is new is folded from history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import polars as pl

from batch.archive import below
from batch.events import columns_of
from batch.handover import claim
from batch.refolding import may_overflow, refolded
from featurestore.definitions import View
from featurestore.engine import words_of
from featurestore.errors import DefinitionError, FormatError, StateError
from featurestore.forgotten import Forgotten, erased_from
from featurestore.grafting import Graft, graft_of
from featurestore.stores import UNFINISHED, Commit, OnlineStore, Position, time_to_live

#: States in one commit.
STATES = 50_000


@dataclass(frozen=True)
class Kept:
    """What the older definition `of` gave: its features that went on, those folded anew, the states written.

    `since` is by partition the first offset of history, where that does not begin with the log.
    """

    of: str
    features: tuple[str, ...]
    anew: tuple[str, ...]
    states: int
    since: Mapping[int, int]


class Older(NamedTuple):
    """What a view may take over of an older definition, or why that is nothing; "" where none has states."""

    graft: Graft | None = None
    reason: str = ""

    @property
    def columns(self) -> list[str]:
        """The columns that the older definition reads."""
        return [] if self.graft is None else columns_of(self.graft.old.view)


async def older(view: View, specs: Iterable[Mapping[str, Any]], partitions: int, store: OnlineStore) -> Older:
    """What the newest of the definitions `specs` (it comes last) that has states in the store gives."""
    for spec in reversed(list(specs)):
        key = f"{spec['view']}@{spec['fingerprint']}"
        try:
            if key != view.key and any(await store.positions(key, spec["source"], partitions)):
                return Older(graft_of(spec, view))
        except (DefinitionError, FormatError) as error:
            return Older(reason=str(error))
    return Older()


async def take_over(
    graft: Graft,
    events: pl.DataFrame,
    ends: Mapping[int, int],
    store: OnlineStore,
    *,
    owner: str,
    now: int,
    forgotten: Mapping[int, Sequence[Forgotten]] = MappingProxyType({}),
) -> Kept | str:
    """Write the view's states as of where those of its older definition stand; or say why all is to be folded anew.

    `events`, with the columns that both definitions read, `ends` and `forgotten` are as for `hand_over`, which goes on
    from there.
    Partitions on which the view has states are left as they are, and old states everywhere: what was interrupted may
    be run again. Raises StateError, with nothing written to the partition, while a worker writes the old states; and
    where these are of no use, but the events do not begin with the log either.
    """
    old, view, partitions = graft.old.view, graft.new.view, max(ends, default=0) + 1
    there = await store.positions(view.key, view.source.name, partitions)
    stood = await store.positions(old.key, view.source.name, partitions)
    wanted = {
        partition: position
        for partition, (position, mine) in enumerate(zip(stood, there, strict=True))
        if position is not None and (mine is None or mine.next == UNFINISHED)
    }
    if not wanted:
        return "it has states of its own, which go on"
    since = _since(events, wanted)
    if reason := _why_not(graft, events, ends, wanted, whole=not since):
        return reason
    upto = {partition: position.next for partition, position in wanted.items()}
    folded = refolded(graft, below(events, upto), partitions, whole=not since)
    count = 0
    for partition, position in wanted.items():
        try:
            known = await _stored(old, partition, position, store)
            for entity in erased_from(view, forgotten.get(partition, ()), position.next):
                known.pop(entity, None)
            states = folded.states(graft, partition, known)
        except FormatError as error:
            if since:
                raise
            return str(error)
        await claim(view, partition, store, owner)
        await _write(view, partition, position, states, store, owner, now)
        count += len(states)
    anew = tuple(feature.name for feature in graft.anew)
    kept = tuple(feature.name for feature in view.stored if feature.name not in anew)
    return Kept(old.key, kept, anew, count, since)


def _since(events: pl.DataFrame, wanted: Mapping[int, Position]) -> dict[int, int]:
    """By partition the first offset of the events, where that is not the log's."""
    firsts = dict(events.group_by("_partition").agg(pl.col("_offset").min()).iter_rows())
    begins = {partition: firsts.get(partition, position.next) for partition, position in wanted.items()}
    return {partition: first for partition, first in begins.items() if first > 0}


def _why_not(
    graft: Graft, events: pl.DataFrame, ends: Mapping[int, int], wanted: Mapping[int, Position], *, whole: bool
) -> str:
    """Why the old states are of no use, in words; StateError where they are all there is of the log's beginning."""
    topic, name = graft.new.view.source.name, graft.old.view.key
    for partition, position in wanted.items():
        if (end := ends.get(partition, 0)) < position.next:
            reason = f"{name} stands at offset {position.next} of {topic}:{partition}, these events end before {end}"
            if whole:
                return reason
            raise StateError(
                f"{reason} and do not begin where the log does: let a worker of {name} archive the rest, then stop it "
                "and run this again; nothing was written"
            )
    # What an integer sum refuses depends on all that a view sums up. Nothing is known of sums before the history.
    if whole and any(may_overflow(plan, events) for plan in (graft.old, graft.new)):
        return f"integers of {topic} are so large that their sums may overflow"
    return ""


async def _stored(old: View, partition: int, position: Position, store: OnlineStore) -> dict[bytes, bytes]:
    """The old states of a partition, all as of its position."""
    topic = old.source.name
    states = {entity: blob async for entity, blob in store.scan(old.key, topic, partition)}
    (*_, now) = await store.positions(old.key, topic, partition + 1)
    # A state's third word is the offset of its last event.
    ahead = any((words_of(blob)[2:3] >= position.next).any() for blob in states.values())
    if now != position or ahead:
        raise StateError(
            f"{old.key} on {topic}:{partition}: a worker writes its states, or was stopped while it did: let it go on "
            "until it stops by itself or is told to, then run this again"
        )
    return states


async def _write(
    view: View,
    partition: int,
    position: Position,
    states: Mapping[bytes, bytes],
    store: OnlineStore,
    owner: str,
    now: int,
) -> None:
    """Commit all states of a partition, on which nothing is stored; the last commit says where they stand."""
    ttl, entities = time_to_live(view.keep, position.clock, now), list(states)
    for begin in range(0, max(len(entities), 1), STATES):
        some = entities[begin : begin + STATES]
        last = begin + STATES >= len(entities)
        commit = Commit(
            view.key,
            view.source.name,
            partition,
            owner,
            UNFINISHED,
            position.next if last else UNFINISHED,
            position.clock,
            some,
            [states[entity] for entity in some],
            ttl,
            first=begin == 0,
        )
        await store.commit([commit])
