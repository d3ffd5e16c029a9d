"""Points in time as people and other programs write them; inside, a time is int64 ms since the epoch, UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from featurestore.decoding import MAX_TIME
from featurestore.errors import DataError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def instant(given: int | str) -> int:
    """A time given as ms since the epoch (digits will do) or as ISO 8601, which is UTC when it names no zone.

    Raises DataError for anything else, and for times before 1970 or after 9999.
    """
    try:
        time = int(given)
    except ValueError:
        time = _milliseconds(str(given))
    if not 0 <= time <= MAX_TIME:
        raise DataError(f"{given!r} lies outside the years 1970 to 9999: times are ms since the epoch, or ISO 8601")
    return time


def rfc3339(time: int) -> str:
    """Such as "2024-05-01T12:00:00Z", with milliseconds when there are any."""
    seconds, ms = divmod(time, 1000)
    text = datetime.fromtimestamp(seconds, UTC).isoformat()[:19]
    return f"{text}.{ms:03}Z" if ms else f"{text}Z"


def _milliseconds(text: str) -> int:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(
            f"{text!r} is no time: write ms since the epoch or ISO 8601, such as 2024-05-01T12:00:00Z"
        ) from None
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MS
