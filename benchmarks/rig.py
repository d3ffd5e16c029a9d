"""What the benchmarks of the stream run on: servers on one core, what is measured on the others."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.kafka_server import apache_kafka, why_no_kafka
from benchmarks.work import PARTITIONS
from onceflow import embedded
from onceflow.processes import Command, running


def cores() -> list[int]:
    """The cores of this process, those of the servers first; empty where a process cannot be bound to one."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []


@contextmanager
def on(*chosen: int) -> Iterator[None]:
    """Start processes on these cores only: a process inherits those of the thread that starts it."""
    if not chosen:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, chosen)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def own_redis() -> str | None:
    """The machine's redis-server; not the one that comes with a virtual environment, whose allocator makes it slower.

    Which one is measured must not depend on whether an environment is active.
    """
    environment = Path(sys.prefix, "bin") if sys.prefix != sys.base_prefix else None
    folders = [folder for folder in os.get_exec_path() if Path(folder) != environment]
    return shutil.which("redis-server", path=os.pathsep.join(folders))


@dataclass(frozen=True)
class Rig:
    """A broker, a place for files, and the cores; workers run on the last core, all else on the first."""

    kafka: str
    folder: Path
    cores: list[int]

    @contextmanager
    def redis(self) -> Iterator[str]:
        """A Redis without states, as a URL."""
        with on(*self.cores[:1]), embedded.redis(binary=own_redis()) as server:
            yield f"redis://{server.address}/0"

    @contextmanager
    def run(
        self, redis: str, name: str, *arguments: str, core: int = -1, module: str = "work_views", **settings: object
    ) -> Iterator[Command]:
        """Run `onceflow ARGUMENTS` on work W, on one core."""
        common = {"kafka": self.kafka, "redis": redis, "data": self.folder / name, "partitions": PARTITIONS}
        chosen = common | {"mirror": "false", "archive": "false"} | settings
        environment = {f"ONCEFLOW_{setting.upper()}": str(value) for setting, value in chosen.items()}
        command = [*arguments, "--module", f"benchmarks.{module}"]
        with ExitStack() as stack:
            with on(*self.cores[core:][:1]):
                made = stack.enter_context(running(command, self.folder / f"{name}.log", environment))
            yield made


@contextmanager
def rig() -> Iterator[Rig]:
    """A rig with a broker of its own: Apache Kafka if it runs here, or else the embedded one.

    What this process does meanwhile, producing and asking, is on the servers' core too.
    """
    mine, broker = cores(), embedded.kafka() if why_no_kafka() else apache_kafka()
    with TemporaryDirectory(prefix="onceflow-bench-") as folder, on(*mine[:1]), broker as server:
        yield Rig(server.address, Path(folder), mine)


def described() -> str:
    """What a rig is on this machine, in a line or two."""
    broker, found, mine = why_no_kafka(), own_redis(), cores()
    kafka = f"the embedded broker (Apache Kafka {broker})" if broker else "Apache Kafka"
    bound = "one core for the worker, another for all else" if len(mine) > 1 else "nothing bound to a core"
    return f"{kafka}, {'redis-server' if found else 'the embedded Redis'}; {bound}, of {os.cpu_count()} cores"
