"""onceflow's commands in processes of their own, in the current directory, mostly on its `features.py`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60
STOP_SECONDS = 8
"""Five for what is under way, and some for a busy machine."""


@contextmanager
def onceflow(*arguments, module="features.py", **settings):
    command = [sys.executable, "-m", "onceflow", *arguments, "-m", module]
    given = {f"ONCEFLOW_{name.upper()}": str(value) for name, value in settings.items()}
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | given
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def told_to_stop(process, number):
    """The exit code and what was said on standard error, of a process that stops within seconds."""
    process.send_signal(number)
    _, error = process.communicate(timeout=STOP_SECONDS)
    return process.returncode, error


def until(done, process):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def hears(process, text):
    """What was said on standard error up to the line that has the text."""
    heard = []
    while not heard or text not in heard[-1]:
        heard.append(process.stderr.readline())
        assert heard[-1], f"ended without a word of {text!r}: {heard}"
    return "".join(heard)
