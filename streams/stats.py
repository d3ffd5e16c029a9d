"""What a worker has done so far: counters and the freshness of what it wrote."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Upper bounds of the freshness histogram, ms.
BOUNDS = np.array([1, 2, 5, 10, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1_000, 2_000, 5_000, 10_000, 60_000])

#: Upper bounds of the histogram of seconds that a stage of one turn took.
SECONDS = np.array([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0])
#: Upper bounds of the histograms of records in a batch and of events in a turn.
SIZES = np.array([1, 10, 100, 1_000, 5_000, 10_000, 20_000, 50_000, 100_000])


def _counts(bounds: NDArray[Any]) -> NDArray[np.int64]:
    return np.zeros(len(bounds) + 1, np.int64)


@dataclass
class Stats:
    """Counters since the worker started. Times are in seconds, freshness in milliseconds."""

    events: int = 0
    chunks: int = 0
    predictions: int = 0
    unanswered: Counter[str] = field(default_factory=Counter)  # events without a prediction, by service
    states: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    late: int = 0
    pairs: int = 0
    unpaired: int = 0  # events that stopped waiting for a pair because too many waited
    repeats: int = 0
    fetched_bytes: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # by stage of the work
    first_fold: int | None = None  # when the first chunk had been folded, wall-clock time in ms
    first_at: float | None = None
    last_at: float | None = None
    cpu_first: float = 0.0  # of the whole process
    cpu_last: float = 0.0
    stream_time: int | None = None
    freshness: NDArray[np.int64] = field(default_factory=lambda: _counts(BOUNDS))
    freshness_sum: int = 0
    records: int = 0
    batches: NDArray[np.int64] = field(default_factory=lambda: _counts(SIZES))
    sizes: NDArray[np.int64] = field(default_factory=lambda: _counts(SIZES))
    stages: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def fetched(self, records: int, size: int) -> None:
        """Count a batch from Kafka, of so many records and bytes."""
        self.records += records
        self.fetched_bytes += size
        self.batches[np.searchsorted(SIZES, records)] += 1

    def looked_up(self, entities: int, missing: int) -> None:
        """Count the entities that a turn has to do with, and those of them whose states were not in memory."""
        self.cache_hits += entities - missing
        self.cache_misses += missing

    def turned(self, events: int) -> None:
        """Count a turn that was stored, and its events."""
        self.chunks += 1
        self.events += events
        self.sizes[np.searchsorted(SIZES, events)] += 1

    def add_joined(self, other: Stats) -> None:
        """Count what another worker did that made pairs for this one."""
        self.pairs += other.pairs
        self.unpaired += other.unpaired
        self.late += other.late
        self.rejected.update(other.rejected)

    def spent(self, stage: str, seconds: float) -> None:
        """Count what a stage of a turn took."""
        self.seconds[stage] += seconds
        self.stages.setdefault(stage, _counts(SECONDS))[np.searchsorted(SECONDS, seconds)] += 1

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time spent inside under `stage`."""
        begun = time.perf_counter()
        yield
        self.spent(stage, time.perf_counter() - begun)

    def fresh(self, ages: NDArray[np.int64]) -> None:
        """Count how old records were (ms since they reached Kafka) when their effect could be read."""
        self.freshness_sum += int(ages.sum())
        self.freshness += np.bincount(np.searchsorted(BOUNDS, ages), minlength=len(BOUNDS) + 1)

    def freshness_at(self, quantile: float) -> float | None:
        """Freshness (ms) at a quantile, by linear interpolation in its bucket; None before any event."""
        total = int(self.freshness.sum())
        if not total:
            return None
        ends = np.cumsum(self.freshness)
        bucket = int(np.searchsorted(ends, quantile * total))
        low = float(BOUNDS[bucket - 1]) if bucket else 0.0
        high = float(BOUNDS[min(bucket, len(BOUNDS) - 1)])
        before = int(ends[bucket - 1]) if bucket else 0
        return low + (high - low) * (quantile * total - before) / max(int(self.freshness[bucket]), 1)

    def events_per_s(self) -> float:
        """Events a second between the first and the last chunk."""
        if self.first_at is None or self.last_at is None or self.last_at <= self.first_at:
            return 0.0
        return self.events / (self.last_at - self.first_at)

    def events_per_cpu_s(self) -> float:
        """Events a second of CPU time, of all the process's threads."""
        spent = self.cpu_last - self.cpu_first
        return self.events / spent if spent > 0 else 0.0

    def summary(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "events": self.events,
            "events_per_s": round(self.events_per_s()),
            "events_per_cpu_s": round(self.events_per_cpu_s()),
            "predictions": self.predictions,
            "unanswered": dict(+self.unanswered),
            "states": self.states,
            "rejected": dict(self.rejected),
            "late": self.late,
            "pairs": self.pairs,
            "unpaired": self.unpaired,
            "repeats": self.repeats,
            "seconds": {stage: round(spent, 3) for stage, spent in self.seconds.items()},
            "first_fold": self.first_fold,
            "stream_time": self.stream_time,
            "freshness_p50_ms": self.freshness_at(0.5),
            "freshness_p99_ms": self.freshness_at(0.99),
        }
