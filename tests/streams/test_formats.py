"""A topic in each format, through a worker that is stopped in the middle, against the same events as JSON."""

from __future__ import annotations

import asyncio
import io
import json
import random
import secrets
import threading
from functools import cache
from types import SimpleNamespace

import fastavro
import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from confluent_kafka import Producer
from google.protobuf import message_factory
from typer.testing import CliRunner

from batch.verify import verify
from featurestore import Count, Entity, Last, Max, Source, Std, Sum, view
from featurestore.engine import words_of
from featurestore.errors import ConfigError
from featurestore.keys import key_prefix
from featurestore.online import connect
from featurestore.protobuf import compiled, type_at
from featurestore.sources import ROW_BITS
from onceflow import cli, modules
from onceflow.modules import Definitions
from onceflow.produce import ensure_topics
from onceflow.runtime import build_worker, run_worker
from tests import schema_registry
from tests.streams.working import messages, settings_of, stored, table, work

START, PARTITIONS, EVENTS = 1_700_000_000_000, 2, 1_200
SCHEMA = {"user": str, "ms": float, "n": int, "at": "timestamp[ms]"}
CLICK = 'syntax = "proto3"; message Click { string user = 1; double ms = 2; int32 n = 3; int64 at = 4; }'


def definitions_of(tag, kind):
    source = Source(f"clicks-{tag}", schema=SCHEMA, event_time="at", key="user", lateness="1m", format=kind)
    members = {"n": Count(), "ms": Sum("ms"), "spread": Std("ms"), "most": Max("n"), "last": Last("ms")}
    made = view(entity=Entity("user", key="user"), source=source, windows=["30s", "10m"])(
        type(f"Clicks{tag}", (), members)
    )
    return Definitions({source.name: source}, {made.name: made}, {})


def history():
    rng, time = random.Random(5), START
    for _ in range(EVENTS):
        time += rng.choice([0, 1_000, 5_000])
        user = rng.randrange(30)
        event = {
            "user": f"u{user}",
            "ms": rng.random() * 100,
            "n": rng.randrange(9),
            "at": time - rng.choice([0, 9_000]),
        }
        yield user % PARTITIONS, event


def arrow(events):
    made = pa.Table.from_pylist(events)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made)
    return sink.getvalue().to_pybytes()


def produce(kafka, topic, kind, events):
    ensure_topics(kafka, {topic: PARTITIONS})
    producer = Producer({"bootstrap.servers": kafka, "enable.idempotence": True})
    for partition in range(PARTITIONS):
        mine = [event for at, event in events if at == partition]
        for some in batched_by(mine, 77 if kind == "arrow" else 1):
            value = {
                "arrow": lambda some=some: arrow(some),
                "msgpack": lambda some=some: msgspec.msgpack.encode(some[0]),
                "csv": lambda some=some: ",".join(map(str, some[0].values())).encode(),
                "json": lambda some=some: msgspec.json.encode(some[0]),
                "protobuf": lambda some=some: b"\0\0\0\0\1\0" + click_class()(**some[0]).SerializeToString(),
            }[kind]()
            producer.produce(topic, value, partition=partition, timestamp=some[-1]["at"] + 9_000)
    assert producer.flush(20) == 0


@cache
def click_class():
    return message_factory.GetMessageClass(type_at(*compiled(CLICK, {}), [0]))


def batched_by(items, size):
    return [items[at : at + size] for at in range(0, len(items), size)]


def states(pair, tag, definitions):
    """States by place without their last offsets, which count records in another way for Arrow."""
    [made] = definitions.views.values()
    found = {}
    for key, value in stored(pair.redis_url, tag).items():
        for partition in range(PARTITIONS):
            prefix = key_prefix(made.source.name, partition, made.key)
            if key.startswith(prefix) and key != prefix + b"next":
                found[partition, key.removeprefix(prefix)] = np.delete(words_of(value), 2).tobytes()
    return found


def verified(pair, settings, definitions):
    async def main():
        store = connect(pair.redis_url)
        partitions = dict.fromkeys(definitions.sources, PARTITIONS)
        report = await verify(
            list(definitions.views.values()), [], store, settings.data, partitions, merged=True, now=START
        )
        await store.close()
        return report

    return asyncio.run(main())


@pytest.fixture(scope="module")
def registry():
    with schema_registry.running({1: ("PROTOBUF", CLICK)}) as server:
        yield server.url


@pytest.mark.parametrize("kind", ["msgpack", "csv", "arrow", "protobuf"])
def test_a_topic_of_any_format_gives_the_states_and_features_of_the_same_events_as_json(
    embedded_pair, registry, kind, tmp_path
):
    events, outcomes = list(history()), []
    for each in ("json", kind):
        tag = secrets.token_hex(4)
        definitions = definitions_of(tag, each)
        [topic] = definitions.sources
        settings = settings_of(embedded_pair, tag, tmp_path / each, chunk=50, schema_registry=registry)
        produce(embedded_pair.kafka, topic, each, events[: EVENTS // 2])
        work(definitions, settings)
        produce(embedded_pair.kafka, topic, each, events[EVENTS // 2 :])
        worker = work(definitions, settings)
        assert worker.stats.rejected == {}
        report = verified(embedded_pair, settings, definitions)
        assert report.good, report
        assert report.mirror_compared > 0
        [made] = definitions.views
        rows = table(settings.data / "features" / made)
        outcomes.append(SimpleNamespace(states=states(embedded_pair, tag, definitions), rows=rows.drop("_offset")))
    assert outcomes[0].states == outcomes[1].states
    assert repr(outcomes[0].rows.rows()) == repr(outcomes[1].rows.rows())
    assert len(outcomes[0].rows) == EVENTS


@pytest.mark.parametrize("transport", ["columns", "records"])
def test_columns_in_headers_come_from_a_file_through_both_transports_and_back_from_quarantine(
    pair, tmp_path, monkeypatch, transport
):
    tag = secrets.token_hex(4)
    source = Source(
        f"clicks-{tag}", schema=SCHEMA, event_time="at", key="user", headers={"ms": "x-ms", "n": "x-n"}, lateness="1m"
    )
    members = {"n": Count(), "ms": Sum("ms"), "most": Max("n")}
    made = view(entity=Entity("user", key="user"), source=source, windows=["30s"])(type(f"Clicks{tag}", (), members))
    definitions = Definitions({source.name: source}, {made.name: made}, {})
    monkeypatch.setattr(modules, "load", lambda _: definitions)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONCEFLOW_KAFKA", pair.kafka)
    events = pl.DataFrame([event for _, event in history()][:200]).with_columns(
        pl.when(pl.col("n") > 0).then("n"), pl.when(pl.col("ms") < 90).then("ms")
    )
    events.write_parquet(tmp_path / "events.parquet")
    command = ["produce", source.name, "--from", "events.parquet", "-m", "unused", "--timestamp", "at"]
    done = CliRunner().invoke(cli.app, [*command, "--partitions", str(PARTITIONS)])
    assert done.exit_code == 0, done.stderr
    assert set(json.loads(messages(pair.kafka, source.name)[0].value)) == {"user", "at"}
    bad = [{"x-n": b"many", "x-ms": b"7", "other": b"o"}, {"x-n": b"5", "x-ms": b"\xff"}]
    producer, last = Producer({"bootstrap.servers": pair.kafka, "enable.idempotence": True}), events["at"].max()
    for headers in bad:
        value = json.dumps({"user": "bad", "at": last}).encode()
        producer.produce(source.name, value, partition=0, timestamp=last, headers=headers)
    assert producer.flush(20) == 0
    settings = settings_of(pair, tag, tmp_path, transport=transport)
    worker = work(definitions, settings)
    assert worker.stats.rejected == {"type": 1, "encoding": 1}
    report = verified(pair, settings, definitions)
    assert report.good, report
    kept = table(tmp_path / "events" / source.name).select(events.columns)
    assert kept.sort(kept.columns).equals(events.sort(kept.columns))
    replayed = CliRunner().invoke(cli.app, ["dlq", "replay", source.name])
    assert replayed.exit_code == 0, replayed.stderr
    back = [read.headers for read in messages(pair.kafka, source.name) if "replayed_from" in read.headers]
    assert sorted((headers["x-n"], headers["x-ms"], len(headers)) for headers in back) == [
        (b"5", b"\xff", 3),
        (b"many", b"7", 3),
    ]


def test_avro_waits_for_a_registry_that_is_away_and_quarantines_what_no_schema_tells(embedded_pair, tmp_path):
    tag = secrets.token_hex(4)
    definitions, events = definitions_of(tag, "avro"), [event for _, event in history()][:200]
    [topic] = definitions.sources
    fields = [{"name": "user", "type": "string"}, {"name": "ms", "type": "double"}]
    fields += [
        {"name": "n", "type": "int"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ]
    schema = {"type": "record", "name": "Click", "fields": fields}
    ensure_topics(embedded_pair.kafka, {topic: PARTITIONS})
    producer = Producer({"bootstrap.servers": embedded_pair.kafka, "enable.idempotence": True})
    for event in events:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, fastavro.parse_schema(schema), event)
        producer.produce(topic, b"\0\0\0\0\1" + out.getvalue(), partition=0, timestamp=event["at"] + 9_000)
    producer.produce(topic, b"\0\0\0\0\2rest", partition=0, timestamp=START)
    assert producer.flush(20) == 0
    with schema_registry.running({1: ("AVRO", json.dumps(schema))}) as registry:
        registry.away = True
        settings = settings_of(embedded_pair, tag, tmp_path, schema_registry=registry.url)
        back = threading.Timer(0.5, lambda: setattr(registry, "away", False))
        back.start()
        worker = work(definitions, settings)
        back.join()
    assert worker.stats.events == 200
    assert worker.stats.rejected == {"malformed": 1}
    [refused] = messages(embedded_pair.kafka, f"{topic}.dlq")
    assert refused.headers["detail"] == b"the schema registry has no usable schema 2"
    with pytest.raises(ConfigError, match="needs a schema registry: set schema_registry"):
        build_worker(definitions, settings_of(embedded_pair, tag, tmp_path), until_end=True)


def test_a_worker_stopped_within_a_record_of_arrow_goes_on_after_the_last_row_that_it_stored(embedded_pair, tmp_path):
    tag = secrets.token_hex(4)
    definitions, events = definitions_of(tag, "arrow"), list(history())
    [topic], [made] = definitions.sources, definitions.views.values()
    settings = settings_of(embedded_pair, tag, tmp_path, chunk=50)
    produce(embedded_pair.kafka, topic, "arrow", events)

    class CutError(Exception):
        pass

    worker = build_worker(definitions, settings, until_end=True)
    commit, turns = worker.store.commit, []

    async def cut(commits):
        if len(turns) == 3:
            raise CutError
        turns.append(commits)
        await commit(commits)

    worker.store.commit = cut
    with pytest.raises(CutError):
        run_worker(worker, settings)
    places = [commit.next & ((1 << ROW_BITS) - 1) for commit in turns[-1]]
    assert any(places)
    work(definitions, settings)
    report = verified(embedded_pair, settings, definitions)
    assert report.good, report
    rows = table(settings.data / "features" / made.name)
    assert len(rows) == EVENTS
    assert (rows["_offset"] & ((1 << ROW_BITS) - 1)).max() == 76


def test_a_row_of_arrow_that_is_refused_or_late_is_told_with_its_record_and_its_row(embedded_pair, tmp_path):
    tag = secrets.token_hex(4)
    definitions = definitions_of(tag, "arrow")
    [topic] = definitions.sources
    good = {"user": "u0", "ms": 1.0, "n": 1, "at": START + 10_000_000}
    events = [good, good | {"user": None}, good | {"at": START}]
    ensure_topics(embedded_pair.kafka, {topic: PARTITIONS})
    producer = Producer({"bootstrap.servers": embedded_pair.kafka})
    for value in (arrow([good]), arrow(events), b"nonsense"):
        producer.produce(topic, value, partition=0, timestamp=START + 10_000_000)
    producer.flush(20)
    worker = work(definitions, settings_of(embedded_pair, tag, tmp_path))
    assert worker.stats.rejected == {"null": 1, "malformed": 1}
    assert worker.stats.late == 1
    [null, malformed] = messages(embedded_pair.kafka, f"{topic}.dlq")
    assert (null.headers["offset"], null.headers["detail"]) == (b"1", b"row 1: 'user' is null")
    assert (malformed.headers["offset"], malformed.value) == (b"2", b"nonsense")
    [late] = messages(embedded_pair.kafka, f"{topic}.late")
    assert (late.headers["offset"], late.value) == (b"1", arrow(events))
