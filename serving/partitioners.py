"""Which partition a record's key leads to, as Kafka's producers compute it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

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
