"""Hostile input, kind by kind: what is bad is set apart with its reason, and its neighbours are not touched."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import secrets

import numpy as np
import pytest
from confluent_kafka import Producer

from featurestore import Count, Entity, Last, Source, Sum, view
from featurestore.errors import StateError
from featurestore.keys import decode_entity, key_prefix
from onceflow.modules import Definitions
from onceflow.produce import ensure_topics
from streams import records
from streams.ingest import ingested
from streams.transport import Batch
from tests.streams.test_formats import verified
from tests.streams.test_records import CODECS, taken, with_content
from tests.streams.working import blobs, messages, settings_of, stored, table, work

NOW = 1_700_000_000_000
YEAR = 31_557_600_000
SCHEMA = {"user": str, "n": int, "x": float, "at": "timestamp[ms]", "id": str}
CLICKS = Source("clicks", schema=SCHEMA, event_time="at", key="user", lateness="1m")
GOOD = {"user": "u", "n": 1, "x": 1.5, "at": NOW}


def text(**changes):
    return json.dumps(GOOD | changes).encode()


def raw(**members):
    """A good event with raw JSON text for some values."""
    parts = {name: json.dumps(value) for name, value in GOOD.items()} | members
    return ("{" + ",".join(f'"{name}":{value}' for name, value in parts.items()) + "}").encode()


def alone(value):
    """What comes of a record between two good ones: the reasons, and the events."""
    offsets = np.arange(10, 13)
    batch = Batch("clicks", 0, 10, 13, offsets, np.full(3, NOW), [None] * 3, [text(), value, text(user="v")])
    [got] = ingested(CLICKS, [batch], NOW, ["user"])
    for refused in got.rejects:
        assert (refused.offset, refused.message.topic, refused.message.partition) == (11, "clicks.dlq", 0)
        assert len(refused.message.value or b"") <= 4_096
        assert refused.message.headers["offset"] == b"11"
    assert got.events["user"].to_list()[0] == "u"
    assert got.events["user"].to_list()[-1] == "v"
    return [refused.error for refused in got.rejects], got.events[1:-1]


REFUSED = {
    "1 NaN": (raw(x="NaN"), "malformed"),
    "1 infinity": (raw(x="Infinity"), "malformed"),
    "2 a float beyond all floats": (raw(x="1e999"), "range"),
    "3 an integer of 64 bits": (raw(n=str(2**63)), "range"),
    "4 an integer of more bits": (raw(n=str(2**64 + 1)), "range"),
    "5 an integer of 400 digits": (raw(n="9" * 400), "range"),
    "5 a record of more than 64 KB": (raw(x="1." + "0" * 70_000), "oversized"),
    "6 a repeated field, one of its values bad": (b'{"user":"u","n":"x","n":1,"at":5}', "type"),
    "7 arrays in arrays": (b"[" * 100_000, "oversized"),
    "7 objects in objects": (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "depth"),
    "8 a time as text": (text(at="2024-01-01"), "type"),
    "8 a number as text": (text(n="1"), "type"),
    "9 null": (b"null", "type"),
    "9 an array": (b"[1]", "type"),
    "9 nothing": (b"", "malformed"),
    "9 no value": (None, "tombstone"),
    "10 bytes that are no UTF-8": (b'{"user":"\xff","at":5}', "encoding"),
    "10 half a surrogate pair": (b'{"user":"\\ud800","at":5}', "malformed"),
    "10 a byte order mark": (b"\xef\xbb\xbf" + text(), "malformed"),
    "12 a key of a megabyte": (text(user="u" * 2**20), "oversized"),
    "12 a key of 300 characters": (text(user="u" * 300), "oversized"),
    "13 the year 9999": (text(at=253_402_300_799_999), "future"),
    "13 in ten years": (text(at=NOW + 10 * YEAR), "future"),
    "13 after the year 9999": (text(at=2**62), "range"),
    "14 before 1970": (text(at=-1), "range"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_bad_record_is_set_apart_with_its_reason(kind):
    value, error = REFUSED[kind]
    errors, events = alone(value)
    assert errors == [error]
    assert len(events) == 0


def test_6_of_a_repeated_field_the_last_value_counts():
    errors, events = alone(b'{"user":"u","n":1,"n":2,"at":5}')
    assert (errors, events["n"].to_list()) == ([], [2])


def test_21_ten_thousand_unknown_fields_are_ignored():
    errors, events = alone(json.dumps(GOOD | {f"f{i}": i for i in range(4_000)}).encode())
    assert (errors, len(events)) == ([], 1)


# --- through a worker -----------------------------------------------------------------------------------------


def clicks(tag, **options):
    source = Source(f"clicks-{tag}", schema=SCHEMA, event_time="at", key="user", lateness="1m", **options)
    members = {"n": Count(), "sum": Sum("n"), "last": Last("x")}
    made = view(entity=Entity("user", key="user"), source=source, windows=["1m", "10m"])(
        type(f"Clicks{tag}", (), members)
    )
    return Definitions({source.name: source}, {made.name: made}, {})


def sent(kafka, topic, values, partitions=2, partition=0):
    ensure_topics(kafka, {topic: partitions})
    producer = Producer({"bootstrap.servers": kafka, "enable.idempotence": True})
    for value in values:
        producer.produce(topic, value, partition=partition, timestamp=NOW)
    assert producer.flush(20) == 0


def states(pair, tag, definitions):
    [made] = definitions.views.values()
    return blobs(stored(pair.redis_url, tag), made, 0)


def test_11_no_character_of_a_key_can_change_where_it_is_stored(embedded_pair, tmp_path):
    tag = secrets.token_hex(4)
    definitions, users = clicks(tag), ["\0", "{}", "{clicks:1}:x", "a:b", "next", "a\r\nDEL x", "%00", "é😀", " "]
    [topic], [made] = definitions.sources, definitions.views.values()
    sent(embedded_pair.kafka, topic, [text(user=user) for user in users])
    work(definitions, settings_of(embedded_pair, tag, tmp_path))
    assert sorted(decode_entity(entity) for entity in states(embedded_pair, tag, definitions)) == sorted(
        (user,) for user in users
    )
    prefix = key_prefix(topic, 0, made.key)
    mine = [key for key in stored(embedded_pair.redis_url, tag) if key != key_prefix(topic, 1, made.key) + b"next"]
    assert all(key.startswith(prefix) for key in mine)


def test_14_a_time_in_seconds_is_late_and_moves_no_clock(embedded_pair, tmp_path):
    tag = secrets.token_hex(4)
    definitions = clicks(tag)
    [topic] = definitions.sources
    sent(embedded_pair.kafka, topic, [text(), text(user="w", at=NOW // 1_000), text(user="w", at=0), text(user="v")])
    worker = work(definitions, settings_of(embedded_pair, tag, tmp_path))
    assert (worker.stats.late, worker.stats.stream_time) == (2, NOW)
    assert sorted(states(embedded_pair, tag, definitions)) == [b"su", b"sv"]


def test_15_a_silent_partition_holds_up_no_replay_that_ends(embedded_pair, tmp_path):
    tag = secrets.token_hex(4)
    definitions = clicks(tag)
    [topic] = definitions.sources
    sent(embedded_pair.kafka, topic, [text()], partitions=5)
    assert work(definitions, settings_of(embedded_pair, tag, tmp_path)).stats.events == 1


def test_16_a_flood_of_late_events_changes_no_state(embedded_pair, tmp_path):
    tag = secrets.token_hex(4)
    definitions = clicks(tag)
    [topic] = definitions.sources
    flood = [text(user=f"u{i}", at=NOW - 20 * 60_000) for i in range(5_000)]
    sent(embedded_pair.kafka, topic, [text(), *flood, text(user="v")])
    worker = work(definitions, settings_of(embedded_pair, tag, tmp_path))
    assert worker.stats.late == 5_000
    assert sorted(states(embedded_pair, tag, definitions)) == [b"su", b"sv"]
    told = messages(embedded_pair.kafka, f"{topic}.late")
    assert len(told) == 5_000
    assert told[0].value == flood[0]
    assert told[0].headers["error"] == b"late"


def test_22_what_is_replayed_is_not_folded_again(embedded_pair, tmp_path):
    tag = secrets.token_hex(4)
    definitions = clicks(tag)
    [topic] = definitions.sources
    settings = settings_of(embedded_pair, tag, tmp_path)
    sent(embedded_pair.kafka, topic, [text() for _ in range(50)])
    work(definitions, settings)
    before = states(embedded_pair, tag, definitions)
    assert work(definitions, settings).stats.events == 0
    assert states(embedded_pair, tag, definitions) == before


def test_22_repeats_of_an_id_are_left_out_also_by_workers_that_begin_in_the_middle(embedded_pair, tmp_path):
    tag, rng, last = secrets.token_hex(4), random.Random(22), {}
    told, plain = clicks(f"{tag}told", id="id", dedup=40), clicks(f"{tag}plain")
    logs = {name: [] for definitions in (told, plain) for name in definitions.sources}
    for at in range(600):
        borne = rng.choice([None, f"e{at}", f"e{max(at - rng.randrange(60), 0)}"])
        value = text(user=f"u{rng.randrange(5)}", n=at, x=rng.random(), at=NOW + at, id=borne)
        repeat = borne is not None and at - last.get(borne, -41) <= 40
        last |= {borne: at}
        # The other one gets nothing in the place of a repeat: a state knows the offset of its last event.
        for log, put in zip(logs.values(), (value, None if repeat else value), strict=True):
            log.append(put)
    repeats = sum(value is None for value in logs[f"clicks-{tag}plain"])
    settings, seen = settings_of(embedded_pair, tag, tmp_path), 0
    for begin, end in itertools.pairwise([0, 1, 10, 200, 230, 600]):
        for name, log in logs.items():
            sent(embedded_pair.kafka, name, log[begin:end])
        seen += work(told, settings).stats.repeats
        work(plain, settings)
    assert seen == repeats > 50
    assert states(embedded_pair, tag, told) == states(embedded_pair, tag, plain)
    assert messages(embedded_pair.kafka, f"clicks-{tag}told.dlq") == []
    kept = [table(tmp_path / "events" / name)["_offset"].to_list() for name in logs]
    assert kept[0] == kept[1]
    report = verified(embedded_pair, settings, told)
    assert report.good, report
    assert report.mirror_compared == 600 - repeats


def test_22_views_at_different_offsets_of_one_topic_leave_out_the_same_repeats(embedded_pair, tmp_path):
    tag = secrets.token_hex(4)
    early = clicks(tag, id="id", dedup=30)
    [topic] = early.sources
    late = view(entity=Entity("user", key="user"), source=early.sources[topic], windows=["10m"])(
        type(f"Later{tag}", (), {"n": Count(), "sum": Sum("n")})
    )
    both = Definitions(early.sources, {**early.views, late.name: late}, {})
    log = [text(n=at, at=NOW + at, id=f"e{at - at % 3}") for at in range(90)]
    settings = settings_of(embedded_pair, tag, tmp_path)
    sent(embedded_pair.kafka, topic, log[:40])
    work(early, settings)
    sent(embedded_pair.kafka, topic, log[40:50])
    work(both, settings)
    sent(embedded_pair.kafka, topic, log[50:])
    work(early, settings)
    assert work(both, settings).stats.repeats == sum(at % 3 > 0 for at in range(50, 90))
    report = verified(embedded_pair, settings, both)
    assert report.good, report
    assert report.mirror_compared == 2 * 30


def test_23_a_batch_that_expands_without_measure_is_refused(monkeypatch):
    monkeypatch.setattr(records, "MAX_EXPANDED", 1 << 20)
    with pytest.raises(StateError, match="expands to more than 1 MiB"):
        taken(with_content(gzip.compress(bytes(4 << 20)), CODECS["gzip"]))


def test_24_a_damaged_batch_stops_the_worker_and_says_where():
    damaged = bytearray(with_content(b"\0" * 40, 0))
    damaged[-1] ^= 1
    with pytest.raises(StateError, match=r"payments\[3\] at offset 100: a record batch cannot be read: its checksum"):
        taken(bytes(damaged))
