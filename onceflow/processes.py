"""onceflow's own commands as child processes, which never outlive this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore.errors import OnceflowError
from onceflow.children import STOP_SECONDS

_GUARD = Path(__file__).with_name("guard.py")
_LOG_LINES = 12


@dataclass(frozen=True)
class Command:
    """A running command; `log` has all that it prints."""

    name: str
    guard: subprocess.Popen[bytes]
    log: Path

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.guard.poll() is not None

    def tell_to_stop(self) -> None:
        """Let it stop as SIGTERM does, and do not wait."""
        assert self.guard.stdin is not None
        self.guard.stdin.close()  # which the guard takes as the end

    def wait(self, seconds: float | None = None) -> None:
        """Wait for its end; OnceflowError, with its last lines, when it failed."""
        if self.guard.wait(seconds) != 0:
            self.fail()

    def fail(self) -> None:
        """Raise OnceflowError with what the command said last."""
        lines = self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        raise OnceflowError(f"`onceflow {self.name}` failed with code {self.guard.returncode}:\n" + "\n".join(lines))

    def result(self) -> dict[str, Any]:
        """The JSON object that it printed last."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.startswith("{")]
        if not lines:
            self.fail()
        made: dict[str, Any] = json.loads(lines[-1])
        return made


@contextmanager
def running(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[Command]:
    """Run `onceflow ARGUMENTS` until the block ends, then stop it as SIGTERM does."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), str(STOP_SECONDS), sys.executable, "-m", "onceflow", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # where it tells a process id
            stderr=output,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C comes to this process, which stops the others in order
        )
    command = Command(arguments[0], guard, log)
    try:
        yield command
    finally:
        command.tell_to_stop()
        guard.wait()
