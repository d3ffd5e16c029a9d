"""Processes of the real command line, started in no time: forked from one that has made the imports already.

None of them outlives the process that asked for it. Nothing runs in the one they are forked from, for Polars does not
survive a fork once it was used.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path

import onceflow.commands.worker
import onceflow.runtime  # noqa: F401
import tests.streams.shop  # noqa: F401 - the imports that take their time
from learner.models import CompiledLogistic
from onceflow.cli import app
from onceflow.guard import die_with_parent
from onceflow.services import LiveService

FAULTS = "FAULTS"
STUCK, FAILING = "stuck", "failing"

_CONTEXT = multiprocessing.get_context("forkserver")


def start(arguments, log, environment):
    """Run `onceflow ARGUMENTS`, with its output added to the file `log`; a multiprocessing.Process."""
    _CONTEXT.set_forkserver_preload([__name__])
    process = _CONTEXT.Process(target=_run, args=(list(arguments), str(log), dict(environment)), daemon=True)
    process.start()
    return process


def _run(arguments, log, environment):
    die_with_parent()
    os.environ.update(environment)
    with open(log, "ab", buffering=0) as file:  # noqa: PTH123 - for its descriptor
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
    if FAULTS in environment:
        _disturb(Path(environment[FAULTS]))
    app(arguments)


def _disturb(folder):
    """While there is a file `stuck` in the folder no model answers; a file `failing` makes one prediction fail."""
    predict, process = CompiledLogistic.predict, LiveService.process

    def waiting(model, rows):
        while (folder / STUCK).exists():
            time.sleep(0.02)
        return predict(model, rows)

    def failing(service, *arguments):
        if (folder / FAILING).exists():
            (folder / FAILING).unlink()
            raise ZeroDivisionError(f"{service.name} fails")
        return process(service, *arguments)

    CompiledLogistic.predict, LiveService.process = waiting, failing
