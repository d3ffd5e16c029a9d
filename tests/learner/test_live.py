import dataclasses
import logging
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import polars as pl
import pytest

from featurestore.errors import ConfigError, FormatError, GapError
from featurestore.predictions import TIMEOUT
from learner import snapshot
from learner.inputs import Options
from learner.live import LiveLearner, alone, run
from learner.loop import ServiceLoop
from learner.store import ModelStore
from onceflow import embedded
from tests.learner import live_logs
from tests.learner.live_logs import (
    bits,
    expected_loop,
    label_records,
    logs,
    made,
    make_topics,
    prediction_records,
    send,
)

ROOT = Path(__file__).parents[2]
REPLAY = Options(replay=True, until_end=True)
HOUR = 3_600_000


def learner(folder, service, options=REPLAY):
    return LiveLearner(service, folder, ModelStore(folder / "models"), options)


def replay(kafka, folder, service, options=REPLAY):
    """A replay until the end; what is in its snapshot then."""
    one = learner(folder, service, options)
    run([one], kafka, Event())
    return one


def sent(kafka, service, predictions, labels):
    make_topics(kafka, service)
    asked, told = live_logs.topics_of(service)
    send(kafka, asked, prediction_records(service, predictions))
    send(kafka, told, label_records(labels))


class Running(logging.Handler):
    """A live learner in a thread; `said` is what it logs."""

    def __init__(self, kafka, one):
        super().__init__(logging.INFO)
        self.one, self.said, self.failure = one, [], None
        self._stop = Event()
        self._thread = Thread(target=self._run, args=(kafka,))

    def _run(self, kafka):
        try:
            run([self.one], kafka, self._stop)
        except Exception as error:  # noqa: BLE001 - handed to the test
            self.failure = error

    def emit(self, record):
        self.said.append(record)

    def start(self):
        logger = logging.getLogger("learner")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        self._thread.start()

    def __enter__(self):
        if not self._thread.is_alive():
            self.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(20)
        logging.getLogger("learner").removeHandler(self)
        assert not self._thread.is_alive()

    def until(self, condition, seconds=20):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (self.one.summary, self.said, self.failure)
            time.sleep(0.02)


def live(**changes):
    return Options(every=0.05, publish=0.05, **changes)


@pytest.mark.parametrize("chunk", [20_000, 37])
def test_replay_equals_one_step_over_the_merged_logs(pair, prefix, tmp_path, chunk):
    service = made(prefix)
    predictions, labels = logs(2000, service)
    sent(pair.kafka, service, predictions, labels)
    one = replay(pair.kafka, tmp_path, service, dataclasses.replace(REPLAY, chunk=chunk, buffer=500))
    expected = expected_loop(service, predictions, labels)
    assert bits(one.loop) == bits(expected)
    assert one.summary == expected.summary()
    assert one.summary["labels_joined"] > 1000
    kept = snapshot.read(tmp_path / f"{service.name}.learner")
    assert snapshot.encode(kept["learner"]) == bits(expected)


def test_events_that_the_model_did_not_answer_in_time_are_learnt_and_not_scored(embedded_pair, prefix, tmp_path):
    service = made(prefix)
    predictions, labels = logs(600, service)
    late = pl.col("_offset") % 3 == 0
    answers = pl.when(~late).then(pl.col("prediction", "probability", "model_version"))
    predictions = predictions.with_columns(answers, pl.when(late).then(pl.lit(TIMEOUT)).alias("_error"))
    sent(embedded_pair.kafka, service, predictions, labels)
    one = replay(embedded_pair.kafka, tmp_path, service)
    assert bits(one.loop) == bits(expected_loop(service, predictions, labels))
    assert not any(one.inputs.skipped.values())
    assert 0 < one.summary["labels_unscored"] < one.summary["labels_joined"]


def test_more_events_of_one_time_than_the_buffer_takes_do_not_stop_a_replay(embedded_pair, prefix, tmp_path):
    service = made(prefix)
    predictions, labels = logs(1500, service)
    labels = labels.with_columns(pl.lit(30 * HOUR, pl.Int64).alias("at"))
    sent(embedded_pair.kafka, service, predictions, labels)
    one = replay(embedded_pair.kafka, tmp_path, service, dataclasses.replace(REPLAY, buffer=10))
    assert bits(one.loop) == bits(expected_loop(service, predictions, labels))


def test_learner_goes_on_from_its_snapshot_and_learns_nothing_twice(embedded_pair, prefix, tmp_path):
    service = made(prefix)
    predictions, labels = logs(1500, service)
    whole = expected_loop(service, predictions, labels)
    first = predictions["_time"] < 8 * HOUR  # of every partition, predictions before others, roughly
    early = labels["at"] < 8 * HOUR
    make_topics(embedded_pair.kafka, service)
    asked, told = live_logs.topics_of(service)
    records = prediction_records(service, predictions), label_records(labels)
    send(embedded_pair.kafka, asked, records[0][: int(first.sum())])
    send(embedded_pair.kafka, told, records[1][: int(early.sum())])
    replaying = dataclasses.replace(REPLAY, until_end=False)  # waits at the ends: what is certain is taken, no more
    with Running(embedded_pair.kafka, learner(tmp_path, service, replaying)) as running:
        running.until(lambda: running.one.summary["labels_joined"] > 10)
    send(embedded_pair.kafka, asked, records[0][int(first.sum()) :])
    send(embedded_pair.kafka, told, records[1][int(early.sum()) :])
    one = replay(embedded_pair.kafka, tmp_path, service)
    assert bits(one.loop) == bits(whole)
    again = replay(embedded_pair.kafka, tmp_path, service)
    assert bits(again.loop) == bits(whole)


@pytest.mark.slow
def test_learner_killed_at_any_moment_ends_as_if_it_never_was(embedded_pair, prefix, tmp_path):
    service = made(prefix)
    predictions, labels = logs(4000, service)
    sent(embedded_pair.kafka, service, predictions, labels)
    smooth, folder = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed = replay(embedded_pair.kafka, smooth, service)
    chance, file = random.Random(7), f"{service.name}.learner"
    with members(embedded_pair.kafka, folder, prefix) as (start, ended):
        for kill in range(10):
            process, before = start(), written(folder / file)
            while written(folder / file) == before:  # until it has come further than the one before
                time.sleep(0.001)
            time.sleep(chance.uniform(0.0, 0.15))
            os.kill(process, signal.SIGKILL)
            assert ended() == -signal.SIGKILL, f"it was done before kill {kill}: slow it down"
        kept = ServiceLoop.load(service, snapshot.read(folder / file)["learner"]).summary()
        assert 0 < kept["labels_joined"] < undisturbed.summary["labels_joined"]
        start()
        assert ended() == 0
    one = learner(folder, service)
    assert bits(one.loop) == bits(undisturbed.loop) == bits(expected_loop(service, predictions, labels))
    assert one.summary == undisturbed.summary
    assert (folder / file).read_bytes() == (smooth / file).read_bytes()
    model, _ = ModelStore(folder / "models").load(service.name)
    assert model.digest() == undisturbed.summary["model_digest"]


def written(file):
    return file.stat().st_ino if file.exists() else None


@contextmanager
def members(kafka, folder, prefix):
    """How to start a learner process, and how to wait for its exit code."""
    command = [sys.executable, "-m", "tests.learner.live_member", kafka, str(folder), prefix]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes) as parent:

        def start():
            parent.stdin.write("\n")
            parent.stdin.flush()
            return int(parent.stdout.readline())

        try:
            yield start, lambda: int(parent.stdout.readline())
        finally:
            parent.kill()


def test_live_learner_learns_publishes_and_says_where_it_stands(pair, prefix, tmp_path):
    service = made(prefix)
    predictions, labels = logs(600, service)
    expected = expected_loop(service, predictions, labels).summary()
    sent(pair.kafka, service, predictions, labels)
    with Running(pair.kafka, learner(tmp_path, service, live())) as running:
        running.until(lambda: running.one.summary["predictions"] == expected["predictions"])
        running.until(lambda: running.one.published is not None)
    assert running.failure is None
    assert [(record.getMessage(), record.services) for record in running.said] == [("learning", [service.name])]
    summary = running.one.summary
    assert summary["labels_joined"] >= expected["labels_joined"] > 100
    model, meta = ModelStore(tmp_path / "models").load(service.name)
    assert model.digest() == summary["model_digest"]
    asked, told = live_logs.topics_of(service)
    ends = [
        [t, p, len(f.filter(pl.col("_partition") == p))]
        for t, f in ((asked, predictions), (told, labels))
        for p in range(3)
    ]
    assert meta["lineage"] == {"views": [view.key for view in service.views], "positions": sorted(ends)}


def test_live_labels_that_overtake_their_predictions_wait_for_them(embedded_pair, prefix, tmp_path):
    service = made(prefix)
    predictions, labels = logs(300, service)
    predictions = predictions.unique("id", keep="first", maintain_order=True)
    labels = labels.unique("flight", keep="first", maintain_order=True)
    predictions = predictions.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).over("_partition").alias("_offset"))
    make_topics(embedded_pair.kafka, service)
    asked, told = live_logs.topics_of(service)
    send(embedded_pair.kafka, told, label_records(labels))
    with Running(embedded_pair.kafka, learner(tmp_path, service, live())) as running:
        running.until(lambda: running.one.summary["labels_held"] == len(labels))
    with Running(embedded_pair.kafka, learner(tmp_path, service, live())) as running:  # the held ones are kept, too
        send(embedded_pair.kafka, asked, prediction_records(service, predictions))
        running.until(lambda: running.one.summary["predictions"] == len(predictions))
    waits = labels.join(predictions, left_on="flight", right_on="id").select(pl.col("at") - pl.col("_time")).to_series()
    summary = running.one.summary
    assert summary["labels_joined"] == waits.is_between(0, 36 * HOUR).sum() > 100
    assert summary["labels_joined"] + summary["labels_held"] + summary["labels_unmatched"] == len(labels)


def test_what_is_no_label_and_no_prediction_is_skipped_and_counted(embedded_pair, prefix, tmp_path):
    service = made(prefix)
    predictions, labels = logs(400, service)
    expected = expected_loop(service, predictions, labels)
    make_topics(embedded_pair.kafka, service)
    asked, told = live_logs.topics_of(service)
    good, truth = prediction_records(service, predictions), label_records(labels)
    again = [record for at in (100, 250) for record in good[at - 60 : at]]  # a worker that died sends some again
    odd = [(0, b"{}"), (1, b"\xff"), (2, None), (0, good[0][1].replace(b'"true":', b'"true":7'))]
    send(embedded_pair.kafka, asked, good[:100] + again[:60] + odd + good[100:250] + again[60:] + good[250:])
    future = (1, b'{"flight": "flight 1", "origin": "JFK", "at": 253402300799999, "delay": 3}')
    send(embedded_pair.kafka, told, [(0, b"no"), future, *truth[:50], (2, b'{"flight": "x"}'), *truth[50:], (2, None)])
    one = replay(embedded_pair.kafka, tmp_path, service)
    assert bits(one.loop) == bits(expected)
    skipped = {key: count for key, count in one.inputs.skipped.items() if count}
    assert skipped == {
        (asked, "repeated"): 120,
        (asked, "malformed"): 4,
        (told, "malformed"): 1,
        (told, "future"): 1,
        (told, "missing"): 1,
        (told, "tombstone"): 1,
    }


def test_snapshot_that_cannot_be_used_is_refused_and_left_alone(prefix, tmp_path):
    service = made(prefix)
    file = tmp_path / f"{service.name}.learner"
    for content, why in (
        (b"something else", "was not written by onceflow's learner"),
        (snapshot.encode({"places": []})[:-1], "torn"),
        (bits(ServiceLoop(service)), "no snapshot of a learner process"),
        (snapshot.encode({"learner": ServiceLoop(made("other-")).dump(), "places": []}), "was made with another name"),
    ):
        file.write_bytes(content)
        with pytest.raises(FormatError, match=why):
            learner(tmp_path, service)
        assert file.read_bytes() == content


def test_topic_made_anew_is_told_from_one_that_is_silent(pair, prefix, tmp_path):
    service = made(prefix)
    make_topics(pair.kafka, service)
    told = service.label.source.name
    payload = {"learner": ServiceLoop(service).dump(), "places": [[told, 0, 10, None, 0]]}
    snapshot.write(tmp_path / f"{service.name}.learner", payload)
    with Running(pair.kafka, learner(tmp_path, service, live())) as running:
        running.until(lambda: running.failure is not None)
    assert isinstance(running.failure, GapError)
    assert f"{told}[0] does not hold" in str(running.failure)
    payload["places"] = [[told, 7, 10, None, 0]]
    snapshot.write(tmp_path / f"{service.name}.learner", payload)
    with pytest.raises(GapError, match=r"\[7\] is gone"):
        run([learner(tmp_path, service)], pair.kafka, Event())


def test_there_is_one_learner_a_project(tmp_path):
    with alone(tmp_path), pytest.raises(ConfigError, match="another learner runs"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def test_topics_that_are_not_there_are_waited_for(embedded_pair, prefix, tmp_path):
    service = made(prefix)
    with Running(embedded_pair.kafka, learner(tmp_path, service, live())) as running:
        running.until(lambda: running.said)
        assert running.said[0].getMessage().startswith("waiting for topics")
        assert running.said[0].topics == [f"predictions.{service.name}", service.label.source.name]
        time.sleep(0.7)
        make_topics(embedded_pair.kafka, service)
        running.until(lambda: len(running.said) == 2)
    assert running.said[1].getMessage() == "learning"


def test_stop_ends_a_learner_that_waits_for_kafka(prefix, tmp_path):
    service = made(prefix)
    with Running("127.0.0.1:9", learner(tmp_path, service, live())) as running:
        running.until(lambda: running.said)
    assert len(running.said) == 1
    assert running.said[0].getMessage().startswith("cannot reach Kafka, trying again")
    assert running.said[0].kafka == "127.0.0.1:9"
    assert not (tmp_path / f"{service.name}.learner").exists()


def test_kafka_that_goes_away_is_told_once_and_waited_for(prefix, tmp_path):
    service = made(prefix)
    with embedded.kafka() as broker:
        make_topics(broker.address, service)
        running = Running(broker.address, learner(tmp_path, service, live()))
        running.start()
        running.until(lambda: running.one.lag)
    with running:
        running.until(lambda: len(running.said) == 2)
        time.sleep(1.5)
        assert running.failure is None
    assert [record.getMessage() for record in running.said] == ["learning", "lost Kafka, trying again"]
