"""The stream on its standard work: from Kafka to states in Redis, by one worker that has one core to itself.

Apache Kafka where Java and Maven are, else the embedded broker; it and Redis have the other cores. Every state is
committed. Rates count from a worker's first chunk to its last; those a core divide by the CPU time of its process.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from benchmarks.work import KINDS, PARTITIONS, produce
from onceflow import embedded
from onceflow.processes import running
from tests.kafka_server import apache_kafka, why_no_kafka

EVENTS, RUNS = 2_000_000, 3
CORES = sorted(os.sched_getaffinity(0))
WORKER = {CORES[-1]}
SERVERS = set(CORES[:-1]) or WORKER  # with one core only they share it


@contextmanager
def kafka() -> Iterator[tuple[str, str]]:
    """A broker: its name and its address."""
    why = why_no_kafka()
    with apache_kafka() if why is None else embedded.kafka() as server:
        yield "Apache Kafka" if why is None else f"the embedded broker (Apache Kafka {why})", server.address


def once(broker: str, store: str, kind: str, folder: Path) -> dict[str, Any]:
    """Run a worker over the topic from its start, with an empty Redis."""
    url = f"redis://{store}/0"
    with redis.Redis.from_url(url) as client:
        client.flushall()
    environment = {
        "ONCEFLOW_KAFKA": broker,
        "ONCEFLOW_REDIS": url,
        "ONCEFLOW_DATA": str(folder / "data"),
        "ONCEFLOW_PARTITIONS": str(PARTITIONS),
        "ONCEFLOW_MIRROR": "false",
        "ONCEFLOW_ARCHIVE": "false",
    }
    module = "benchmarks.cards_arrow" if kind == "arrow" else "benchmarks.cards_json"
    arguments = ["worker", "--module", module, "--mode", "replay", "--until-end"]
    os.sched_setaffinity(0, WORKER)  # a child begins with its parent's
    with running(arguments, folder / "worker.log", environment) as worker:
        os.sched_setaffinity(0, SERVERS)
        worker.wait()
        return worker.result()


def measured(kind: str, events: int, runs: int) -> dict[str, float]:
    """Medians of a kind of the work."""
    with tempfile.TemporaryDirectory(prefix="onceflow-bench-") as folder, kafka() as (_, address):
        produce(address, kind, events)
        with embedded.redis() as store:  # one for all runs: the first touch of its memory is no part of the work
            results = [once(address, store.address, kind, Path(folder) / str(run)) for run in range(1 + runs)][1:]
    names = ("events", "events_per_s", "events_per_cpu_s", "states")
    return {name: statistics.median(result[name] for result in results) for name in names}


def main(events: int = EVENTS, runs: int = RUNS) -> None:
    os.sched_setaffinity(0, SERVERS)
    try:
        with kafka() as (name, _):
            print(f"stream: {events:,} card payments, six aggregates over 5m, 1h, 24h; {name}; median of {runs} runs")
        print(f"  {'':<8}{'events/s':>12}{'a core':>12}{'states':>10}{'of json':>9}")
        first: float | None = None
        for kind in KINDS:
            found = measured(kind, events, runs)
            first = first or found["events_per_s"]
            print(
                f"  {kind:<8}{found['events_per_s']:>12,.0f}{found['events_per_cpu_s']:>12,.0f}"
                f"{found['states']:>10,.0f}{found['events_per_s'] / first:>9.2f}"
            )
    finally:
        os.sched_setaffinity(0, CORES)
