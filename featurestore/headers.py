"""Columns that lie in the headers of a record: text of a name, as a field of CSV has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from featurestore.decoding import MAX_BYTES, Decoded, decode_items, event_type, value_of

#: The headers of a record: names and values, in their order.
Headers = Sequence[tuple[str, bytes | None]]


def decode_headers(kinds: Mapping[str, str], names: Mapping[str, str], headers: Sequence[Headers]) -> Decoded:
    """Columns of these `kinds`, which are in headers of these `names`, of each record whose headers can be read.

    Of several headers of a name the last counts; one that is missing, or has nothing in it, is null.
    """
    kind = event_type(tuple(kinds.items()), frozenset(), "")

    def read(given: Headers) -> msgspec.Struct:
        there, row = dict(given), dict[str, Any]()
        for column, name in names.items():
            if value := there.get(name):
                row[column] = value_of(kinds[column], _text(name, value))
        return msgspec.convert(row, kind)  # type: ignore[no-any-return]

    return decode_items(kinds, enumerate(headers), read, [], len(headers))


def _text(name: str, value: bytes) -> str:
    if len(value) > MAX_BYTES:
        raise msgspec.ValidationError(f"{len(value)} bytes, of length {MAX_BYTES} at most - at `$.{name}`")
    return value.decode()
