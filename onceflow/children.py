"""Servers as child processes: started on a free port, ready when handed out, gone with this process."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from featurestore.errors import ConfigError, UnavailableError

HOST = "127.0.0.1"
STOP_SECONDS = 5.0
"""What a process gets to stop in order before it is killed."""

_GUARD = Path(__file__).with_name("guard.py")
_PORT_TRIES = 5
_POLL_SECONDS = 0.02
_GUARD_SECONDS = 3.0  # beyond that
_LOG_LINES = 8


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, its process id and the file with its output."""

    name: str
    host: str
    port: int
    pid: int
    log: Path

    @property
    def address(self) -> str:
        """The server as "host:port"."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Program:
    """How to run a server and how to tell that it answers.

    `command` gives the argument list for a port and a directory of the server's own; `answers` asks a connected socket
    one question of the server's protocol, and raises OSError or returns False while there is no good answer.
    `stop_seconds` is what it gets to stop in order before it is killed: nothing, if it keeps nothing.
    """

    name: str
    command: Callable[[int, Path], Sequence[str]]
    answers: Callable[[socket.socket], bool]
    ready_seconds: float = 15.0
    stop_seconds: float = STOP_SECONDS


class _PortTakenError(Exception):
    """Someone else took the port between choosing it and listening on it."""


@contextmanager
def run(program: Program, port: int = 0, directory: Path | None = None) -> Iterator[Server]:
    """Run the program until the block ends. Port 0 means a free one; without a directory a temporary one is used.

    ConfigError: the given port is in use. UnavailableError: the program stopped or did not answer in time.
    """
    if port and not _is_free(port):
        raise ConfigError(f"port {port} for {program.name} is in use: stop what listens there, or give another port")
    with TemporaryDirectory(prefix="onceflow-", ignore_cleanup_errors=True) as temporary:
        place = directory or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        guard, server = _start(program, port, place)
        try:
            yield server
        finally:
            _stop(guard)


def _start(program: Program, port: int, directory: Path) -> tuple[subprocess.Popen[str], Server]:
    for _ in range(_PORT_TRIES):
        try:
            return _start_on(program, port or free_port(), directory)
        except _PortTakenError:
            if port:
                break
    raise UnavailableError(f"{program.name} found its port taken by another process at start: try again")


def _start_on(program: Program, port: int, directory: Path) -> tuple[subprocess.Popen[str], Server]:
    log = directory / f"{program.name}.log"
    with log.open("wb") as output:
        # A session of its own: Ctrl-C in the terminal must reach us first, so that workers stop before their servers.
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), str(program.stop_seconds), *program.command(port, directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    with ExitStack() as undo:
        undo.callback(_stop, guard)
        assert guard.stdout is not None
        pid = int(guard.stdout.readline() or 0)
        _wait_until_ready(program, port, guard, log)
        undo.pop_all()
    return guard, Server(program.name, HOST, port, pid, log)


def _wait_until_ready(program: Program, port: int, guard: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + program.ready_seconds
    while time.monotonic() < deadline:
        answered = _answers(program, port)
        if guard.poll() is not None:
            break
        if answered:
            return
        time.sleep(_POLL_SECONDS)
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    if guard.poll() is not None and not _is_free(port):
        raise _PortTakenError
    did = "stopped at start" if guard.poll() is not None else f"did not answer within {program.ready_seconds:.0f} s"
    raise UnavailableError(f"{program.name} {did}; its last lines were:\n" + "\n".join(lines or ["(no output)"]))


def _answers(program: Program, port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as connection:
            return program.answers(connection)
    except OSError:
        return False


def _stop(guard: subprocess.Popen[str]) -> None:
    assert guard.stdin is not None
    assert guard.stdout is not None
    guard.stdin.close()
    try:
        guard.wait(STOP_SECONDS + _GUARD_SECONDS)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()
    guard.stdout.close()


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on right now."""
    with closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
