"""What processes say: lines for people, or JSON for programs, in which no data can forge a line or tell a password."""

from __future__ import annotations

import json
import logging
import re
import signal
import threading
import time
import warnings

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import ConfigError
from onceflow.children import free_port
from onceflow.escaping import redacted
from onceflow.logs import Logs
from onceflow.produce import ensure_topics, produce_frame
from onceflow.settings import Settings
from tests.learner.live_logs import made, make_topics
from tests.onceflow.processes import PATIENCE_SECONDS, hears, onceflow, told_to_stop, until
from tests.onceflow.projects import write_project

HOSTILE = "a\r\n2026-01-01T00:00:00Z info    forged\x1b[2J\x00\u2028"
JSON, CONSOLE = Settings(log_format="json"), Settings()
LINE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z (debug|info|warning|error)\s")
DEFINITIONS = """
import polars as pl
from featurestore import Count, Entity, Source, col, view

hostile = pl.when(col("card").str.contains("forged")).then(col("card"))
payments = Source(
    "{prefix}payments", schema={{"card": str, "at": "timestamp[ms]"}}, event_time="at", key="card",
    derive={{"number": hostile.cast(int)}},
)

@view(entity=Entity("card", key="card"), source=payments, windows=["1h"])
class Logged:
    payments = Count()
"""


def said(capsys, settings, *events, level=logging.WARNING, **fields):
    with Logs(settings, **fields):
        for text, extra in events:
            logging.getLogger("streams.x").log(level, text, extra=extra)
    return capsys.readouterr().err


def test_a_line_of_json_has_what_the_code_said_and_the_fields_of_the_process(capsys):
    line = json.loads(said(capsys, JSON, ("taken", {"topic": "t", "offsets": {0: 5}}), process="worker"))
    assert line.pop("timestamp").endswith("Z")
    told = {"level": "warning", "event": "taken", "logger": "streams.x", "topic": "t", "offsets": {"0": 5}}
    assert line == told | {"process": "worker"}


def test_a_line_for_people_has_names_and_values(capsys):
    line = said(capsys, CONSOLE, ("taken", {"topic": "t", "offsets": {0: 5, 1: 7}, "why": "a b"}))
    assert line.split(" ", 1)[1] == 'warning taken  topic=t  offsets=0:5,1:7  why="a b"\n'


@pytest.mark.parametrize("settings", [JSON, CONSOLE])
def test_data_can_neither_forge_a_line_nor_steer_a_terminal(capsys, settings):
    text = said(capsys, settings, (HOSTILE, {"id": HOSTILE, HOSTILE: 1, "ids": [HOSTILE]}))
    assert text.endswith("\n")
    assert text[:-1].isprintable()


@pytest.mark.parametrize("settings", [JSON, CONSOLE])
def test_what_an_exception_says_begins_no_line(capsys, settings):
    with Logs(settings):
        logging.getLogger("serving.http").error("a request failed", exc_info=ValueError(HOSTILE))
    first, *rest = capsys.readouterr().err.splitlines()
    assert "a request failed" in first
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    assert "ValueError" in "".join([first, *rest])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at redis://me:pass@word@host:1/0 now", "at redis://me:***@host:1/0 now"),
        ("rediss://:pw@host", "rediss://:***@host"),
        ("https://user:pw@registry:8081", "https://user:***@registry:8081"),
        ("x?sentinel_username=a&sentinel_password=pw&db=1", "x?sentinel_username=a&sentinel_password=***&db=1"),
        ("redis://host:6379/0 and a@b", "redis://host:6379/0 and a@b"),
    ],
)
def test_passwords_are_left_out(text, shown):
    assert redacted(text) == shown


@given(st.text(st.characters(exclude_characters="/", exclude_categories=["Z", "C"]), min_size=1))
def test_no_password_of_an_address_is_told(password):
    assert redacted(f"redis://user:{password}@host:1/0") == "redis://user:***@host:1/0"


def test_no_password_is_told_wherever_it_stands(capsys):
    url = "redis://me:hidden@host"
    fields = {"redis": url, "error": ConfigError(f"no {url}"), "more": [url, {"at": url}]}
    assert "hidden" not in said(capsys, JSON, (f"at {url}", fields)) + said(capsys, CONSOLE, (f"at {url}", fields))


def test_a_level_hides_what_is_below_it(capsys):
    assert said(capsys, Settings(log_level="error"), ("quiet", {})) == ""
    assert "info" in said(capsys, CONSOLE, ("heard", {}), level=logging.INFO)
    assert said(capsys, CONSOLE, ("hidden", {}), level=logging.DEBUG) == ""


def test_warnings_and_threads_that_fail_are_lines_too(capsys):
    with warnings.catch_warnings(), Logs(JSON):
        warnings.simplefilter("always")
        warnings.warn("old", stacklevel=1)
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    warned, failed = map(json.loads, capsys.readouterr().err.splitlines())
    assert "old" in warned["event"]
    assert (failed["event"], "ZeroDivisionError" in failed["exception"]) == ("a thread failed", True)


@pytest.mark.parametrize(
    ("error", "code", "traced"), [(ConfigError("no such thing"), 2, False), (ZeroDivisionError("so"), 1, True)]
)
def test_in_json_an_error_that_ends_a_process_is_a_line(capsys, error, code, traced):
    with pytest.raises(SystemExit) as ended, Logs(JSON):
        raise error
    line = json.loads(capsys.readouterr().err)
    assert (ended.value.code, line["event"], line["error"]) == (code, "failed", str(error))
    assert ("exception" in line) == traced


@pytest.fixture
def topic(tmp_path, embedded_pair, prefix, monkeypatch):
    servers = {"kafka": embedded_pair.kafka, "redis": embedded_pair.redis_url}
    options = {"group": prefix, "log_format": "json", "alone": True, "mirror": False, "http_port": free_port()}
    write_project(tmp_path, DEFINITIONS.format(prefix=prefix), **servers, **options)
    monkeypatch.chdir(tmp_path)
    ensure_topics(embedded_pair.kafka, {f"{prefix}payments": 1})
    return f"{prefix}payments"


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_of_a_worker_is_json_also_about_hostile_records(topic, embedded_pair):
    now = time.time_ns() // 1_000_000
    produce_frame(embedded_pair.kafka, topic, pl.DataFrame({"card": [HOSTILE, "7"], "at": [now] * 2}), ["card"], 1)
    with onceflow("worker") as worker:
        heard = hears(worker, "refused")
        code, rest = told_to_stop(worker, signal.SIGTERM)
    lines = lines_of(heard + rest)
    assert code == 0
    events = ["the worker starts", "partitions taken on", "records refused", "partitions given away"]
    assert [line["event"] for line in lines] == [*events, "the worker has stopped"]
    assert {(line["process"], line["worker"]) for line in lines} == {("worker", lines[0]["worker"])}
    assert lines[1]["offsets"] == {"0": 0}
    refused = {"topic": topic, "partition": 0, "offset": 0, "reason": "derive", "records": 1}
    assert refused.items() <= lines[2].items()
    assert "forged" in lines[2]["detail"]


def test_every_line_of_a_server_and_of_run_is_json(topic, tmp_path):
    port = str(free_port())
    with onceflow("serve", "--port", port) as server:
        serving = hears(server, "serving")
        with onceflow("serve", "--port", port) as other:
            failed, code = other.communicate(timeout=PATIENCE_SECONDS)[1], other.returncode
        assert told_to_stop(server, signal.SIGTERM) == (0, "")
    assert lines_of(serving)[0]["address"] == f"http://127.0.0.1:{port}"
    assert (code, "cannot listen on" in lines_of(failed)[-1]["error"]) == (2, True)
    logs = tmp_path / ".onceflow" / "logs"
    with onceflow("run") as run:
        first = hears(run, "server run")
        until(
            lambda: "serving" in (logs / "serve.log").read_text() and "taken" in (logs / "worker.log").read_text(), run
        )
        code, rest = told_to_stop(run, signal.SIGTERM)
    assert (code, {line["process"] for line in lines_of(first + rest)}) == (0, {"run"})
    for name in ("worker", "serve"):
        assert {line["process"] for line in lines_of((logs / f"{name}.log").read_text())} == {name}


def test_every_line_of_a_learner_is_json(topic, tmp_path, prefix, embedded_pair):
    service = made(prefix)
    make_topics(embedded_pair.kafka, service)
    (tmp_path / "features.py").write_text(f"from tests.learner.live_logs import made\n\nlate = made({prefix!r})\n")
    with onceflow("learn") as learner:
        first = hears(learner, "learning")
        code, rest = told_to_stop(learner, signal.SIGTERM)
    assert code == 0
    assert [(line["process"], line["services"]) for line in lines_of(first + rest)] == [("learn", [service.name])]


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("command", ["worker", "serve"])
def test_no_process_tells_the_password_of_redis(topic, command, form, embedded_pair):
    redis = embedded_pair.redis_url.replace("redis://", "redis://me:hidden@")
    with onceflow(command, redis=redis, log_format=form) as process:
        if command == "worker":
            text, code = process.communicate(timeout=PATIENCE_SECONDS)[1], process.returncode
            assert (code, "refuses these credentials" in text) == (2, True)
        else:
            text = hears(process, "serving") + told_to_stop(process, signal.SIGTERM)[1]
    assert "hidden" not in text
    if form == "json":
        lines_of(text)
