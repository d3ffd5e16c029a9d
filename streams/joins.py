"""Joined sources at work: pairs of what a worker reads, as messages of a topic of their own.

What has been made is known in two places. The online store keeps, as of each view, how far a worker has come, and
beside it from where the logs must be read again to have all that waits. And every message says, in its header `join`,
which offsets of both logs all pairs had been made of that were delivered before it: so a store that has lost its
positions does not make pairs twice. A turn that died after it had sent makes some again, with the same ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import polars as pl

from featurestore.align import Chunk, Partition
from featurestore.decoding import MAX_BYTES
from featurestore.erasures import Entities, Erasure
from featurestore.errors import StateError
from featurestore.flow import from_offsets
from featurestore.frames import empty_frame
from featurestore.joined import Joined
from featurestore.pairing import Paired, Pairing, Place
from featurestore.sources import Source
from streams.messages import Message, late, records_of

HEADER = "join"
_MADE = re.compile(rb"([0-9a-f]{12}):(\d{1,18}):(\d{1,18})")

Ends = tuple[int, int]
"""Offsets of the left and of the right log: all pairs of events before both of them have been delivered."""

_BEGINNING = Place(0, None)


class Stand(NamedTuple):
    """Where a join stands in a log: up to where all pairs were made, and from where events wait."""

    log: Partition
    made: Place
    waiting: Place


class Made(NamedTuple):
    """What came of a chunk: messages, of how many pairs and late events, how many events were too many to wait."""

    messages: list[Message]
    pairs: int
    late: int
    dropped: int
    stands: list[Stand]


def made_key(source: Joined) -> str:
    """The identity under which the online store keeps how far pairs were made."""
    return f"join.made@{source.fingerprint}"


def waiting_key(source: Joined) -> str:
    """The identity under which it keeps from where events wait."""
    return f"join.wait@{source.fingerprint}"


def ends_of(source: Joined, partition: int, headers: Iterable[bytes]) -> Ends | None:
    """The furthest of what the headers of a partition's newest messages say; None where none is the join's.

    Raises StateError where they are of another definition.
    """
    told = [match.groups() for header in headers if (match := _MADE.fullmatch(header))]
    if told and told[-1][0].decode() != source.fingerprint:
        raise StateError(
            f"{source.name}[{partition}] holds pairs of another definition than today's of this join: give the join "
            "another name, or stop all workers and delete the topic"
        )
    ends = [(int(left), int(right)) for made, left, right in told if made.decode() == source.fingerprint]
    return max(ends, key=sum, default=None)


class _Part:
    """One partition of a join.

    At its beginning it reads again what waits, and new events of one log may come before old ones of the other: it
    stands where it began until it has come so far in both.
    """

    def __init__(self, source: Joined, partition: int) -> None:
        self.began: Ends = (0, 0)
        self.begins = [_BEGINNING, _BEGINNING]
        self._pairing = Pairing(source, partition)
        self._read = [0, 0]

    @property
    def dropped(self) -> int:
        return self._pairing.dropped

    @property
    def ends(self) -> Ends:
        left, right = self._read
        return (left, right) if left >= self.began[0] and right >= self.began[1] else self.began

    def wait(self, side: int, place: Place) -> None:
        self.begins[side], self._read[side] = place, place.offset
        self._pairing.begin(side, place.clock)

    def take(self, left: pl.DataFrame, right: pl.DataFrame) -> Paired:
        """The pairs and late events that had not been when this began."""
        made, late_events = self._pairing.take(left, right)
        old = [pl.col(name) < end for name, end in zip(("_left", "_right"), self.began, strict=True)]
        new = [frame.filter(pl.col("_offset") >= end) for frame, end in zip(late_events, self.began, strict=True)]
        return Paired(made.filter(~pl.all_horizontal(old)), (new[0], new[1]))

    def reach(self, ends: Ends) -> None:
        """Take note that all events before `ends` were taken."""
        self._read = [max(pair) for pair in zip(self._read, ends, strict=True)]

    def erase(self, side: int, columns: Sequence[str], erasure: Erasure) -> None:
        """Let the events of an entity that came before its erasure wait no longer."""
        self._pairing.erase(side, columns, erasure)

    def stand(self, side: int) -> tuple[Place, Place] | None:
        """Up to where all pairs were made, and from where events wait; None while it has not come to where it began."""
        if self.ends != tuple(self._read):
            return None
        end = self._read[side]
        return self._pairing.reached(side, end), self._pairing.place(side, end)


class Join:
    """A joined source in a worker: what waits on each partition, and how far pairs were made.

    `erasable` gives the entities that records of each topic may erase.
    """

    def __init__(self, source: Joined, erasable: Mapping[str, Entities]) -> None:
        self.source = source
        self._erasable = erasable
        self.topics = [side.name for side in source.sides]
        self._parts: dict[int, _Part] = {}
        self._dropped = 0

    def wait(self, log: Partition, place: Place) -> None:
        """Take events of a log from this place on."""
        self._part(log[1]).wait(self.topics.index(log[0]), place)

    def begins(self, log: Partition) -> Place:
        """The place that `wait` told; the beginning of the log if it did not."""
        return self._part(log[1]).begins[self.topics.index(log[0])]

    def begin(self, partition: int, stored: Ends, sent: Ends | None) -> None:
        """Go on with a partition, where the store says that pairs were `stored` and the topic that they were `sent`."""
        self._part(partition).began = max(stored, sent or (0, 0), key=sum)

    def take(self, chunk: Chunk) -> Made:
        """Make the pairs of a chunk with all that waits, but for those that had been made when this began."""
        messages: list[Message] = []
        stands: list[Stand] = []
        pairs = late_ones = 0
        for partition in sorted({p for topic, p in chunk.spans if topic in self.topics}):
            part = self._part(partition)
            told = part.ends
            for left, right, erasure in self._stretches(chunk, partition):
                made = part.take(left, right)
                if erasure is not None:
                    self._erase(part, erasure)
                refused = [*self._late(0, made.late[0]), *self._late(1, made.late[1])]
                messages += [*_messages(self.source, partition, made.pairs, told), *refused]
                pairs += len(made.pairs)
                late_ones += len(refused)
            left_end, right_end = (chunk.spans.get((topic, partition), (0, 0))[1] for topic in self.topics)
            part.reach((left_end, right_end))
            for side, topic in enumerate(self.topics):
                if (stand := part.stand(side)) is not None:
                    stands.append(Stand((topic, partition), *stand))
        before, self._dropped = self._dropped, sum(part.dropped for part in self._parts.values())
        return Made(messages, pairs, late_ones, self._dropped - before, stands)

    def _part(self, partition: int) -> _Part:
        if partition not in self._parts:
            self._parts[partition] = _Part(self.source, partition)
        return self._parts[partition]

    def _late(self, number: int, events: pl.DataFrame) -> Iterator[Message]:
        side = self.source.sides[number]
        for record in records_of(side, events):
            yield late(record, f"later than {side.lateness} for the pairs of {self.source.name}")

    def _erase(self, part: _Part, erasure: Erasure) -> None:
        columns = self._erasable[erasure.topic][erasure.entity]
        part.erase(self.topics.index(erasure.topic), columns, erasure)

    def _stretches(self, chunk: Chunk, partition: int) -> Iterator[tuple[pl.DataFrame, pl.DataFrame, Erasure | None]]:
        """A partition's events of the chunk, left and right, up to each erasure there and with it; then the rest."""
        left, right = (self._frame(chunk, side, partition) for side in self.source.sides)
        for step, erasure in chunk.erasures:
            if erasure.partition == partition and erasure.topic in self.topics:
                before = pl.col("_step") < step
                yield left.filter(before), right.filter(before), erasure
                left, right = left.filter(~before), right.filter(~before)
        yield left, right, None

    def _frame(self, chunk: Chunk, side: Source, partition: int) -> pl.DataFrame:
        """The chunk's events of a log from where this began to take them."""
        if side.name in chunk.frames:
            return from_offsets(chunk.frames[side.name], {partition: self.begins((side.name, partition)).offset})
        return empty_frame(side).with_columns(_step=pl.lit(0, pl.Int64))


def _messages(source: Joined, partition: int, pairs: pl.DataFrame, ends: Ends) -> Iterator[Message]:
    """Pairs as JSON, each with the key of its events."""
    headers = {HEADER: b"%s:%d:%d" % (source.fingerprint.encode(), *ends)}
    key = pl.concat_str([pl.col(name).cast(pl.String) for name in source.keys], separator="|")
    value = pl.struct(source.schema.keys()).struct.json_encode()
    for text, body in pairs.select(key.cast(pl.Binary).alias("key"), value.cast(pl.Binary).alias("value")).iter_rows():
        # Of one that is too long for every reader it is enough to send so much that they see that it is.
        yield Message(source.name, partition, body[: MAX_BYTES + 1], text, headers)
