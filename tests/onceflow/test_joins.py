from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import redis
from typer.testing import CliRunner

from onceflow import cli
from onceflow.modules import load
from tests.streams.working import table

DEFINITIONS = """
from featurestore import Count, Entity, Source, view

payments = Source(
    "{prefix}payments", schema={{"card": str, "amount": float, "at": "timestamp[ms]"}}, event_time="at", key="card"
)
logins = Source(
    "{prefix}logins", schema={{"card": str, "device": str, "at": "timestamp[ms]"}}, event_time="at", key="card"
)

@view(entity=Entity("card", key="card"), source=payments.join(logins, on="card", within="10m"), windows=["1h"])
class Meetings:
    n = Count()
"""
AT = 1_700_000_000_000


@pytest.fixture
def names(tmp_path, embedded_pair, prefix, monkeypatch):
    (tmp_path / "features.py").write_text(DEFINITIONS.format(prefix=prefix))
    settings = {"kafka": embedded_pair.kafka, "redis": embedded_pair.redis_url, "mode": "replay", "group": prefix}
    (tmp_path / "onceflow.toml").write_text("".join(f'{name} = "{value}"\n' for name, value in settings.items()))
    monkeypatch.chdir(tmp_path)
    return [f"{prefix}payments", f"{prefix}logins", f"{prefix}payments.{prefix}logins"]


def run(*arguments, code=0):
    done = CliRunner().invoke(cli.app, list(arguments))
    assert done.exit_code == code, done.output
    return done.output


def produce(topic, *events):
    with open("events.jsonl", "w") as file:  # noqa: PTH123 - in the directory of the test
        file.writelines(json.dumps(event) + "\n" for event in events)
    return ["produce", topic, "--from", "events.jsonl", "-m", "features.py"]


def test_a_modules_sources_are_those_that_are_joined_and_then_the_join(names):
    assert list(load("features.py").sources) == names


def test_check_says_what_a_source_is_joined_of(names):
    assert f"pairs of {names[0]} and {names[1]} within 10m, made by a worker" in run("check", "-m", "features.py")
    sources = json.loads(run("check", "-m", "features.py", "--json"))["sources"]
    assert [source["joined"] for source in sources] == [None, None, {"of": names[:2], "within": "10m"}]


def test_pairs_are_not_produced_by_hand(names):
    refused = run(*produce(names[2], {"card": "a"}), code=2)
    assert "holds the pairs that a worker makes" in refused
    assert "produce events to those" in " ".join(refused.split())


def test_a_worker_joins_what_was_produced_and_status_shows_how_far_it_came(names):
    run(*produce(names[0], *({"card": "a", "amount": 1.5, "at": AT + at} for at in range(3)), {"card": "b", "at": AT}))
    run(*produce(names[1], {"card": "a", "device": "d", "at": AT + 5}))
    summary = json.loads(run("worker", "-m", "features.py", "--until-end").splitlines()[-1])
    assert summary["pairs"] == 3
    lines = json.loads(run("status", "-m", "features.py", "--json"))["views"]
    taken = {}
    for line in lines:
        taken[line["view"], line["topic"]] = taken.get((line["view"], line["topic"]), 0) + (line["next"] or 0)
        assert line["lag"] == 0
    join = f"join {names[2]}"
    assert taken == {("meetings", names[2]): 3, (join, names[0]): 4, (join, names[1]): 1}
    assert json.loads(run("get", "meetings", "a", "-m", "features.py", "--json"))["features"] == {"n_1h": 3}
    assert "0 differ" in run("verify", "-m", "features.py")


def test_a_backfill_of_archived_pairs_gives_the_rows_and_the_states_of_the_stream(names, embedded_pair):
    run(*produce(names[0], *({"card": card, "amount": 1.5, "at": AT + at} for at in range(3) for card in "ab")))
    run(*produce(names[1], {"card": "a", "device": "d", "at": AT + 5}, {"card": "b", "device": "d", "at": AT + 6}))
    run("worker", "-m", "features.py", "--until-end")
    history = ["backfill", "-m", "features.py", "--view", "meetings", "--events", ".onceflow/events"]
    run(*history, "--out", "out")
    rows = pl.read_parquet("out/part-*.parquet").sort("_partition", "_offset")
    assert rows.equals(table(Path(".onceflow/features/meetings")).select(rows.columns))
    with redis.Redis.from_url(embedded_pair.redis_url) as client:
        client.delete(*client.scan_iter(match=f"*{names[2]}:*meetings@*", count=10_000))
    run(*history, "--online")
    run(*produce(names[1], {"card": "a", "device": "d", "at": AT + 7}))
    run("worker", "-m", "features.py", "--until-end")
    assert json.loads(run("get", "meetings", "a", "-m", "features.py", "--json"))["features"] == {"n_1h": 6}
    assert "0 differ" in run("verify", "-m", "features.py")


def test_an_entity_of_pairs_is_erased_from_what_is_joined_too(names):
    with open("onceflow.toml", "a") as file:  # noqa: PTH123 - in the directory of the test
        file.write("partitions = 1\n")
    run(*produce(names[0], {"card": "a", "amount": 1.5, "at": AT}, {"card": "b", "amount": 1.5, "at": AT}))
    run(*produce(names[1], {"card": "a", "device": "d", "at": AT}))
    run("worker", "-m", "features.py", "--until-end")
    told = json.loads(run("forget", "card", "a", "-m", "features.py", "--yes", "--json"))
    assert list(dict.fromkeys(record["topic"] for record in told["records"])) == names
    run(*produce(names[1], *({"card": card, "device": "d", "at": AT + 1} for card in "ab")))
    assert json.loads(run("worker", "-m", "features.py", "--until-end").splitlines()[-1])["pairs"] == 1
    assert "nothing is stored of card 'a'" in run("get", "meetings", "a", "-m", "features.py", code=1)
    assert json.loads(run("get", "meetings", "b", "-m", "features.py", "--json"))["features"] == {"n_1h": 1}
    assert "0 differ" in run("verify", "-m", "features.py")
