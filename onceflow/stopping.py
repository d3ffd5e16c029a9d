"""Commands that run until they are told to stop."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

AGAIN_SECONDS = 0.05
"""Seconds until a process ends in earnest whose end was ignored."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ends_when_told() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM close what is open and end the process with exit code 0: so it was wanted.

    A second signal ends it at once. Who needs more care than an exception gives handles the signals itself.
    """
    before = {number: signal.signal(number, _end) for number in _SIGNALS}
    unraisable, sys.unraisablehook = sys.unraisablehook, partial(_end_again, sys.unraisablehook)
    try:
        yield
    finally:
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_again(otherwise: Callable[[sys.UnraisableHookArgs], object], ignored: sys.UnraisableHookArgs) -> None:
    """End once more, in a moment, where a signal came in a destructor or callback: Python ignores what these raise."""
    if ignored.exc_type is not SystemExit:
        otherwise(ignored)
        return
    for number in _SIGNALS:
        signal.signal(number, _end)
    threading.Timer(AGAIN_SECONDS, signal.pthread_kill, [threading.main_thread().ident, signal.SIGTERM]).start()


def _end(_: int, __: FrameType | None) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    sys.exit(0)
