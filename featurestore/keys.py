"""Names in Redis: entity keys as bytes that no value can break out of.

An entity is a tuple of str, int or bool. Each component is a type tag (`s`, `i`, `b`) and its text, percent-encoded so
that only `A-Z a-z 0-9 _ . -` stay as they are; components are joined by ",". So `("ORD", 7)` is `sORD,i7`. No encoded
entity can hold a brace, a colon, a line break or a NUL, and none can equal `next`, the name of a partition's position.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes, unquote_to_bytes

from featurestore.errors import DataError, FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_VALUE_BYTES = 256
"""Longest str that may be a component of an entity, in bytes of UTF-8."""

_SAFE = re.compile(r"[A-Za-z0-9_.-]*")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_VIEW_KEY = re.compile(r"[A-Za-z0-9_.-]+@[A-Za-z0-9_.-]+")
_INT64 = 2**63


def encode_entity(values: Sequence[str | int | bool]) -> bytes:
    """Encode the values of an entity's key columns, in the entity's order.

    Raises `DataError` for no value at all, a value of another type, a str longer than `MAX_VALUE_BYTES` or not valid
    Unicode, and an int outside int64.
    """
    if not values:
        raise DataError("an entity needs at least one key value")
    return b",".join([_encode_value(value) for value in values])


def encode_strings(values: Sequence[str]) -> list[bytes]:
    """Encode many entities of one str each: the same bytes as `encode_entity((value,))`, several times as fast.

    Raises `DataError` as `encode_entity` does, naming the first value that cannot be encoded.
    """
    # Plain values have as many bytes as characters: one scan proves them all plain, one more all short enough.
    if not values or not _SAFE.fullmatch("".join(values)) or max(map(len, values)) > MAX_VALUE_BYTES:
        return [_encode_value(value) for value in values]
    return ("s" + ",s".join(values)).encode("ascii").split(b",")


def decode_entity(entity: bytes) -> tuple[str | int | bool, ...]:
    """Return the values that `encode_entity` was given; raises `FormatError` for bytes that it cannot have made."""
    try:
        values = tuple(_decode_value(part) for part in bytes(entity).split(b","))
        if encode_entity(values) == entity:
            return values
    except (ValueError, DataError):
        pass
    raise FormatError(f"{bytes(entity)!r} is not an encoded entity: the key was not written by this store")


def state_key(topic: str, partition: int, view_key: str, entity: bytes) -> bytes:
    """Redis key of one entity's state: `{topic:p}:<view>@<fingerprint>:<entity>`, with `entity` encoded."""
    return key_prefix(topic, partition, view_key) + entity


def position_key(topic: str, partition: int, view_key: str) -> bytes:
    """Redis key of a view's position on a partition, in the hash slot of its states."""
    return key_prefix(topic, partition, view_key) + b"next"


@lru_cache(maxsize=65_536)
def key_prefix(topic: str, partition: int, view_key: str) -> bytes:
    """What every key of a view on a partition begins with; raises `DataError` for names that could break out of it."""
    if not _NAME.fullmatch(topic):
        raise DataError(f"topic {topic!r} cannot be stored: Kafka's names use only letters, digits, '.', '_' and '-'")
    if not _VIEW_KEY.fullmatch(view_key):
        raise DataError(f"view key {view_key!r} cannot be stored: it must read <name>@<fingerprint>")
    return f"{{{topic}:{partition:d}}}:{view_key}:".encode("ascii")


def _encode_value(value: str | int | bool) -> bytes:
    if isinstance(value, str):
        return b"s" + _encode_text(value)
    if isinstance(value, bool):
        return b"b1" if value else b"b0"
    if not isinstance(value, int):
        raise DataError(f"an entity key is a str, an int or a bool, not {value!r} of type {type(value).__name__}")
    if not -_INT64 <= value < _INT64:
        raise DataError(f"an entity key is outside int64 ({value.bit_length()} bits)")
    return b"i%d" % value


def _encode_text(text: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"entity key {text[:40]!r} is not valid Unicode: it holds a lone surrogate") from error
    if len(raw) > MAX_VALUE_BYTES:
        raise DataError(f"entity key {text[:40]!r}... has {len(raw)} bytes; at most {MAX_VALUE_BYTES} are allowed")
    # `quote` always leaves "~" alone, whatever it is told.
    return raw if _SAFE.fullmatch(text) else quote_from_bytes(raw, safe="").replace("~", "%7E").encode("ascii")


def _decode_value(part: bytes) -> str | int | bool:
    tag, text = part[:1], part[1:]
    if tag == b"s":
        return unquote_to_bytes(text).decode()
    if tag == b"i":
        return int(text)
    if tag == b"b" and text in {b"0", b"1"}:
        return text == b"1"
    raise ValueError(f"unknown tag {tag!r}")
