"""Which partition a record's key leads to, as Kafka's producers compute it."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from featurestore.errors import StateError
from featurestore.keys import decode_entity

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from featurestore.definitions import View

_MASK = 0xFFFFFFFF
_SEED = 0x9747B28C
_MIX = 0x5BD1E995


def key_text(values: Sequence[str | int | bool]) -> bytes:
    """The bytes that `onceflow produce` gives a record as its key: the text of the key columns, joined by "|"."""
    return "|".join(str(v).lower() if isinstance(v, bool) else str(v) for v in values).encode()


def partition_of(partitioner: str, key: bytes, partitions: int) -> int | None:
    """The partition of a key; None when it can be any.

    "murmur2" is the default of Kafka's Java client, "crc32" that of librdkafka, which spreads empty keys at random.
    """
    if partitioner == "murmur2":
        return (murmur2(key) & 0x7FFFFFFF) % partitions
    return zlib.crc32(key) % partitions if key else None


def places_of(partitioner: str | None, key: Sequence[str | int | bool], counts: Iterable[int]) -> set[int] | None:
    """The partitions on which events of a key may lie; None when it can be any.

    `counts` are the numbers of partitions that its topic has and had: when some are added keys move, and events stay.
    """
    if partitioner is None:
        return None
    text = key_text(key)
    found = {partition_of(partitioner, text, count) for count in counts}
    return None if None in found else found  # type: ignore[return-value]


def check_place(view: View, entity: bytes, partition: int, partitions: int) -> None:
    """Raise StateError where an encoded entity has a state on a partition on which no lookup would search for it."""
    source = view.source
    counts = [*source.grown_from, partitions]
    places = places_of(source.partitioner, decode_entity(entity), counts) if view.keyed else None
    if places is not None and partition not in places:
        had = " or ".join(map(str, counts))
        raise StateError(
            f"view {view.key}: the state of {entity.decode()} lies on {source.name}:{partition}, where no lookup would "
            f"find it: {source.partitioner} with {had} partitions leads elsewhere. If the topic had fewer partitions "
            "before, say how many in its source, as in grown_from=[4]; if its producers use another partitioner, name "
            "that one or none"
        )


def murmur2(data: bytes) -> int:
    """The 32-bit MurmurHash2 of Austin Appleby, with the seed that Kafka uses; unsigned."""
    whole = len(data) & ~3
    h = _SEED ^ len(data)
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * _MIX & _MASK
        h = (h * _MIX & _MASK) ^ ((k ^ k >> 24) * _MIX & _MASK)
    if whole < len(data):
        h = (h ^ int.from_bytes(data[whole:], "little")) * _MIX & _MASK
    h = (h ^ h >> 13) * _MIX & _MASK
    return h ^ h >> 15
