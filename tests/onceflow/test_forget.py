"""`onceflow forget`, as it is typed, and what a worker makes of it."""

from __future__ import annotations

import asyncio
import json
import secrets

import pytest
from typer.testing import CliRunner

from featurestore import Count, Entity, Source, view
from featurestore.online import connect
from featurestore.registry import Registry
from featurestore.stores import Commit
from onceflow import cli
from onceflow.produce import ensure_topics
from tests.streams.shop import PARTITIONS, history, produce, shop
from tests.streams.working import blobs, messages, settings_of, stored, table, work

MODULE = """
from tests.streams.shop import shop
made = shop({tag!r})
globals().update({{f"view_{{each.name}}": each for each in made.views.values()}})
globals().update({{f"service_{{i}}": each for i, each in enumerate(made.services.values())}})
"""
PAIRS = """
from featurestore import Count, Distinct, Entity, Source, view
rides = Source("{tag}-rides", schema={{"city": str, "line": int, "who": str, "at": "timestamp[ms]"}},
               event_time="at", key="city")

@view(entity=Entity("line", key=["city", "line"]), source=rides, windows=["1h"])
class Lines:
    n = Count()

@view(entity=Entity("city", key="city"), source=rides, windows=["1h"])
class Cities:
    n = Count()
    people = Distinct("who")

@view(entity=Entity("person", key="who"), source=rides, windows=["1h"])
class People:
    n = Count()
"""


def forget(*arguments):
    result = CliRunner().invoke(cli.app, ["forget", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def project(tmp_path, pair, monkeypatch):
    """The folder of a project on a pair of servers, and a tag for its topics."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "onceflow.toml").write_text(f'kafka = "{pair.kafka}"\nredis = "{pair.redis_url}"\n')
    return tmp_path, secrets.token_hex(4)


def test_an_entity_is_erased_once_it_is_said_so(project, pair):
    folder, tag = project
    (folder / "features.py").write_text(MODULE.format(tag=tag))
    definitions, settings = shop(tag), settings_of(pair, tag, folder / ".onceflow")
    produce(pair.kafka, tag, history(tag, 60, shuffled=False))
    work(definitions, settings)
    planned = json.loads(forget("user", "u7", "-m", "features.py", "--json").stdout)
    assert (planned["sent"], planned["key"]) == (False, ["u7"])
    assert "Nothing was sent" in forget("user", "u7", "-m", "features.py").stdout
    before = len(messages(pair.kafka, f"clicks-{tag}"))
    told = json.loads(forget("user", "u7", "-m", "features.py", "--yes", "--json").stdout)
    assert told["sent"]
    assert [(each["topic"], each["partition"]) for each in told["records"]] == [
        (f"{topic}-{tag}", partition) for topic in ("clicks", "orders") for partition in range(PARTITIONS)
    ]
    found = messages(pair.kafka, f"clicks-{tag}")
    assert len(found) == before + PARTITIONS
    ends = {each["partition"]: each["offset"] for each in told["records"] if each["topic"] == f"clicks-{tag}"}
    sent = [read for read in found if read.headers]
    assert [(each.key, each.value, each.headers) for each in sent] == [
        (b"su7", None, {"onceflow-forget": b"user"})
    ] * PARTITIONS
    assert sum(ends.values()) == before
    work(definitions, settings)
    for each in definitions.views.values():
        if each.entity.name == "user":
            assert not any(b"su7" in blobs(stored(pair.redis_url, tag), each, p) for p in range(PARTITIONS))
            assert "u7" not in set(table(settings.data / "features" / each.name)["user"])
    result = CliRunner().invoke(cli.app, ["verify", "-m", "features.py", "--json"], env={"ONCEFLOW_MODE": "replay"})
    assert (result.exit_code, json.loads(result.stdout)["good"]) == (0, True)


def test_what_goes_on_naming_the_entity_is_told(project, pair):
    folder, tag = project
    (folder / "rides.py").write_text(PAIRS.format(tag=tag))
    missing = forget("city", "Oslo", "-m", "rides.py")
    assert (missing.exit_code, "there is nothing to erase yet" in missing.stderr) == (2, True)
    ensure_topics(pair.kafka, {f"{tag}-rides": 3})
    told = forget("line", "Oslo", "7", "-m", "rides.py", "--yes").stdout
    assert f"{tag}-rides: a record to each of 3 partitions, at offsets 0, 0, 0" in told
    assert "its archive goes on holding city, which views of other entities read" in told
    assert {read.key for read in messages(pair.kafka, f"{tag}-rides")} == {b"sOslo,i7"}
    kept = json.loads(forget("person", "Ann", "-m", "rides.py", "--json").stdout)["kept"]
    assert kept == {f"{tag}-rides": ["who"]}  # the cities count people


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("who", "x"), "no view is about an entity 'who'"),
        (("line", "Oslo"), "'line' is identified by city, line: give 2 value(s)"),
        (("line", "Oslo", "seven"), "'line' is a int, and 'seven' is none"),
        (("city", "x" * 300), "has 300 bytes; at most 256 are allowed"),
    ],
)
def test_an_entity_that_cannot_be_is_refused(project, arguments, why):
    folder, tag = project
    (folder / "rides.py").write_text(PAIRS.format(tag=tag))
    refused = forget(*arguments, "-m", "rides.py")
    assert refused.exit_code == 2
    assert why in refused.stderr


def test_states_of_older_definitions_are_deleted_where_they_can_be_named(project, pair):
    folder, tag = project
    (folder / "rides.py").write_text(PAIRS.format(tag=tag))
    ensure_topics(pair.kafka, {f"{tag}-rides": 1})
    schema = {"city": str, "at": "timestamp[ms]"}
    rides = Source(f"{tag}-rides", schema=schema, event_time="at", key="city")
    older = view(entity=Entity("city", key="city"), source=rides, windows=["5m"])(type("Cities", (), {"n": Count()}))
    Registry(folder / ".onceflow" / "registry").register(older.spec(), at=1)

    async def left(fill):
        store = connect(pair.redis_url)
        if fill:
            await store.claim(older.key, rides.name, 0, "me")
            await store.commit(
                [Commit(older.key, rides.name, 0, "me", 0, 9, 1, [b"sOslo", b"sRome"], [b"1", b"2"], first=True)]
            )
        found = {entity async for entity, _ in store.scan(older.key, rides.name, 0)}
        await store.close()
        return found

    assert asyncio.run(left(fill=True)) == {b"sOslo", b"sRome"}
    assert json.loads(forget("city", "Oslo", "-m", "rides.py", "--yes", "--json").stdout)["older_states"] == 1
    assert asyncio.run(left(fill=False)) == {b"sRome"}


def test_states_of_older_definitions_by_other_columns_are_deleted_if_they_can_be_named_or_else_told(project, pair):
    folder, tag = project
    (folder / "rides.py").write_text(PAIRS.format(tag=tag))
    ensure_topics(pair.kafka, {f"{tag}-rides": 1})
    schema = {"city": str, "line": int, "who": str, "at": "timestamp[ms]"}
    rides, before = (
        Source(f"{tag}-{name}", schema=schema, event_time="at", key="city") for name in ("rides", "rides-before")
    )

    def of(name, source, *columns):
        entity = Entity("line", key=columns)
        return view(entity=entity, source=source, windows=["5m"])(type(name, (), {"n": Count()}))

    turned, other = of("Turned", rides, "line", "city"), of("Other", rides, "line", "who")
    moved = of("Moved", before, "city", "line")
    states = {turned: [b"i7,sOslo", b"sOslo,i7"], other: [b"i7,sAnn"], moved: [b"sOslo,i7"]}
    registry = Registry(folder / ".onceflow" / "registry")
    for at, each in enumerate(states):
        registry.register(each.spec(), at=at)

    async def left(fill):
        store = connect(pair.redis_url)
        for each, keys in states.items() if fill else ():
            await store.claim(each.key, each.source.name, 0, "me")
            made = Commit(each.key, each.source.name, 0, "me", 0, 9, 1, keys, [b"1"] * len(keys), first=True)
            await store.commit([made])
        found = [[entity async for entity, _ in store.scan(each.key, each.source.name, 0)] for each in states]
        await store.close()
        return found

    asyncio.run(left(fill=True))
    planned = forget("line", "Oslo", "7", "-m", "rides.py").stdout
    told = json.loads(forget("line", "Oslo", "7", "-m", "rides.py", "--yes", "--json").stdout)
    assert told["older_states"] == 1
    assert told["older_left"] == [
        {"view": moved.key, "topic": before.name, "columns": ["city", "line"]},
        {"view": other.key, "topic": rides.name, "columns": ["line", "who"]},
    ]
    assert asyncio.run(left(fill=False)) == [[b"sOslo,i7"], [b"i7,sAnn"], [b"sOslo,i7"]]
    assert (
        f"not erased: states of {other.key}, an older definition, whose entities are told apart by line, who" in planned
    )
    assert f"  redis-cli --scan --pattern '{{{before.name}:*}}:{moved.key}:*' | xargs redis-cli unlink" in planned
