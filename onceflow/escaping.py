"""Text of unknown origin, made fit to be shown: it cannot steer a terminal, forge a line or tell a password."""

from __future__ import annotations

import re

_HIDDEN = "***"
_CREDENTIALS = re.compile(r"://([^\s/:@]*):[^\s/]*@")
_ASSIGNED = re.compile(r"((?:password|passwd|secret|token)\w*=)[^\s&,;]+", re.IGNORECASE)


def text_of(value: bytes | str) -> str:
    """Bytes as text; one that is no UTF-8 becomes a lone surrogate, so that no two values look the same."""
    return value if isinstance(value, str) else value.decode(errors="surrogateescape")


def escaped(text: str | bytes) -> str:
    """The text in printable characters only: it can neither start a line nor steer a terminal.

    A backslash is doubled, so that it is not taken for an escape.
    """
    plain = (char if char.isprintable() and char != "\\" else ascii(char)[1:-1] for char in text_of(text))
    return "".join(plain)


def redacted(text: str) -> str:
    """The text without the passwords of addresses in it, be they before an @ or parameters."""
    return _ASSIGNED.sub(rf"\1{_HIDDEN}", _CREDENTIALS.sub(rf"://\1:{_HIDDEN}@", text))
