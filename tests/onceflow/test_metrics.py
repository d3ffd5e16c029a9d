"""What a worker shows to Prometheus."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest

from onceflow.metrics import WorkerCollector
from streams.stats import Stats

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def shown(stats):
    registry = CollectorRegistry()
    registry.register(WorkerCollector(stats, []))
    return dict(line.rsplit(" ", 1) for line in generate_latest(registry).decode().splitlines() if line[0] != "#")


def test_stages_and_turns_are_histograms_with_sums():
    stats = Stats()
    for seconds, events in ((0.001, 1), (0.3, 11), (60.0, 1_000_000)):
        stats.spent("fold", seconds)
        stats.turned(events)
    lines = shown(stats)
    stage = {le: float(lines[f'onceflow_stage_seconds_bucket{{le="{le}",stage="fold"}}']) for le in ("0.001", "0.5")}
    assert stage == {"0.001": 1, "0.5": 2}
    assert float(lines['onceflow_stage_seconds_count{stage="fold"}']) == 3
    assert float(lines['onceflow_stage_seconds_sum{stage="fold"}']) == stats.seconds["fold"]
    turns = [float(lines[f'onceflow_turn_events_bucket{{le="{le}"}}']) for le in ("1", "10", "100", "100000", "+Inf")]
    assert turns == [1, 1, 2, 2, 3]
    assert float(lines["onceflow_turn_events_sum"]) == stats.events == 1_000_012


def test_every_metric_of_a_worker_is_documented():
    stats = Stats()
    stats.spent("fold", 0.1)
    stats.rejected["json"] += 1
    stats.fresh(np.array([3]))
    names = {re.sub(r"_(bucket|sum|count|created)$", "", line.split("{")[0]) for line in shown(stats)}
    assert names <= set(re.findall(r"^\| `(\w+)", PAGE, re.MULTILINE))
