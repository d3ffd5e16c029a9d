"""The stream part on real flights: from Kafka through ten views to states in Redis, by one worker.

The embedded broker and Redis share the machine. Rates count events (each is folded into three views and more, on
average); the rate a core divides by the worker's own CPU time, from its first chunk to its last.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from examples.flights.data import topics
from onceflow import embedded
from onceflow.processes import running
from onceflow.produce import produce_frame

PARTITIONS = 2
RUNS = 3
KEYS = {"departures": "flight_id", "arrivals": "flight_id", "weather": "origin"}


def once(folder: Path) -> dict[str, Any]:
    with embedded.kafka() as kafka, embedded.redis() as redis:
        frames = topics()
        for topic, key in KEYS.items():
            produce_frame(kafka.address, topic, frames[topic], [key], PARTITIONS)
        environment = {
            "ONCEFLOW_KAFKA": kafka.address,
            "ONCEFLOW_REDIS": f"redis://{redis.address}/0",
            "ONCEFLOW_DATA": str(folder / "data"),
            "ONCEFLOW_PARTITIONS": str(PARTITIONS),
            "ONCEFLOW_MIRROR": "false",
            "ONCEFLOW_ARCHIVE": "false",
        }
        arguments = ["worker", "--module", "benchmarks.flight_views", "--mode", "replay", "--until-end"]
        with running(arguments, folder / "worker.log", environment) as worker:
            worker.wait()
            return worker.result()


def main() -> None:
    results = []
    for _ in range(RUNS + 1):  # the first compiles
        with tempfile.TemporaryDirectory(prefix="onceflow-bench-") as folder:
            results.append(once(Path(folder)))
    counted = results[1:]
    wall = statistics.median(result["events_per_s"] for result in counted)
    core = statistics.median(result["events_per_cpu_s"] for result in counted)
    print(f"stream: {counted[0]['events']:,} events, {counted[0]['states']:,} states written, median of {RUNS} runs")
    print(f"  events/s          {wall:>10,.0f}")
    print(f"  events/s a core   {core:>10,.0f}")
    for stage in counted[0]["seconds"]:
        print(f"  {stage:<16}  {statistics.median(r['seconds'][stage] for r in counted):>8.2f} s")
