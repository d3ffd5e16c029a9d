"""A worker's second start: from the start of its process until the first events are folded, kernels compiled before.

Each start finds a new day of real flights on the embedded broker, and states of the days before in Redis. The first one
may compile, and is left out.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from examples.flights.data import topics
from onceflow import embedded
from onceflow.processes import running
from onceflow.produce import produce_frame

PARTITIONS = 2
RUNS = 3
DAY_MS = 86_400_000
KEYS = {"departures": "flight_id", "arrivals": "flight_id", "weather": "origin", "schedule": "flight_id"}
MODULES = {"views alone": "benchmarks.flight_views", "with a service": "examples.flights.features"}


def once(module: str, log: Path, environment: Mapping[str, str]) -> float:
    begun = time.time()
    with running(["worker", "--module", module, "--mode", "replay", "--until-end"], log, environment) as worker:
        worker.wait()
        return float(worker.result()["first_fold"]) / 1000 - begun


def starts(module: str, frames: Mapping[str, pl.DataFrame], folder: Path) -> list[float]:
    """Seconds of each start after the first."""
    first = min(int(frame["at"].to_numpy().min()) for frame in frames.values())
    with embedded.kafka() as kafka, embedded.redis() as redis:
        environment = {
            "ONCEFLOW_KAFKA": kafka.address,
            "ONCEFLOW_REDIS": f"redis://{redis.address}/0",
            "ONCEFLOW_DATA": str(folder / "data"),
        }
        seconds = []
        for day in range(RUNS + 1):
            begin = first + day * DAY_MS
            for topic, key in KEYS.items():
                events = frames[topic].filter(pl.col("at").is_between(begin, begin + DAY_MS - 1))
                produce_frame(kafka.address, topic, events, [key], PARTITIONS)
            seconds.append(once(module, folder / "worker.log", environment))
    return seconds[1:]


def main() -> None:
    frames = topics()
    print(f"start of a worker until its first fold, median of {RUNS} starts after the first")
    for what, module in MODULES.items():
        with tempfile.TemporaryDirectory(prefix="onceflow-bench-") as folder:
            print(f"  {what:<16}  {statistics.median(starts(module, frames, Path(folder))):>8.2f} s")
