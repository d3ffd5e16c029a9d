"""A worker that is told to stop: what it was at is stored, and its successor goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from onceflow import cli
from onceflow.produce import produce_frame
from tests.onceflow.projects import write_project

ROOT = Path(__file__).parents[2]
DEFINITIONS = """
from featurestore import Count, Entity, Source, view

payments = Source("{prefix}payments", schema={{"card": str, "at": "timestamp[ms]"}}, event_time="at", key="card")

@view(entity=Entity("card", key="card"), source=payments, windows=["lifetime"])
class Cards:
    payments = Count()
"""
EVENTS = 40_000
PATIENCE_SECONDS = 60


@pytest.fixture
def topic(tmp_path, embedded_pair, prefix, monkeypatch):
    servers = {"kafka": embedded_pair.kafka, "redis": embedded_pair.redis_url}
    options = {"group": prefix, "chunk": 500, "alone": True, "mirror": False}
    write_project(tmp_path, DEFINITIONS.format(prefix=prefix), **servers, **options)
    monkeypatch.chdir(tmp_path)
    return f"{prefix}payments"


def worker(*arguments):
    command = [sys.executable, "-m", "onceflow", "worker", "-m", "features.py", *arguments]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)


def asked(*arguments):
    return json.loads(CliRunner().invoke(cli.app, [*arguments, "-m", "features.py", "--json"]).stdout)


def stored():
    return asked("status")["views"][0]["next"]


def counted():
    return asked("get", "cards", "a")["features"]["payments_lifetime"]


def test_a_worker_told_to_stop_has_stored_what_it_folded_and_its_successor_folds_the_rest_once(topic, embedded_pair):
    now = time.time_ns() // 1_000_000
    produce_frame(embedded_pair.kafka, topic, pl.DataFrame({"card": ["a"] * EVENTS, "at": [now] * EVENTS}), ["card"], 1)
    with worker() as process:
        try:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not stored():
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
            process.send_signal(signal.SIGTERM)
            _, error = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert (process.returncode, error) == (0, "")
    assert counted() == stored() > 0
    with worker("--until-end") as successor:
        successor.communicate(timeout=PATIENCE_SECONDS)
    assert successor.returncode == 0
    assert counted() == stored() == EVENTS
