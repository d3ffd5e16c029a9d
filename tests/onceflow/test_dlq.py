"""`onceflow dlq`, on records as a worker refuses them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from featurestore import Source
from onceflow import cli
from onceflow.escaping import escaped
from onceflow.produce import ensure_topics
from streams.batches import Batch
from streams.ingest import ingested
from streams.messages import Record, rejected
from tests.streams.working import messages

NASTY = b'{"card": "\x1b[2J\r\nonceflow: all is well\\ \xff"}'


@pytest.fixture
def topic(tmp_path, pair, prefix, monkeypatch):
    """A source topic of two partitions, with three records refused."""
    (tmp_path / "onceflow.toml").write_text(f'kafka = "{pair.kafka}"\n')
    monkeypatch.chdir(tmp_path)
    topic = f"{prefix}payments"
    ensure_topics(pair.kafka, {f"{topic}.dlq": 2})
    producer = Producer({"bootstrap.servers": pair.kafka})
    for partition, offset, value, error in [(0, 4, NASTY, "json"), (0, 9, None, "tombstone"), (1, 7, b"[]", "json")]:
        message = rejected(Record(topic, partition, offset, value), error, "no\x1b[31m object")
        producer.produce(message.topic, message.value, partition=message.partition, headers=dict(message.headers))
    producer.flush()
    return topic


def dlq(*arguments):
    return CliRunner().invoke(cli.app, ["dlq", *arguments])


def test_refused_records_are_counted_by_reason_and_partition(topic):
    counted = [
        {"error": "json", "partition": "0", "records": 1},
        {"error": "json", "partition": "1", "records": 1},
        {"error": "tombstone", "partition": "0", "records": 1},
    ]
    assert json.loads(dlq("list", topic, "--json").stdout) == {"refused": counted}
    only = json.loads(dlq("list", topic, "--error", "tombstone", "--json").stdout)
    assert only == {"refused": counted[2:]}
    assert "tombstone" in dlq("list", topic).stdout


def test_what_is_shown_of_a_record_cannot_steer_the_terminal(topic):
    shown = dlq("show", topic).stdout
    assert shown.splitlines() == [
        f"{topic}[0] at offset 4: json: no\\x1b[31m object",
        r'    {"card": "\x1b[2J\r\nonceflow: all is well\\ \udcff"}',
        f"{topic}[0] at offset 9: tombstone: no\\x1b[31m object",
        "    no value",
        f"{topic}[1] at offset 7: json: no\\x1b[31m object",
        "    []",
    ]


def test_a_few_records_of_one_reason_are_shown(topic):
    done = json.loads(dlq("show", topic, "--error", "json", "--limit", "1", "--json").stdout)
    assert [(each["partition"], each["offset"]) for each in done["refused"]] == [("0", "4")]
    assert done["refused"][0]["value"].encode(errors="surrogateescape") == NASTY


def test_a_topic_without_dead_letters_is_named(topic):
    done = dlq("list", "nowhere")
    assert done.exit_code == 2
    assert "there is no topic 'nowhere.dlq'" in done.stderr


@given(st.binary(), st.binary())
def test_escaped_bytes_differ_where_the_bytes_do(one, other):
    assert (escaped(one) == escaped(other)) == (one == other)


@given(st.text() | st.binary())
def test_escaped_text_is_printable_whatever_it_was(text):
    assert escaped(text).isprintable()


def records_of(kafka, topic):
    return [(read.partition, read.key, read.value, read.headers["replayed_from"]) for read in messages(kafka, topic)]


def test_refused_records_are_sent_back_whole_with_their_keys_and_once(pair, prefix, tmp_path, monkeypatch):
    (tmp_path / "onceflow.toml").write_text(f'kafka = "{pair.kafka}"\n')
    monkeypatch.chdir(tmp_path)
    topic = f"{prefix}payments"
    ensure_topics(pair.kafka, {f"{topic}.dlq": 2, topic: 2})
    letters = [(0, b"k1", b"one", "type"), (1, b"k2", b"two", "type"), (1, None, b"x" * 9_000, "type")]
    letters += [(1, b"k3", b"three", "json"), (0, None, None, "tombstone")]
    producer = Producer({"bootstrap.servers": pair.kafka})
    for offset, (partition, key, value, error) in enumerate(letters):
        message = rejected(Record(topic, partition, offset, value, key), error, "")
        options = {"partition": message.partition, "headers": dict(message.headers)}
        producer.produce(message.topic, message.value, message.key, **options)
        producer.flush()
    back = dlq("replay", topic, "--error", "type")
    assert back.exit_code == 1
    assert back.stdout.startswith(f"2 records sent back to {topic}\n1 were not: only their first 4,096 bytes were kept")
    assert json.loads(dlq("replay", topic, "--error", "type", "--json").stdout) == {"sent": 0, "cut": 0}
    place = f"{topic}.dlq:".encode()
    both = [(0, b"k1", b"one", place + b"0:0"), (1, b"k2", b"two", place + b"1:0")]
    assert records_of(pair.kafka, topic) == both
    assert json.loads(dlq("replay", topic, "--json").stdout) == {"sent": 2, "cut": 0}  # json and tombstone
    assert {read[2] for read in records_of(pair.kafka, topic)} == {b"one", b"two", b"three", None}
    assert json.loads(dlq("replay", topic, "--error", "type", "--again", "--json").stdout) == {"sent": 2, "cut": 1}
    assert sum(read[2] == b"one" for read in records_of(pair.kafka, topic)) == 2


def test_a_refused_erasure_says_whom_it_meant_and_is_sent_back_as_one(pair, prefix, tmp_path, monkeypatch):
    (tmp_path / "onceflow.toml").write_text(f'kafka = "{pair.kafka}"\n')
    monkeypatch.chdir(tmp_path)
    source = Source(f"{prefix}rides", schema={"who": str, "at": int}, event_time="at", key="who")
    ensure_topics(pair.kafka, {f"{source.name}.dlq": 1, source.name: 1})
    forget = (("other", b"x"), ("onceflow-forget", b"per\x1bson"))
    batch = Batch(source.name, 0, 5, 6, np.array([5]), np.array([0]), [b"sAnn"], [None], tombstones={0: forget})
    [refused] = ingested(source, [batch], None)[0].rejects
    producer = Producer({"bootstrap.servers": pair.kafka})
    topic, partition, value, key, headers = refused.message
    producer.produce(topic, value, key, partition, headers=dict(headers))
    producer.flush()
    shown = dlq("show", source.name).stdout.splitlines()
    assert shown[1:] == ["    no value", "    key: sAnn", r"    header onceflow-forget: per\x1bson"]
    [told] = json.loads(dlq("show", source.name, "--json").stdout)["refused"]
    assert (told["key"], told["headers"]) == ("sAnn", {"onceflow-forget": "per\x1bson"})
    assert json.loads(dlq("replay", source.name, "--json").stdout) == {"sent": 1, "cut": 0}
    [back] = messages(pair.kafka, source.name)
    assert (back.key, back.value, back.headers["onceflow-forget"]) == (b"sAnn", None, b"per\x1bson")
