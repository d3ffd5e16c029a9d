"""Runs one server as its child and makes sure that the server never outlives the process that asked for it.

Run as a script: `python -I -S guard.py SECONDS COMMAND...`; told to stop, the server has so long before it is killed.
Standard input is a pipe that nobody writes to: its end means that the asking process stopped, in whatever way. That
holds whichever of its threads asked, and on every Unix; Linux's parent-death signal is bound to one thread. Here, in a
process of one thread, it covers the death of the guard itself. The server's process id is printed as one line; its
output goes to standard error.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys

POLL_SECONDS = 0.1
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux to kill this process when the thread that started it ends; elsewhere do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def watch(server: subprocess.Popen[bytes], parent: int) -> None:
    """Return when the server ends, the pipe closes or the parent is gone (a fork of it may hold the pipe open)."""
    while server.poll() is None and os.getppid() == parent:
        if select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
            return


def stop(server: subprocess.Popen[bytes], seconds: float) -> None:
    """Terminate the server; kill it if it does not go within the time."""
    server.terminate()
    try:
        server.wait(seconds)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def main(seconds: float, command: list[str]) -> int:
    """Run the command until it ends or is no longer wanted, and return its exit code."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=die_with_parent)  # noqa: PLW1509 - one thread
    try:
        print(server.pid, flush=True)  # noqa: T201 - the asking process reads it
        watch(server, parent)
    finally:
        stop(server, seconds)
    return server.returncode


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
