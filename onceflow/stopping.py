"""Commands that run until they are told to stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ends_when_told() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM close what is open and end the process with exit code 0: so it was wanted.

    A second signal ends it at once. Who needs more care than an exception gives handles the signals itself.
    """
    before = {number: signal.signal(number, _end) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(_: int, __: FrameType | None) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    sys.exit(0)
