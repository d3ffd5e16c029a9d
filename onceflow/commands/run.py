"""`onceflow run`: worker, learner and server together."""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack
from pathlib import Path

from onceflow.logs import Logs
from onceflow.modules import load as load_module
from onceflow.processes import Command, running
from onceflow.settings import Settings
from onceflow.settings import load as load_settings

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


def run(*, module: str) -> None:
    """Start the three processes and wait; when one fails, stop the others and raise what it said."""
    settings = load_settings(Path.cwd(), os.environ)
    with Logs(settings, process="run"), ExitStack() as stack:
        commands = [_start(stack, name, module, settings) for name in _names(module)]
        for command in commands:
            stack.callback(command.tell_to_stop)  # all are told before one is waited for
        address, logs = f"http://{settings.http_host}:{settings.http_port}", settings.data / "logs"
        _log.info("worker, learner and server run; Ctrl-C stops them", extra={"address": address, "logs": logs})
        while True:
            time.sleep(_POLL_SECONDS)
            for command in commands:
                if command.ended:
                    command.fail()


def _names(module: str) -> list[str]:
    """The processes that a module needs: without a service there is nothing to learn."""
    return ["worker", *(["learn"] if load_module(module).services else []), "serve"]


def _start(stack: ExitStack, name: str, module: str, settings: Settings) -> Command:
    log = settings.data / "logs" / f"{name}.log"
    return stack.enter_context(running([name, "--module", module], log, {}))
