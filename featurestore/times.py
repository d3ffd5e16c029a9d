"""Durations and windows as integers: all times are milliseconds since the epoch, UTC."""

from __future__ import annotations

import re

from featurestore.errors import DefinitionError

_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_LONGEST = 365_250 * _UNITS["d"]
_DURATION = re.compile(r"(\d+)(ms|s|m|h|d|w)")

_SIXTIETHS = (1, 2, 5, 10, 15, 30)

#: Tile widths that a window may get by default, in milliseconds.
HOPS = tuple(
    value * _UNITS[unit]
    for unit, values in {
        "s": (1, 2, 5, 10, 15, 30),
        "m": (1, 2, 5, 10, 15, 30),
        "h": (1, 2, 3, 6, 12),
        "d": (1,),
    }.items()
    for value in values
)

#: The hop of a window without end: every event falls into tile 0.
ENDLESS = 1 << 62


def milliseconds(duration: str) -> int:
    """Milliseconds of a duration such as "250ms", "30s", "5m", "6h", "7d" or "2w".

    Raises DefinitionError when the text is no duration, is zero, or is longer than 1000 years.
    """
    match = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    if match is None or int(match[1]) == 0:
        raise DefinitionError(
            f'{duration!r} is no duration: write a number and a unit, such as "30s", "5m", "6h" or "7d"'
        )
    length = int(match[1]) * _UNITS[match[2]]
    if length > _LONGEST:
        raise DefinitionError(f'{duration!r} is longer than 1000 years; a window without end is "lifetime"')
    return length


def default_hop(length: int) -> int:
    """Tile width (ms) of a window of `length` ms: the largest of `HOPS` not above length / 48, at least 1 s."""
    return max((hop for hop in HOPS if hop * 48 <= length), default=HOPS[0])


def first_tile(as_of: int, length: int, hop: int) -> int:
    """Index of the oldest tile that a window of `length` ms covers as of `as_of`."""
    return (as_of - length + 1) // hop
