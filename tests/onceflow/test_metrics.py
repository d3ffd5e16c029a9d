"""What a worker, a learner and a server show to Prometheus."""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from onceflow.children import free_port
from onceflow.metrics import LearnerCollector, WorkerCollector
from onceflow.produce import ensure_topics
from serving.metrics import Metrics
from streams.messages import Message
from streams.publisher import Publisher
from streams.stats import Stats
from tests.onceflow.processes import onceflow, until
from tests.onceflow.projects import write_project

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
DEFINITIONS = """
from featurestore import Count, Entity, Source, view

payments = Source("{prefix}payments", schema={{"card": str, "at": "timestamp[ms]"}}, event_time="at", key="card")

@view(entity=Entity("card", key="card"), source=payments, windows=["1h"])
class Shown:
    payments = Count()
"""
TYPE = re.compile(r"^# TYPE (\S+) (\w+)$", re.MULTILINE)


def text_of(collector):
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


def shown(stats):
    text = text_of(WorkerCollector(stats, [], dict))
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")


def documented(process):
    """By metric its kind and its labels, of one table of the page."""
    part = PAGE.split("## Metrics")[1].split(f"\nA {process}")[1].split("\nA ")[0].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)(?:\{(\S+)\})?` \| (\w+) \|", part, re.MULTILINE)
    return {name: (kind, set(labels.split(",")) - {""}) for name, labels, kind in rows}


def kinds(process, *prefixes):
    return {name: kind for name, (kind, _) in documented(process).items() if not name.startswith(prefixes)}


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


def test_freshness_is_in_seconds():
    stats = Stats()
    stats.fresh(np.array([3, 70_000]))
    lines = shown(stats)
    buckets = [float(lines[f'onceflow_freshness_seconds_bucket{{le="{le}"}}']) for le in ("0.002", "0.005", "+Inf")]
    assert buckets == [0, 1, 2]
    assert float(lines["onceflow_freshness_seconds_sum"]) == 70.003


def test_a_cache_hit_is_an_entity_that_needs_no_lookup():
    stats = Stats()
    stats.looked_up(10, 3)
    lines = shown(stats)
    assert float(lines["onceflow_state_cache_hits_total"]) == 7
    assert float(lines["onceflow_state_cache_misses_total"]) == 3


def test_the_page_has_all_metrics_of_a_learner_and_of_a_server():
    made = dict(TYPE.findall(Metrics().text().decode()))
    assert kinds("server") == {name: kind for name, kind in made.items() if not name.endswith("_created")}
    assert kinds("learner") == dict(TYPE.findall(text_of(LearnerCollector([]))))


@pytest.fixture
def topic(tmp_path, embedded_pair, prefix, monkeypatch):
    settings = {"kafka": embedded_pair.kafka, "redis": embedded_pair.redis_url, "group": prefix}
    write_project(tmp_path, DEFINITIONS.format(prefix=prefix), **settings)
    monkeypatch.chdir(tmp_path)
    ensure_topics(embedded_pair.kafka, {f"{prefix}payments": 2})
    return f"{prefix}payments"


def test_what_a_worker_shows_is_what_the_page_says(topic, embedded_pair):
    now, port = time.time_ns() // 1_000_000, free_port()
    values = [json.dumps({"card": card, "at": at}).encode() for card, at in (("a", now), ("b", now), ("a", now - 9**9))]
    values.append(b"{")
    publisher = Publisher(embedded_pair.kafka)
    publisher.send([Message(topic, 0, value, None) for value in values])
    asyncio.run(publisher.flush())

    def scraped():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return text, samples, {(sample.name, *sorted(sample.labels.values())): sample.value for sample in samples}

    with onceflow("worker", metrics_port=str(port), alone="true") as worker:
        until(lambda: listens(scraped) and scraped()[2].get(("onceflow_late_total",)), worker)
        until(lambda: scraped()[2].get(("onceflow_events_total",)) == 3, worker)
        text, samples, numbers = scraped()
    page = documented("worker") | {k: v for k, v in documented("learner").items() if k.startswith("onceflow_service_")}
    assert {name: kind for name, (kind, _) in page.items()} == dict(TYPE.findall(text))
    for sample in samples:
        name = re.sub(r"_(bucket|count|sum)$", "", sample.name)
        assert sample.labels.keys() - {"le"} == page[name][1], name
    assert numbers["onceflow_rejected_total", "malformed"] == 1
    assert numbers["onceflow_fetched_bytes_total",] == sum(map(len, values))
    assert numbers["onceflow_batch_records_sum",] == len(values)
    assert numbers["onceflow_lag_records", "0", topic] == numbers["onceflow_lag_records", "1", topic] == 0
    assert numbers["onceflow_state_cache_hits_total",] == 2
    assert numbers["onceflow_stream_timestamp_seconds",] == now / 1000
    assert numbers["onceflow_freshness_seconds_count",] == 3


def listens(ask):
    try:
        return ask()
    except OSError:
        return None
