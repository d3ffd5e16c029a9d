"""`onceflow get` and `onceflow serve`, on features that a store of this machine holds."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys

import httpx
import polars as pl
import pytest
from typer.testing import CliRunner

from featurestore import ConfigError
from featurestore.engine import ViewState
from featurestore.frames import checked_events, entity_codes, lane_inputs
from featurestore.kernel import Steps
from featurestore.online import connect
from featurestore.partitioners import partition_of
from featurestore.plan import compiled
from featurestore.stores import Commit
from onceflow import cli
from onceflow.children import free_port
from onceflow.commands.get import entity_of
from onceflow.modules import load
from onceflow.produce import ensure_topics
from tests.onceflow.projects import write_project
from tests.serving.helpers import Groups, Pairs

DEFINITIONS = """
from featurestore import Count, CountBy, Entity, Last, LastN, Source, Sum, SumBy, TopK, derived, col, view

payments = Source("{prefix}payments", schema={{"card": str, "shop": int, "amount": float, "at": "timestamp[ms]"}},
                  event_time="at", key="card", partitioner="crc32")

@view(entity=Entity("card", key="card"), source=payments, windows=["1h"])
class Cards:
    spend = Sum("amount")
    latest = Last("at", windows=["lifetime"])
    share = derived(col("spend_1h") / 0.0)

@view(entity=Entity("shop", key="shop"), source=payments, windows=["1h"])
class Shops:
    sales = Count()

@view(entity=Entity("shop", key="shop"), source=payments, windows=["1h"])
class Regulars:
    cards = CountBy("card")
    spent = SumBy("amount", by="card")
    top = TopK("card", k=1)
    sizes = LastN("amount", n=2)
    who = Last("card")
"""
AT = 1_700_000_000_000
PARTITIONS = 3


@pytest.fixture
def project(tmp_path, embedded_pair, prefix, monkeypatch):
    """A project whose views hold two payments of one card in one shop."""
    servers = {"kafka": embedded_pair.kafka, "redis": embedded_pair.redis_url}
    write_project(tmp_path, DEFINITIONS.format(prefix=prefix), **servers)
    monkeypatch.chdir(tmp_path)
    definitions = load(str(tmp_path / "features.py"))
    ensure_topics(embedded_pair.kafka, {f"{prefix}payments": PARTITIONS})
    asyncio.run(fold(embedded_pair.redis_url, definitions.views.values()))
    yield tmp_path
    asyncio.run(drop(embedded_pair.redis_url, definitions.views.values()))


async def fold(url, views):
    store = connect(url)
    rows = {"card": ["[red]7"] * 2, "shop": [-3] * 2, "amount": [0.1, 0.2], "at": [AT, AT + 1]}
    for made in views:
        frame = checked_events(made.source, pl.DataFrame(rows))
        state = ViewState(compiled(made), PARTITIONS)
        codes, keys = entity_codes(frame, made.entity.keys)
        partition = 0 if made.entity.name == "shop" else partition_of("crc32", b"[red]7", PARTITIONS)
        partitions = frame["_partition"].to_numpy().astype("int64") + partition
        offsets = frame["_offset"].to_numpy()
        steps = Steps(offsets, state.number(keys)[codes], partitions, frame["_time"].to_numpy(), offsets)
        state.run(steps, lane_inputs(state.plan, frame, state.texts), emit=False)
        for change in state.take_changes():
            at = (made.key, made.source.name, change.partition, "me")
            await store.claim(*at)
            await store.commit([Commit(*at, 0, 2, AT + 1, change.entities, change.blobs, first=True)])
    await store.close()


async def drop(url, views):
    store = connect(url)
    for made in views:
        for partition in range(PARTITIONS):
            await store.drop(made.key, made.source.name, partition)
    await store.close()


def get(*arguments):
    return CliRunner().invoke(cli.app, ["get", "-m", "features.py", *arguments])


def test_get_prints_features_and_the_time_they_are_as_of(project):
    done = get("cards", "[red]7", "--as-of", "2023-11-14T22:30:00Z")
    assert done.exit_code == 0, done.output
    assert "cards of '[red]7'" in done.stdout
    for cell in ("spend_1h", "0.30000000000000004", "latest_lifetime", "2023-11-14T22:13:20.001Z", "share", "null"):
        assert cell in done.stdout
    assert "as of 2023-11-14T22:30:00Z (1700001000000)" in done.stdout


def test_get_as_json(project):
    done = get("shops", "--json", "--as-of", str(AT), "--", "-3")
    assert json.loads(done.stdout) == {
        "view": "shops",
        "entity": {"shop": -3},
        "effective_time": AT + 1,
        "status": "PRESENT",
        "newest_event": AT + 1,
        "features": {"sales_1h": 2},
    }


def test_get_prints_lists_and_maps_as_json_both_ways(project):
    values = {
        "cards_1h": {"[red]7": 2},
        "spent_1h": {"[red]7": 0.30000000000000004},
        "top_1h": [{"value": "[red]7", "count": 2}],
        "sizes_1h": [0.1, 0.2],
        "who_1h": "[red]7",
    }
    shown = json.loads(get("regulars", "--json", "--as-of", str(AT), "--", "-3").stdout)
    assert shown["features"] == values
    table = get("regulars", "--as-of", str(AT), "--", "-3").stdout
    for name, value in values.items():
        assert name in table
        assert json.dumps(value) in table


def test_an_unknown_entity_is_one_line_and_exit_code_1(project):
    done = get("cards", "nobody\n\x1b[31m")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "onceflow: nothing is stored of card 'nobody\\n\\x1b[31m' in cards\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["card", "7"], "there is no view 'card' in 'features.py'; did you mean 'cards'?"),
        (["cards", "7", "8"], "identified by card: give 1 value"),
        (["shops", "seven"], "'shop' is a int, and 'seven' is none"),
        (["cards", "7", "--as-of", "noon"], "--as-of: 'noon' is no time"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(arguments, says, project):
    done = get(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr


def test_keys_take_the_types_of_their_columns():
    assert entity_of(Groups, ["-4"]) == (-4,)
    assert entity_of(Pairs, ["4", "4"]) == ("4", 4)
    with pytest.raises(ConfigError, match="identified by k, g: give 2"):
        entity_of(Pairs, ["4"])


def test_serve_answers_over_http_until_interrupted(project):
    port = free_port()
    command = [sys.executable, "-m", "onceflow", "serve", "-m", "features.py", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr.readline().endswith(f"info    serving  address=http://127.0.0.1:{port}\n")
            body = {"features": ["cards:spend_1h"], "entities": {"card": ["[red]7"]}, "as_of": AT}
            answer = httpx.post(f"http://127.0.0.1:{port}/get-online-features", json=body).json()
            again = subprocess.run(command, capture_output=True, text=True, check=False)
        finally:
            server.send_signal(signal.SIGINT)
            errors = server.communicate(timeout=20)[1]
    assert answer["results"][1]["values"] == [0.30000000000000004]
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith(f"onceflow: cannot listen on 127.0.0.1:{port}: Address already in use.")
    assert (server.returncode, errors) == (0, "")
