from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime

import msgspec
import polars as pl
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from featurestore.errors import ConfigError, DataError, UnavailableError
from onceflow import cli
from onceflow.children import free_port
from onceflow.produce import encode, ensure_topics, produce_file, produce_frame, read


def consume(address, topic, count):
    """Every message of the topic's 2 partitions, as (partition, offset, timestamp, key, value)."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "unused", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(2)])
    messages = []
    while len(messages) < count:
        fetched = consumer.consume(count, timeout=10)
        assert fetched, f"{len(messages)} of {count}"
        messages += fetched
    consumer.close()
    return [(m.partition(), m.offset(), m.timestamp()[1], m.key(), m.value()) for m in messages]


def partitions(address, topic):
    return len(AdminClient({"bootstrap.servers": address}).list_topics(topic, timeout=10).topics[topic].partitions)


INT64 = st.integers(-(2**63), 2**63 - 1)
ROWS = st.lists(
    st.tuples(
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
        st.none() | INT64,
        st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        st.none() | st.booleans(),
    ),
    max_size=20,
)
SCHEMA = {"x": pl.Float64, "n": pl.Int64, "s": pl.String, "b": pl.Boolean}


@settings(deadline=None)
@given(ROWS)
def test_json_gives_every_value_back_to_the_bit(rows):
    decoded = [tuple(msgspec.json.decode(value).values()) for value in encode(pl.DataFrame(rows, SCHEMA, orient="row"))]
    assert decoded == rows
    for (x, *_), (y, *_) in zip(decoded, rows, strict=True):
        assert x is None or (isinstance(x, float) and math.copysign(1, x) == math.copysign(1, y))


def test_nan_and_the_infinities_become_null():
    frame = pl.DataFrame({"x": [math.nan, math.inf, -math.inf, None]})
    assert encode(frame) == [b'{"x":null}'] * 4


def test_times_become_milliseconds_since_the_epoch():
    frame = pl.DataFrame(
        {
            "utc": [datetime(2024, 1, 1, 0, 0, 0, 123_000, UTC), None],
            "naive": [datetime(1969, 12, 31, 23, 59, 59), None],  # noqa: DTZ001
            "day": [date(2024, 1, 1), None],
        }
    )
    assert json.loads(encode(frame)[0]) == {"utc": 1704067200123, "naive": -1000, "day": 1704067200000}
    assert json.loads(encode(frame)[1]) == {"utc": None, "naive": None, "day": None}


def test_rows_arrive_in_order_keyed_and_stamped(pair, prefix):
    frame = pl.DataFrame(
        {"card": [f"c{i % 7}" for i in range(500)], "n": range(500), "at": range(1_000, 501_000, 1_000)}
    )
    assert produce_frame(pair.kafka, prefix + "t", frame, ["card"], partitions=2, timestamps="at") == 500
    messages = consume(pair.kafka, prefix + "t", 500)
    assert sorted(json.loads(value)["n"] for *_, value in messages) == list(range(500))
    assert {partition for partition, *_ in messages} == {0, 1}
    homes = {}
    for partition in range(2):
        own = [message for message in messages if message[0] == partition]
        assert [offset for _, offset, *_ in own] == list(range(len(own)))
        numbers = [json.loads(value)["n"] for *_, value in own]
        assert numbers == sorted(numbers)
        for _, _, timestamp, key, value in own:
            row = json.loads(value)
            assert (key.decode(), timestamp) == (row["card"], row["at"])
            assert homes.setdefault(key, partition) == partition


def test_several_key_columns_are_joined_and_a_null_one_leaves_no_key(embedded_pair, prefix):
    frame = pl.DataFrame({"a": ["x", "y", None], "b": [1, 2, 3]})
    produce_frame(embedded_pair.kafka, prefix + "t", frame, ["a", "b"], partitions=2)
    assert {key for _, _, _, key, _ in consume(embedded_pair.kafka, prefix + "t", 3)} == {b"x|1", b"y|2", None}


def test_murmur2_puts_keys_where_javas_clients_do(embedded_pair, prefix):
    frame = pl.DataFrame(
        {"k": ["a", "b", "c", "d", "e"]}
    )  # murmur2 & 0x7fffffff is even for these, but for "c" and "e"
    produce_frame(embedded_pair.kafka, prefix + "t", frame, ["k"], partitions=2, partitioner="murmur2")
    homes = {key.decode(): partition for partition, _, _, key, _ in consume(embedded_pair.kafka, prefix + "t", 5)}
    assert homes == {name: murmur2(name.encode()) % 2 for name in homes}


def murmur2(data: bytes) -> int:
    """As org.apache.kafka.common.utils.Utils.murmur2, made positive."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    whole = len(data) // 4 * 4
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = h * m & mask ^ k
    if tail := data[whole:]:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return (h ^ h >> 15) & 0x7FFFFFFF


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_the_three_file_formats_send_the_same_events(embedded_pair, prefix, tmp_path, suffix):
    frame = pl.DataFrame(
        {
            "id": ["a", "b", "c"],
            "x": [0.1, None, 1e300],
            "n": [2**63 - 1, 0, -1],
            "at": [datetime(2024, 5, 1, 12, 0, second, tzinfo=UTC) for second in range(3)],
        }
    )
    path = tmp_path / f"events{suffix}"
    {".jsonl": frame.write_ndjson, ".csv": frame.write_csv, ".parquet": frame.write_parquet}[suffix](path)
    types = {"id": "str", "x": "float", "n": "int", "at": "timestamp[ms]"}
    assert produce_file(embedded_pair.kafka, prefix + "t", path, ["id"], 2, types=types) == 3
    sent = [json.loads(value) for *_, value in consume(embedded_pair.kafka, prefix + "t", 3)]
    expected = frame.with_columns(pl.col("at").dt.epoch("ms")).to_dicts()
    assert sorted(sent, key=lambda row: row["id"]) == expected


def test_progress_tells_how_many_were_sent_so_far(embedded_pair, prefix):
    seen = []
    frame = pl.DataFrame({"n": range(120_000)})
    produce_frame(embedded_pair.kafka, prefix + "t", frame, [], progress=seen.append)
    assert seen == [50_000, 100_000, 120_000]


def test_topics_are_created_once_and_kept_as_they_are(pair, prefix):
    ensure_topics(pair.kafka, {prefix + "a": 3, prefix + "b": 1})
    ensure_topics(pair.kafka, {prefix + "a": 5, prefix + "c": 2})
    assert [partitions(pair.kafka, prefix + name) for name in "abc"] == [3, 1, 2]


def test_a_refused_topic_is_reported(real_pair):
    with pytest.raises(UnavailableError, match="did not create topic 'no good'"):
        ensure_topics(real_pair.kafka, {"no good": 1})


def test_an_event_that_is_too_large_is_shown(embedded_pair, prefix):
    with pytest.raises(DataError, match=r"cannot take the event b'\{\"s\":\"xxx.*too large"):
        produce_frame(embedded_pair.kafka, prefix + "t", pl.DataFrame({"s": ["x" * 2_000_000]}), [])


def test_messages_that_kafka_refuses_are_reported(real_pair, prefix):
    admin = AdminClient({"bootstrap.servers": real_pair.kafka})
    narrow = NewTopic(prefix + "t", 1, config={"max.message.bytes": "1000"})
    admin.create_topics([narrow])[prefix + "t"].result()
    frame = pl.DataFrame({"s": ["".join(map(str, range(5_000)))]})
    with pytest.raises(UnavailableError, match=r"did not take 1 messages .*too large"):
        produce_frame(real_pair.kafka, prefix + "t", frame, [])


def test_a_broker_that_is_not_there_is_reported(monkeypatch):
    monkeypatch.setattr("onceflow.produce.TIMEOUT_SECONDS", 1.0)
    with pytest.raises(UnavailableError, match="cannot be reached: is it running"):
        produce_frame(f"127.0.0.1:{free_port()}", "t", pl.DataFrame({"n": [1]}), [])


def test_an_unknown_column_is_named_with_those_there_are(embedded_pair, prefix):
    frame = pl.DataFrame({"card": ["a"], "n": [1]})
    with pytest.raises(ConfigError, match="no column 'kard'; the columns are card, n"):
        produce_frame(embedded_pair.kafka, prefix + "t", frame, ["kard"])
    with pytest.raises(ConfigError, match="'card' has no time in every row"):
        produce_frame(embedded_pair.kafka, prefix + "t", frame, ["card"], timestamps="card")


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("events.txt", "", ConfigError, "use a name that ends in"),
        ("missing.csv", None, ConfigError, "no such file"),
        ("events.jsonl", "not json", DataError, "events.jsonl cannot be read"),
        ("events.csv", "b\n1\n", DataError, "no column 'a'; the columns are b"),
        ("events.csv", "a\nx\n", DataError, "events.csv cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, text, error, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        list(read(tmp_path / name, {"a": "int"}))


def test_a_source_that_reads_another_format_is_not_sent_json(tmp_path, monkeypatch):
    (tmp_path / "packed.py").write_text(
        "from featurestore import Count, Entity, Source, view\n"
        "clicks = Source('clicks', schema={'k': str, 'at': int}, event_time='at', key='k', format='msgpack')\n"
        "by_k = view(entity=Entity('k', key='k'), source=clicks, windows=['1m'])\n"
        "Clicks = by_k(type('Clicks', (), {'n': Count()}))\n"
    )
    (tmp_path / "events.jsonl").write_text('{"k": "a", "at": 1}\n')
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["produce", "clicks", "--from", "events.jsonl", "-m", "packed"])
    assert result.exit_code == 2
    assert "writes flat JSON, and source 'clicks' reads msgpack" in result.stderr
