"""Commands that run until they are told to stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN_SECONDS = 0.05
"""Seconds until a process ends in earnest whose end was ignored."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Told(SystemExit):
    """Ends the process with exit code 0. `gone` is called when nobody has it any more."""

    def __init__(self, gone: Callable[[], None]) -> None:
        super().__init__(0)
        self._gone = gone

    def __del__(self) -> None:
        self._gone()


class _Ending:
    """Raises at a signal, and once more where that came to nothing.

    Python ignores what is raised in a destructor, and compiled modules clear what they do not expect. An error on its
    way lives until it has left the block, whatever is closed meanwhile: one that dies within was ignored.
    """

    def __init__(self) -> None:
        self.within = True
        self._told = False

    def hear(self, number: int, _: FrameType | None) -> None:
        """Raise; end the process at once if that is under way."""
        if self._told:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._told = True
        raise _Told(self._ignored)  # without a name: its traceback has this frame, which would keep it alive

    def _ignored(self) -> None:
        self._told = False
        if self.within:
            threading.Timer(AGAIN_SECONDS, self._again).start()

    def _again(self) -> None:
        if self.within:
            os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def ends_when_told() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM close what is open and end the process with exit code 0: so it was wanted.

    A second signal ends it at once. Who needs more care than an exception gives handles the signals itself.
    """
    say, ending = sys.unraisablehook, _Ending()
    sys.unraisablehook = lambda ignored: None if ignored.exc_type is _Told else say(ignored)
    before = {number: signal.signal(number, ending.hear) for number in _SIGNALS}
    try:
        yield
    finally:
        ending.within = False
        sys.unraisablehook = say
        for number, handler in before.items():
            signal.signal(number, handler)
