"""`onceflow status`, on states, a topic and quarantined records of this machine."""

from __future__ import annotations

import asyncio
import json

import polars as pl
import pytest
from typer.testing import CliRunner

from featurestore.online import connect
from featurestore.stores import Commit
from onceflow import cli
from onceflow.commands.status import Sizes, measured
from onceflow.modules import load
from onceflow.produce import ensure_topics, produce_frame
from tests.onceflow.processes import hears, onceflow, until
from tests.onceflow.projects import write_project

DEFINITIONS = """
from featurestore import Count, Entity, Source, view

payments = Source("{prefix}payments", schema={{"card": str, "at": "timestamp[ms]"}}, event_time="at", key="card")

@view(entity=Entity("card", key="card"), source=payments, windows=["1h"])
class Cards:
    payments = Count()
"""
AT = 1_700_000_000_000
EVENTS = pl.DataFrame({"card": ["a", "b", "c"], "at": [AT] * 3})


@pytest.fixture
def view(tmp_path, pair, prefix, monkeypatch):
    write_project(tmp_path, DEFINITIONS.format(prefix=prefix), kafka=pair.kafka, redis=pair.redis_url)
    monkeypatch.chdir(tmp_path)
    view = load(str(tmp_path / "features.py")).views["cards"]
    yield view
    asyncio.run(_drop(pair.redis_url, view))


async def _store(url, view, upto):
    store = connect(url)
    at = (view.key, view.source.name, 0, "me")
    await store.claim(*at)
    await store.commit([Commit(*at, 0, upto, AT, [b"a", b"b"], [b"123", b"45"], first=True)])
    await store.close()


async def _drop(url, view):
    store = connect(url)
    await store.drop(view.key, view.source.name, 0)
    await store.close()


def status(*arguments):
    done = CliRunner().invoke(cli.app, ["status", "-m", "features.py", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_lag_is_what_kafka_holds_beyond_the_stored_offset(view, pair):
    topic = view.source.name
    ensure_topics(pair.kafka, {topic: 1})
    produce_frame(pair.kafka, topic, EVENTS, ["card"], 1)
    waiting = json.loads(status("--json"))["views"]
    assert [(line["next"], line["end"], line["lag"]) for line in waiting] == [(None, 3, 3)]

    asyncio.run(_store(pair.redis_url, view, 2))
    [line] = json.loads(status("--json", "--sizes"))["views"]
    place = {"view": "cards", "topic": topic, "partition": 0}
    assert line == place | {
        "next": 2,
        "end": 3,
        "lag": 1,
        "newest_event": AT,
        "unfinished": False,
        "owner": None,
        "sizes": {"states": 2, "bytes": 5, "sampled": False},
    }
    assert "2023-11-14T22:" in status()


def test_records_that_were_set_aside_are_counted(view, pair):
    topic = view.source.name
    ensure_topics(pair.kafka, {topic: 1, f"{topic}.dlq": 1})
    produce_frame(pair.kafka, f"{topic}.dlq", EVENTS[:2], ["card"], 1)
    assert json.loads(status("--json"))["set_aside"] == {f"{topic}.dlq": 2}
    assert f"2 records in {topic}.dlq" in status()


def test_a_topic_that_is_not_there_is_named(view):
    assert json.loads(status("--json")) == {"views": [], "workers": [], "set_aside": {}, "absent": [view.source.name]}
    assert "is not there yet" in status()


def test_a_backfill_that_is_still_writing_is_no_position(view, pair):
    ensure_topics(pair.kafka, {view.source.name: 1})
    asyncio.run(_store(pair.redis_url, view, -1))
    [line] = json.loads(status("--json"))["views"]
    assert (line["next"], line["newest_event"], line["unfinished"]) == (None, None, True)


async def _states(count):
    for number in range(count):
        yield b"%d" % number, b"12"


def test_what_has_more_states_than_are_looked_at_says_so():
    assert asyncio.run(measured(_states(3), most=3)) == Sizes(3, 6, sampled=False)
    assert asyncio.run(measured(_states(4), most=3)) == Sizes(3, 6, sampled=True)


def test_the_workers_of_the_group_are_shown_with_what_they_own(real_pair, tmp_path, prefix, monkeypatch):
    topic = f"{prefix}payments"
    settings = {"kafka": real_pair.kafka, "redis": real_pair.redis_url, "group": prefix, "log_format": "json"}
    write_project(tmp_path, DEFINITIONS.format(prefix=prefix), **settings)
    monkeypatch.chdir(tmp_path)
    ensure_topics(real_pair.kafka, {topic: 4})
    assert f"no worker of group {prefix}" in status()
    with onceflow("worker") as one, onceflow("worker") as other:
        names = sorted(json.loads(hears(worker, "starts").splitlines()[-1])["worker"] for worker in (one, other))
        until(lambda: sorted(map(len, owned(topic).values())) == [2, 2], one)
        shown, own = json.loads(status("--json")), owned(topic)
        text = status()
    assert sorted(own) == [each["worker"] for each in shown["workers"]] == names
    assert {line["partition"]: line["owner"] for line in shown["views"]} == {p: w for w, ps in own.items() for p in ps}
    assert all(name[:20] in text for name in names)


def owned(topic):
    workers = json.loads(status("--json"))["workers"]
    return {each["worker"]: each["partitions"].get(topic, []) for each in workers}
