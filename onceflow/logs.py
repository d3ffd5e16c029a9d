"""What a process says: an event a line, for people or, as JSON, for programs.

Code says it to Python's own loggers, with what varies in `extra`, and so do libraries. All of it is rendered here, in
one way. structlog, which does that, is imported with the first line: many a process has none to say.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections.abc import Mapping, MutableMapping
from contextlib import ExitStack
from functools import cached_property
from types import TracebackType
from typing import Any

from featurestore.errors import OnceflowError
from onceflow.cli import exit_code
from onceflow.escaping import escaped, redacted
from onceflow.settings import Settings

_OURS = ("featurestore", "streams", "learner", "batch", "serving", "onceflow")
_FIRST = ("timestamp", "level", "event", "exception")
_LEFT = ("message", "asctime")
_log = logging.getLogger(__name__)

_Event = MutableMapping[str, Any]


class Logs:
    """Within the block all that is logged goes to standard error, in lines of one form.

    `fields` stand in every line of JSON. In JSON an error that ends the block is a line too, and the process ends with
    the exit code that the command line has for it.
    """

    def __init__(self, settings: Settings, **fields: str) -> None:
        self._level, self._json = settings.log_level.upper(), settings.log_format == "json"
        self._formatter = _Formatter(fields if self._json else None)
        self._undo = ExitStack()

    def __enter__(self) -> None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(self._formatter)
        handler.setLevel(self._level)
        root = logging.getLogger()
        root.addHandler(handler)
        self._undo.callback(root.removeHandler, handler)
        for name in _OURS:
            logger = logging.getLogger(name)
            self._undo.callback(logger.setLevel, logger.level)
            logger.setLevel(self._level)
        self._undo.callback(logging.captureWarnings, False)
        logging.captureWarnings(True)
        self._undo.callback(setattr, threading, "excepthook", threading.excepthook)
        threading.excepthook = _thread_failed

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        with self._undo:
            if self._json and isinstance(error, Exception):
                expected = isinstance(error, OnceflowError)
                _log.error("failed", exc_info=None if expected else error, extra={"error": str(error)})
                raise SystemExit(exit_code(error)) from None


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _log.error("a thread failed", exc_info=args.exc_value)


class _Formatter(logging.Formatter):
    """Renders records: as JSON, with these fields in each, or (None) as text."""

    def __init__(self, fields: Mapping[str, str] | None) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """One line; in text, what Python says of an exception follows, indented."""
        return self._rendering.format(record)

    @cached_property
    def _rendering(self) -> logging.Formatter:
        from structlog import processors, stdlib  # noqa: PLC0415 - see above

        fields, render = self._fields, processors.JSONRenderer() if self._fields is not None else _line
        return stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                stdlib.add_log_level,
                stdlib.add_logger_name,
                stdlib.ExtraAdder(),
                processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[
                stdlib.ProcessorFormatter.remove_processors_meta,
                processors.format_exc_info,
                lambda _, __, event: _told(event) | dict(fields or {}),
                render,
            ],
        )


def _told(event: Mapping[str, Any]) -> dict[str, Any]:
    """The event as plain data, its usual fields first, without what other handlers leave in a record."""
    names = [*(name for name in _FIRST if name in event), *(name for name in event if name not in (*_FIRST, *_LEFT))]
    return {name: _plain(event[name]) for name in names}


def _plain(value: Any) -> Any:  # noqa: ANN401
    """A value as JSON has it, without passwords."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    return redacted(str(value))


def _line(_: Any, __: str, event: _Event) -> str:  # noqa: ANN401 - structlog's signature
    """The event as text that no value in it can break."""
    head = f"{event.pop('timestamp')} {event.pop('level'):<7} {escaped(str(event.pop('event')))}"
    trace = event.pop("exception", "")
    rest = [f"{escaped(name)}={_quoted(value)}" for name, value in event.items() if name != "logger"]
    return "\n".join(["  ".join([head, *rest]), *(f"    {escaped(line)}" for line in trace.splitlines())])


def _quoted(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, Mapping):
        value = [f"{name}:{inner}" for name, inner in value.items()]
    text = escaped(",".join(map(str, value)) if isinstance(value, list) else str(value))
    return '"{}"'.format(text.replace('"', '\\"')) if not text or set(text) & set(' "=') else text
