"""Other systems on work W, each in an environment of its own, with pinned versions.

A peer consumes the same topic, on one core, and computes the same aggregates over hopping windows of 5 minutes, an hour
and a day that slide by 1 minute, 5 minutes and an hour; its results go nowhere, which favours it. Its rate counts from
its first event to its last, of as many events as it says: slow ones take part of the topic. Those that can close all
windows at the end show that these hold every event, as often as they must.

`python -m benchmarks.peers.NAME --kafka HOST:PORT --events N` runs one alone and prints a JSON object. Only Python's
own library is imported here, for this module is loaded in a peer's environment too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

#: Peers, and how many events each is given by `onceflow bench stream --peers`.
EVENTS = {"quix": 20_000, "faust_tables": 1_000, "kafka_streams": 100_000, "bytewax": 20_000, "flink": 500_000}
TOPIC = "payments"
HOPS_S = ((300, 60), (3_600, 300), (86_400, 3_600))
"""Length and slide of each window, in seconds."""

_ROOT = Path(__file__).parents[2]
_CACHE = _ROOT / ".cache" / "peers"
_SECONDS = 600.0

Moments = tuple[int, float, float, float, float, float]
"""Count, sum, min, max, mean, and the sum of squared deviations from it."""
NOTHING: Moments = (0, 0.0, float("inf"), float("-inf"), 0.0, 0.0)


def added(old: Moments, amount: float) -> Moments:
    """The aggregates with one more amount (Welford)."""
    n, total, low, high, mean, squares = old
    off = amount - mean
    mean += off / (n + 1)
    return n + 1, total + amount, min(low, amount), max(high, amount), mean, squares + off * (amount - mean)


class Clock:
    """Counts events, and says when the last one has come."""

    def __init__(self, events: int) -> None:
        self._left = self.events = events

    @property
    def ended(self) -> bool:
        """Whether the last one has come."""
        return self._left == 0

    def tick(self) -> bool:
        """Count an event; whether it is the last."""
        if self._left == self.events:
            self._begun, self._spent = time.perf_counter(), time.process_time()
        self._left -= 1
        if self._left == 0:
            self._wall, self._cpu = time.perf_counter() - self._begun, time.process_time() - self._spent
        return self.ended

    def report(self) -> dict[str, Any]:
        """What has come of it, once the last event has come."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rates = {"events_per_s": round(self.events / self._wall), "events_per_cpu_s": round(self.events / self._cpu)}
        return {"events": self.events, **rates, "peak_mb": round(peak)}


def check(events: int, counted: int) -> None:
    """SystemExit: windows that have all closed do not hold each event as often as they must."""
    expected = events * sum(length // slide for length, slide in HOPS_S)
    if counted != expected:
        raise SystemExit(f"its windows hold {counted:,} events in all, not {expected:,}")


def environment(requirements: Sequence[str]) -> Path:
    """The Python of an environment with these packages, made once; CalledProcessError when pip cannot."""
    place = _CACHE / sha256(" ".join([sys.version, *requirements]).encode()).hexdigest()[:12]
    python = place / "bin" / "python"
    if not (place / "made").exists():
        venv.create(place, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        subprocess.run(pip, check=True, capture_output=True, text=True)
        (place / "made").touch()
    return python


def arguments(name: str) -> argparse.Namespace:
    """The broker and the number of events from a peer's command line."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.peers.{name}")
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--events", type=int, default=EVENTS[name])
    return parser.parse_args()


def main(name: str, requirements: Sequence[str], work: Callable[[str, Clock, Path], None]) -> None:
    """Run a peer in its own environment; `work` gets the broker, a clock to tick, and a folder for its state."""
    given, python = arguments(name), environment(requirements)
    if Path(sys.prefix) != python.parents[1]:
        command = [str(python), "-m", f"benchmarks.peers.{name}", *sys.argv[1:]]
        os.chdir(_ROOT)
        os.execv(python, command)
    clock = Clock(given.events)
    with TemporaryDirectory(prefix="onceflow-peer-") as folder:
        work(given.kafka, clock, Path(folder))
    print(json.dumps({"peer": name, "requirements": list(requirements), **clock.report()}), flush=True)


def measured(name: str, kafka: str, events: int) -> dict[str, Any] | str:
    """What a peer reports, or why it does not."""
    command = [sys.executable, "-m", f"benchmarks.peers.{name}", "--kafka", kafka, "--events", str(events)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"did not end within {_SECONDS:.0f} s"
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not found:
        return (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    made: dict[str, Any] = json.loads(found[-1])
    return made
