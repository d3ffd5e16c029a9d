"""onceflow's commands in processes of their own, in the current directory, on its `features.py`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60


@contextmanager
def onceflow(*arguments, **settings):
    command = [sys.executable, "-m", "onceflow", *arguments, "-m", "features.py"]
    environment = (
        os.environ | {"PYTHONPATH": str(ROOT)} | {f"ONCEFLOW_{name.upper()}": settings[name] for name in settings}
    )
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def told_to_stop(process, number):
    """The exit code and what was said on standard error."""
    process.send_signal(number)
    _, error = process.communicate(timeout=PATIENCE_SECONDS)
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
