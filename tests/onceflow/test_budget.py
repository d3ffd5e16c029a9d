"""A live worker whose model takes longer than its budget."""

from __future__ import annotations

import asyncio
import json
import secrets
from threading import Event

import pytest

from learner.models import CompiledLogistic
from onceflow.runtime import build_worker
from tests.streams.shop import history, produce, shop
from tests.streams.test_worker import beside
from tests.streams.working import messages, report_of, settings_of, work


@pytest.fixture
def gate(monkeypatch):
    """Models answer only while this is set."""
    gate, predict = Event(), CompiledLogistic.predict

    def waiting(model, rows):
        gate.wait()
        return predict(model, rows)

    monkeypatch.setattr(CompiledLogistic, "predict", waiting)
    gate.set()
    yield gate
    gate.set()


def predicted(kafka, definitions):
    """The messages of each service, each event's first one."""
    out = {}
    for name in definitions.services:
        for read in messages(kafka, f"predictions.{name}"):
            out.setdefault((name, read.key), json.loads(read.value))
    return list(out.values())


def test_features_go_on_while_a_model_is_stuck_and_predictions_when_it_is_free_again(pair, tmp_path, gate):
    tag = secrets.token_hex(4)
    definitions, records = shop(tag, budget="100ms"), history(tag, 200)
    settings = settings_of(pair, tag, tmp_path, mode="live")
    records = [record for record in records if not record.topic.startswith("returns")]  # labels are the learner's
    half = len(records) // 2
    produce(pair.kafka, tag, records[:half])
    worker = build_worker(definitions, settings)
    stats, made = worker.stats, []

    def goes_on():
        if stats.events < half:
            return False
        gate.set()
        if not made:
            made.append(dict(stats.unanswered))
            produce(pair.kafka, tag, records[half:])
        return stats.events == len(records)

    gate.clear()
    asyncio.run(beside(worker, settings, goes_on))
    orders = [sum(record.topic.startswith("orders") for record in part) for part in (records[:half], records)]
    assert made == [dict.fromkeys(definitions.services, orders[0])]
    answers = predicted(pair.kafka, definitions)
    assert len(answers) == 2 * orders[1] == stats.predictions + stats.unanswered.total()
    assert stats.predictions > 0
    for answer in answers:
        missing = {answer[name] is None for name in ("prediction", "probabilities", "model_version")}
        assert missing == {answer["error"] == "timeout"}
    report = report_of(definitions, settings, merged=False)
    assert report.good, report
    assert report.logged_features_compared > 0


def test_a_replay_takes_the_time_that_its_model_needs(embedded_pair, tmp_path):
    tag = secrets.token_hex(4)
    produce(embedded_pair.kafka, tag, history(tag, 50))
    worker = work(shop(tag, budget="1ms"), settings_of(embedded_pair, tag, tmp_path))
    assert worker.stats.predictions == 100
    assert not worker.stats.unanswered.total()
