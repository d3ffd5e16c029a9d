"""Processes that are told to stop: what they were at is stored, and a successor goes on from there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from threading import Event, Thread

import httpx
import polars as pl
import psutil
import pytest
from typer.testing import CliRunner

from onceflow import cli, embedded
from onceflow.children import free_port
from onceflow.produce import ensure_topics, produce_frame
from tests.onceflow.processes import PATIENCE_SECONDS, ROOT, hears, onceflow, told_to_stop, until
from tests.onceflow.projects import write_project
from tests.onceflow.test_embedded import gone

DEFINITIONS = """
from featurestore import Count, Entity, Source, view

payments = Source("{prefix}payments", schema={{"card": str, "at": "timestamp[ms]"}}, event_time="at", key="card")

@view(entity=Entity("card", key="card"), source=payments, windows=["lifetime"])
class Stopped:
    payments = Count()
"""
EVENTS, PARTITIONS = 20_000, 3
CARDS = "abcdefgh"
SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def topic(tmp_path, embedded_pair, prefix, monkeypatch):
    servers = {"kafka": embedded_pair.kafka, "redis": embedded_pair.redis_url}
    options = {"group": prefix, "chunk": 500, "mirror": False, "http_port": free_port()}
    write_project(tmp_path, DEFINITIONS.format(prefix=prefix), **servers, **options)
    monkeypatch.chdir(tmp_path)
    ensure_topics(embedded_pair.kafka, {f"{prefix}payments": PARTITIONS})
    return f"{prefix}payments"


def asked(*arguments):
    return json.loads(CliRunner().invoke(cli.app, [*arguments, "-m", "features.py", "--json"]).stdout)


def stored():
    """How many events of the topic lie below the stored offsets."""
    return sum(line["next"] or 0 for line in asked("status")["views"])


def counted():
    """How many events have been folded into the features."""
    return sum(found["payments_lifetime"] for found in (asked("get", "stopped", card)["features"] for card in CARDS))


def send(kafka, topic, count=EVENTS):
    now = time.time_ns() // 1_000_000
    cards = [CARDS[at % len(CARDS)] for at in range(count)]
    produce_frame(kafka, topic, pl.DataFrame({"card": cards, "at": [now] * count}), ["card"], PARTITIONS)


@pytest.fixture
def load(embedded_pair, topic):
    """Events that keep coming; calling it ends them, and returns how many there were."""
    stop, sent = Event(), []

    def produce():
        while not stop.is_set():
            send(embedded_pair.kafka, topic, 2_000)
            sent.append(2_000)

    thread = Thread(target=produce)
    thread.start()

    def end():
        stop.set()
        thread.join()
        return sum(sent)

    yield end
    end()


def takes_the_rest_once(total):
    before = stored()
    assert counted() == before > 0
    with onceflow("worker", "--until-end", alone="true") as successor:
        out, error = successor.communicate(timeout=PATIENCE_SECONDS)
    assert successor.returncode == 0, error
    assert json.loads(out)["events"] == total - before  # nothing is folded again
    assert counted() == stored() == total


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("alone", ["false", "true"])
def test_a_worker_under_load_that_is_told_to_stop_has_stored_what_it_folded(load, number, alone):
    with onceflow("worker", alone=alone) as worker:
        until(stored, worker)
        code, error = told_to_stop(worker, number)
    assert code == 0
    assert error.splitlines()[-1].split("info    ")[1].startswith("the worker has stopped")
    takes_the_rest_once(load())


@pytest.mark.parametrize("number", SIGNALS)
def test_run_under_load_that_is_told_to_stop_stops_its_processes_in_order(load, number, tmp_path):
    with onceflow("run", alone="true") as run:
        until(stored, run)
        children = [child.pid for child in psutil.Process(run.pid).children(recursive=True)]
        code, error = told_to_stop(run, number)
    assert gone(children)
    assert code == 0, error
    log = (tmp_path / ".onceflow" / "logs" / "worker.log").read_text()
    assert "the worker has stopped" in log.splitlines()[-1]
    assert set(re.findall(r"Z (\w+)", log)) == {"info"}
    takes_the_rest_once(load())


@pytest.mark.parametrize("number", SIGNALS)
def test_a_server_under_load_that_is_told_to_stop_ends_well(topic, embedded_pair, number):
    body = {"features": ["stopped:payments_lifetime"], "entities": {"card": list(CARDS)}}
    port, answers = free_port(), []

    def ask():
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client, suppress(httpx.HTTPError):
            while True:
                answers.append(client.post("/get-online-features", json=body).status_code)

    with onceflow("serve", "--port", str(port)) as server:
        server.stderr.readline()
        clients = [Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        until(lambda: len(answers) > 50, server)
        code, error = told_to_stop(server, number)
        for client in clients:
            client.join()
    assert (code, error) == (0, "")
    assert set(answers) == {200}


TOLD = """
import os, signal, time
from onceflow.stopping import ends_when_told

def told():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)  # the handler raises here

class Slow:
    def __del__(self):
        told()

with ends_when_told():
"""
IN_A_DESTRUCTOR = """
    Slow()
    time.sleep(60)
"""
WHERE_ALL_IS_CAUGHT = """
    try:
        told()
    except BaseException:
        pass
    time.sleep(60)
"""
TWICE_WHERE_ALL_IS_CAUGHT = WHERE_ALL_IS_CAUGHT.replace("time.sleep(60)", "") + WHERE_ALL_IS_CAUGHT
CLOSING_SLOWLY = """
    try:
        told()
    finally:
        time.sleep(0.5)
        print("closed")
"""
SWALLOWED = [IN_A_DESTRUCTOR, WHERE_ALL_IS_CAUGHT, TWICE_WHERE_ALL_IS_CAUGHT]


def ended(script):
    command = [sys.executable, "-c", TOLD + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("script", SWALLOWED, ids=["destructor", "caught", "caught-twice"])
def test_a_process_that_is_told_to_stop_where_errors_are_ignored_stops_all_the_same(script):
    assert ended(script) == (0, "", "")


def test_a_process_that_is_told_to_stop_closes_what_is_open_undisturbed():
    assert ended(CLOSING_SLOWLY) == (0, "closed\n", "")


def test_a_process_that_is_told_to_stop_twice_ends_at_once():
    closing = CLOSING_SLOWLY.replace("time.sleep(0.5)", "told()")
    assert ended(closing) == (-signal.SIGTERM, "", "")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("missing", ["kafka", "redis"])
@pytest.mark.parametrize("command", ["worker", "serve"])
def test_what_waits_for_a_server_stops_when_told(topic, number, missing, command):
    away = {"kafka": "127.0.0.1:9", "redis": "redis://127.0.0.1:9/0"}[missing]
    with onceflow(command, **{missing: away}) as process:
        process.stderr.readline() if command == "worker" else time.sleep(1)
        code, error = told_to_stop(process, number)
    assert code == 0, error
    assert "Traceback" not in error


@pytest.fixture
def own(tmp_path, topic, monkeypatch):
    """Kafka and Redis for one test, to be lost in it."""
    with embedded.kafka() as kafka, embedded.redis() as redis:
        monkeypatch.setenv("ONCEFLOW_KAFKA", kafka.address)
        monkeypatch.setenv("ONCEFLOW_REDIS", f"redis://{redis.address}/0")
        yield kafka, redis


def test_a_worker_that_has_lost_kafka_stops_when_told(own, topic):
    kafka, _ = own
    send(kafka.address, topic)
    with onceflow("worker") as worker:
        until(stored, worker)
        os.kill(kafka.pid, signal.SIGKILL)
        hears(worker, "cannot reach Kafka")
        assert told_to_stop(worker, signal.SIGTERM)[0] == 0


def test_a_worker_that_has_lost_redis_says_when_told_to_stop_that_work_is_left(own, topic):
    kafka, redis = own
    send(kafka.address, topic)
    with onceflow("worker") as worker:
        until(stored, worker)
        os.kill(redis.pid, signal.SIGKILL)
        send(kafka.address, topic)
        hears(worker, "cannot reach Redis")
        code, error = told_to_stop(worker, signal.SIGTERM)
    assert (code, "could not store what was under way" in error) == (1, True)
