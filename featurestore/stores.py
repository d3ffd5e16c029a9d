"""What an online store is: states and the offset they stand at, kept together.

`OnlineStore` is the contract, the rest its vocabulary. `online.RedisStore` and `memory.MemoryStore` fulfil it, and one
kit of tests holds both to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from featurestore.errors import FencedError, FormatError, GapError, StateError
from featurestore.times import ENDLESS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

FORMAT = 1
"""Version of what this module writes to Redis. Another one found there is refused, never overwritten."""

MAX_STATES = 500_000
"""Most states in one commit: Redis takes 2^20 arguments a command."""

DROPPING = "dropping"
"""The format of a position whose states are being deleted: a drop cut short is never taken for a whole state."""


UNFINISHED = -1
"""The position while a backfill writes more states than one commit takes: nobody may go on from them."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a view stands on a partition: `next`, the first offset not folded; `clock`, its newest event time in ms."""

    next: int
    clock: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The result of folding the offsets `start` up to, not including, `next` of one partition into one view.

    `entities` are encoded (`keys.encode_entity`), each once, with the state of each in `blobs`; those in `erased` have
    none any more. `ttl` is in ms; None keeps the states for ever. `first` says that nothing was stored before, so that
    `start` may be any offset.
    """

    view_key: str
    topic: str
    partition: int
    owner: str
    start: int
    next: int
    clock: int
    entities: Sequence[bytes]
    blobs: Sequence[bytes]
    ttl: int | None = None
    first: bool = False
    erased: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """The states to read: of every encoded entity, on each of `partitions`."""

    view_key: str
    topic: str
    partitions: Sequence[int]
    entities: Sequence[bytes]


class OnlineStore(Protocol):
    """What the stream and the server ask of a store. Any method may raise `UnavailableError`: it cannot be reached."""

    async def claim(self, view_key: str, topic: str, partition: int, owner: str) -> Position | None:
        """Make `owner`, a random token, the only one that may commit; return the stored position, if there is one.

        Raises `FormatError`, with nothing changed, when another version of the format is stored.
        """
        ...

    async def commit(self, commits: Sequence[Commit]) -> None:
        """Store states and position of each commit together, or nothing of it.

        Committing again what is stored already is done already: a retry after an unknown outcome is safe. At most one
        commit per view and partition in a call. Commits are independent: when one is refused, the others are stored,
        then the first refusal is raised.

        Raises `FencedError` when `owner` is not the owner, `GapError` when `start` is not the stored next offset (or,
        of a `first` commit, when there is one; of another, when there is none: the store has lost what came before),
        `FormatError` as `claim` does.
        """
        ...

    async def read(
        self, view_key: str, topic: str, partitions: int, entities: Sequence[bytes]
    ) -> list[list[bytes | None]]:
        """States of encoded entities on partitions 0 up to `partitions`: `[entity][partition]`, None: no state."""
        ...

    async def read_many(self, requests: Sequence[Request]) -> list[list[list[bytes | None]]]:
        """Answer many requests at once: `[request][entity][partition]`. Raises `StateError` for a foreign value."""
        ...

    def scan(self, view_key: str, topic: str, partition: int) -> AsyncIterator[tuple[bytes, bytes]]:
        """Every encoded entity of a view on a partition, once, with its state. Not a snapshot while a worker writes."""
        ...

    async def positions(self, view_key: str, topic: str, partitions: int) -> list[Position | None]:
        """Positions on partitions 0 up to `partitions`; raises `FormatError` as `claim` does."""
        ...

    async def erase(self, view_key: str, topic: str, partition: int, entities: Sequence[bytes]) -> int:
        """Delete states of a view that nobody folds any more; returns how many there were."""
        ...

    async def drop(self, view_key: str, topic: str, partition: int) -> None:
        """Delete every state and the position; its owner is fenced first. Cut short, it must be run again."""
        ...

    async def ping(self) -> None:
        """Return when the store answers."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


def refusal(commit: Commit, code: str, stored: str) -> StateError:
    """Say why a store refused a commit; `code` is FENCED, GAP or FORMAT, `stored` the owner, offset or format found."""
    where = f"view {commit.view_key} on {commit.topic}:{commit.partition}"
    if code == "FENCED":
        found = "another worker has claimed it" if stored else "nobody owns it: the store was emptied or rolled back"
        return FencedError(f"{where}: {found}; the batch {commit.start}..{commit.next} was not stored. Claim it again")
    if code == "GAP":
        found = f"the stored next offset is {stored}" if stored else "nothing is stored: the store was rolled back"
        return GapError(
            f"{where}: the batch starts at offset {commit.start}, {found}. "
            f"Nothing was stored; fold again from {'offset ' + stored if stored else 'the beginning'}"
        )
    return wrong_format(commit.view_key, commit.topic, commit.partition, stored)


def wrong_format(view_key: str, topic: str, partition: int, stored: str) -> FormatError:
    """Say that what is stored was written by another version, and what to do about it."""
    where = f"view {view_key} on {topic}:{partition}"
    if stored == DROPPING:
        return FormatError(f"{where}: its states are being dropped, or a drop was cut short; drop it again")
    return FormatError(
        f"{where}: written by format {stored or 'unknown'}, this version writes {FORMAT}: use a version that writes "
        f"format {stored or 'unknown'}, or drop the view and backfill it; nothing was changed"
    )


OUTAGE_MS = 86_400_000
"""For how long a worker may be down before states expire that it still needs, ms."""


def time_to_live(keep: int, clock: int | None, now: int) -> int | None:
    """How long a state must be kept (ms; None for ever) of a view with this `keep`: while a window can see it.

    A stream that is behind gets what lies between its newest event, `clock`, and `now` on top; one that stops may be
    down for `OUTAGE_MS` and go on as if it had not.
    """
    if keep >= ENDLESS:
        return None
    return OUTAGE_MS + keep + (max(0, now - clock) if clock is not None else 0)


def check_commits(commits: Sequence[Commit]) -> None:
    """Raise `StateError` for commits that no store can take."""
    places = {(commit.view_key, commit.topic, commit.partition) for commit in commits}
    if len(places) != len(commits):
        raise StateError(
            "two commits of one view and partition in one call: a retry could not tell them apart; join them"
        )
    for commit in commits:
        if len(commit.entities) != len(commit.blobs):
            raise StateError(f"view {commit.view_key}: {len(commit.entities)} entities but {len(commit.blobs)} states")
        if (count := len(commit.entities) + len(commit.erased)) > MAX_STATES:
            raise StateError(f"view {commit.view_key}: {count} states in one commit, at most {MAX_STATES}")
