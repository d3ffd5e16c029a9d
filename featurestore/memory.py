"""An online store in memory: for tests, notebooks and replays that nobody else reads."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from featurestore.keys import key_prefix
from featurestore.stores import FORMAT, Commit, Position, Request, check_commits, refusal, wrong_format

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from featurestore.errors import StateError


@dataclass(slots=True)
class _Shelf:
    """What is stored of one view on one partition; `states` are (state, expiry in ms or None) by encoded entity."""

    format: str = str(FORMAT)
    owner: str = ""
    position: Position | None = None
    states: dict[bytes, tuple[bytes, int | None]] = field(default_factory=dict)


class MemoryStore:
    """`OnlineStore` in this process's memory. `now` gives the time, in ms, that a commit's `ttl` counts from."""

    def __init__(self, now: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._now = now
        self._shelves: dict[bytes, _Shelf] = {}

    async def claim(self, view_key: str, topic: str, partition: int, owner: str) -> Position | None:
        """Make `owner` the only one that may commit and return the stored position (see `OnlineStore`)."""
        shelf = self._shelves.setdefault(key_prefix(topic, partition, view_key), _Shelf())
        if shelf.format != str(FORMAT):
            raise wrong_format(view_key, topic, partition, shelf.format)
        shelf.owner = owner
        return shelf.position

    async def commit(self, commits: Sequence[Commit]) -> None:
        """Store every commit that is not refused, then raise the first refusal (see `OnlineStore`)."""
        check_commits(commits)
        refused = [error for commit in commits if (error := self._commit(commit))]
        if refused:
            raise refused[0]

    async def read(
        self, view_key: str, topic: str, partitions: int, entities: Sequence[bytes]
    ) -> list[list[bytes | None]]:
        """Read states: `[entity][partition]` (see `OnlineStore`)."""
        [answer] = await self.read_many([Request(view_key, topic, range(partitions), entities)])
        return answer

    async def read_many(self, requests: Sequence[Request]) -> list[list[list[bytes | None]]]:
        """Read many views: `[request][entity][partition]` (see `OnlineStore`)."""
        now = self._now()
        answers = []
        for request in requests:
            shelves = [self._shelf(request.view_key, request.topic, partition) for partition in request.partitions]
            answers.append(
                [[_alive(shelf.states.get(entity), now) for shelf in shelves] for entity in request.entities]
            )
        return answers

    async def scan(self, view_key: str, topic: str, partition: int) -> AsyncIterator[tuple[bytes, bytes]]:
        """Yield every encoded entity once, with its state (see `OnlineStore`)."""
        for entity, stored in list(self._shelf(view_key, topic, partition).states.items()):
            blob = _alive(stored, self._now())
            if blob is not None:
                yield entity, blob

    async def positions(self, view_key: str, topic: str, partitions: int) -> list[Position | None]:
        """Return the position on every partition (see `OnlineStore`)."""
        shelves = [self._shelf(view_key, topic, partition) for partition in range(partitions)]
        for partition, shelf in enumerate(shelves):
            if shelf.format != str(FORMAT):
                raise wrong_format(view_key, topic, partition, shelf.format)
        return [shelf.position for shelf in shelves]

    async def erase(self, view_key: str, topic: str, partition: int, entities: Sequence[bytes]) -> int:
        """Delete states, whoever owns them (see `OnlineStore`)."""
        states = self._shelf(view_key, topic, partition).states
        return sum(states.pop(entity, None) is not None for entity in entities)

    async def drop(self, view_key: str, topic: str, partition: int) -> None:
        """Delete every state and the position (see `OnlineStore`)."""
        self._shelves.pop(key_prefix(topic, partition, view_key), None)

    async def ping(self) -> None:
        """Return at once."""

    async def close(self) -> None:
        """Keep everything: the next reader of this object sees it."""

    def _shelf(self, view_key: str, topic: str, partition: int) -> _Shelf:
        return self._shelves.get(key_prefix(topic, partition, view_key)) or _Shelf()

    def _commit(self, commit: Commit) -> StateError | None:
        shelf = self._shelf(commit.view_key, commit.topic, commit.partition)
        if shelf.format != str(FORMAT):
            return refusal(commit, "FORMAT", shelf.format)
        if not shelf.owner or shelf.owner != commit.owner:
            return refusal(commit, "FENCED", shelf.owner)
        stored = shelf.position
        found = None if stored is None else stored.next
        if found != (None if commit.first else commit.start):
            return None if found == commit.next else refusal(commit, "GAP", "" if found is None else str(found))
        expiry = None if commit.ttl is None else self._now() + commit.ttl
        shelf.states.update(
            {entity: (blob, expiry) for entity, blob in zip(commit.entities, commit.blobs, strict=True)}
        )
        for entity in commit.erased:
            shelf.states.pop(entity, None)
        shelf.position = Position(commit.next, commit.clock)
        return None


def _alive(stored: tuple[bytes, int | None] | None, now: int) -> bytes | None:
    if stored is None:
        return None
    blob, expiry = stored
    return blob if expiry is None or now < expiry else None
