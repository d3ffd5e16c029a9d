"""Entities erased from the middle of a stream: what a worker leaves of them, and that a replay agrees."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import secrets
import threading
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import polars as pl
import pytest

import streams.files
import streams.forgetting
from featurestore import Count, Distinct, Entity, Source, TopK, view
from featurestore.align import Chunk
from featurestore.erasures import Erasure
from featurestore.errors import UnavailableError
from featurestore.forgotten import known
from featurestore.frames import entity_codes
from featurestore.keys import encode_entity
from featurestore.online import connect
from featurestore.partitioners import key_text, partition_of
from onceflow.modules import Definitions
from onceflow.produce import ensure_topics
from onceflow.runtime import build_worker, run_worker
from streams.forgetting import Forgetting
from streams.messages import feature_table
from tests.streams.shop import PARTITIONS, SECOND, START, Log, erasures, history, logs, produce, shop, with_erasures
from tests.streams.test_worker import beside
from tests.streams.working import blobs, messages, report_of, settings_of, stored, table, work


@pytest.fixture(scope="module")
def done(pair, tmp_path_factory):
    tag = secrets.token_hex(4)
    records = with_erasures(tag, history(tag, 300, shuffled=False))
    produce(pair.kafka, tag, records)
    definitions, data = shop(tag), tmp_path_factory.mktemp("done")
    settings = settings_of(pair, tag, data)
    worker = work(definitions, settings)
    return SimpleNamespace(**locals())


def test_after_erasures_in_the_middle_of_a_stream_all_equals_a_replay_of_what_is_left(done):
    report = report_of(done.definitions, done.settings)
    assert (report.missing, report.examples) == ([], [])
    assert (report.parity_mismatched, report.mirror_mismatched, report.logged_features_mismatched) == (0, 0, 0)
    assert report.parity_compared > 150
    assert report.mirror_compared > 3_000
    assert report.logged_features_compared > 3_000


def ends_of(records, topic):
    """By partition and entity the offset of its last erasure on a topic."""
    offsets, ends = dict.fromkeys(range(PARTITIONS), 0), {}
    for record in records:
        if record.topic == topic:
            if record.headers is not None:
                ends[record.partition, record.headers["onceflow-forget"], record.key] = offsets[record.partition]
            offsets[record.partition] += 1
    return ends


def key_below(done, frame, topic, entity, columns):
    """Rows that name an entity by these columns before its last erasure on the topic."""
    found = []
    for (partition, name, key), end in ends_of(done.records, topic).items():
        if name == entity:
            rows = frame.filter((pl.col("_partition") == partition) & (pl.col("_offset") < end))
            found += [row for row in rows.select(*columns).iter_rows() if None not in row and encode_entity(row) == key]
    return found


@pytest.mark.parametrize(
    ("topic", "entity", "column"),
    [("clicks", "user", "user"), ("clicks", "shelf", "page"), ("orders", "user", "user"), ("orders", "shop", "shop")],
)
def test_no_file_names_the_entity_before_its_erasure_and_all_else_is_there(done, topic, entity, column):
    name = f"{topic}-{done.tag}"
    archive = table(done.data / "events" / name)
    assert key_below(done, archive, name, entity, [column]) == []
    good = pl.concat([frame for (at, _), frame in logs(done.definitions, done.records)[0].items() if at == name])
    assert key_below(done, good, name, entity, [column]) != []
    rest = [each for each in done.definitions.sources[name].schema if each not in ("user", "page", "shop")]
    assert archive.select("_partition", "_offset", *rest).equals(good.select("_partition", "_offset", *rest))
    for made in done.definitions.views.values():
        if (made.source.name, made.entity.name) == (name, entity):
            rows = table(done.data / "features" / made.name)
            assert key_below(done, rows, name, entity, made.entity.keys) == []
            assert len(rows) > 200


def test_predictions_that_knew_the_entity_are_gone_and_the_others_are_there(done):
    name = f"orders-{done.tag}"
    good = pl.concat([frame for (at, _), frame in logs(done.definitions, done.records)[0].items() if at == name])
    for service in done.definitions.services.values():
        kept = table(done.data / "predictions" / service.name)
        about = kept.join(good, on=["_partition", "_offset"], how="left", maintain_order="left")
        if service.views:
            assert key_below(done, about, name, "user", ["user"]) == []
            assert key_below(done, about, name, "shop", ["shop"]) == []
            assert len(good) - 90 < len(kept) < len(good) - 30
        else:
            assert len(kept) == len(good)


def test_a_state_holds_what_came_after_the_erasure_and_is_gone_where_nothing_came(done):
    found = stored(done.pair.redis_url, done.tag)
    for made in done.definitions.views.values():
        for (partition, name, key), end in ends_of(done.records, made.source.name).items():
            if name == made.entity.name:
                good = logs(done.definitions, done.records)[0][made.source.name, partition]
                after = good.filter(pl.col("_offset") > end)
                alive = key in entity_codes(after, made.entity.keys)[1]
                assert (key in blobs(found, made, partition)) == alive
    assert messages(done.pair.kafka, f"clicks-{done.tag}.dlq") == []


def test_erasures_that_name_nobody_whom_the_topic_knows_go_to_the_dlq_and_the_stream_goes_on(pair, tmp_path):
    tag = secrets.token_hex(4)
    good = history(tag, 30, shuffled=False)
    forged = [
        *erasures(tag, ["clicks"], good[-1].time, "who", b"su7"),
        *erasures(tag, ["clicks"], good[-1].time, "user", b"u7"),
        *erasures(tag, ["orders"], good[-1].time, "user", b"i7"),
    ]
    produce(pair.kafka, tag, [*good, *forged])
    settings = settings_of(pair, tag, tmp_path)
    worker = work(shop(tag), settings)
    assert worker.stats.rejected == {"erasure": len(forged)}
    for topic, count in (("clicks", 4), ("orders", 2)):
        refused = messages(pair.kafka, f"{topic}-{tag}.dlq")
        assert [each.headers["error"] for each in refused] == [b"erasure"] * count
        assert {each.value for each in refused} == {None}
        named = Counter((each.headers["header.onceflow-forget"], each.key) for each in refused)
        sent = [each for each in forged if each.topic == f"{topic}-{tag}"]
        assert named == Counter((each.headers["onceflow-forget"].encode(), each.key) for each in sent)
    assert report_of(shop(tag), settings).good
    assert not list(tmp_path.rglob("forgotten.json"))


def test_an_entity_erased_later_leaves_files_that_were_complete_by_then(pair, tmp_path):
    tag = secrets.token_hex(4)
    good, definitions = history(tag, 120, shuffled=False), shop(tag)
    produce(pair.kafka, tag, good)
    settings = settings_of(pair, tag, tmp_path, grid=64)
    work(definitions, settings)
    produce(pair.kafka, tag, erasures(tag, ["clicks", "orders"], good[-1].time, "user", b"su7"))
    work(definitions, settings)
    report = report_of(definitions, settings)
    assert report.good, report
    for topic in ("clicks", "orders"):
        assert "u7" not in set(table(tmp_path / "events" / f"{topic}-{tag}")["user"])
    for made in definitions.views.values():
        if made.entity.name == "user":
            assert "u7" not in set(table(tmp_path / "features" / made.name)["user"])
            assert not any(b"su7" in blobs(stored(pair.redis_url, tag), made, p) for p in range(PARTITIONS))


def test_a_partition_with_an_erasure_and_no_event_lacks_nothing(embedded_pair, tmp_path):
    tag = secrets.token_hex(4)
    definitions = replace(shop(tag), services={})
    records = [record for record in history(tag, 50, shuffled=False) if record.partition == 0]
    produce(embedded_pair.kafka, tag, [*records, *erasures(tag, ["clicks"], records[-1].time, "user", b"su1")])
    settings = settings_of(embedded_pair, tag, tmp_path)
    work(definitions, settings)
    report = report_of(definitions, settings)
    assert (report.good, report.missing) == (True, []), report


class Dying:
    """A store that fails, once, where a commit erases a state."""

    def __init__(self, store):
        self.store, self.alive = store, True

    def __getattr__(self, name):
        return getattr(self.store, name)

    async def commit(self, commits):
        if self.alive and any(commit.erased for commit in commits):
            self.alive = False
            raise UnavailableError("out of order")
        await self.store.commit(commits)


def test_who_dies_between_writing_an_erasure_down_and_storing_it_leaves_it_to_the_next(pair, tmp_path):
    tag = secrets.token_hex(4)
    records, definitions = with_erasures(tag, history(tag, 100, shuffled=False)), shop(tag)
    produce(pair.kafka, tag, records)
    settings = settings_of(pair, tag, tmp_path, chunk=50, grid=64)
    for _ in range(3):
        worker = build_worker(definitions, settings, until_end=True)
        worker.store = Dying(worker.store)
        with pytest.raises(UnavailableError):
            run_worker(worker, settings)
        assert list(tmp_path.rglob("forgotten.json"))
        report = report_of(definitions, settings, merged=False)
        assert (report.parity_mismatched, report.mirror_mismatched) == (0, 0), report
    work(definitions, settings)
    report = report_of(definitions, settings)
    assert (report.good, report.skipped) == (True, 0), report


KEYS = {"line": ["city", "line"], "city": ["city"], "person": ["who"], "stop": ["line", "who"]}


def rides(tag):
    """Views by one column, by two, and by another that a view reads as a value."""
    schema = {"city": str, "line": int, "who": str, "at": "timestamp[ms]"}
    source = Source(f"rides-{tag}", schema=schema, event_time="at", key="city")

    def made(name, **features):
        members = {"n": Count(), **features}
        entity = Entity(name, key=KEYS[name])
        return view(entity=entity, source=source, windows=["1h"])(type(f"{name}{tag}", (), members))

    views = [made("line"), made("city", people=Distinct("who"), most=TopK("who", k=1)), made("person"), made("stop")]
    return Definitions({source.name: source}, {each.name: each for each in views}, {})


@pytest.mark.parametrize(
    ("entity", "key"), [("line", ("Oslo", 2)), ("stop", (2, "Ann")), ("city", ("Oslo",)), ("person", ("Ann",))]
)
def test_what_other_views_read_stays_in_the_archive_and_the_erased_entity_does_not_see_it(
    embedded_pair, tmp_path, entity, key
):
    tag, rng = secrets.token_hex(4), random.Random(3)
    definitions, records = rides(tag), []
    for i in range(300):
        at = START + i * SECOND
        event = {"city": rng.choice(["Oslo", "Rome"]), "line": rng.randrange(4), "at": at}
        event["who"] = rng.choice(["Ann", "Bob", None])
        records.append(Log(f"rides-{tag}", rng.randrange(PARTITIONS), at, json.dumps(event).encode(), event))
        if i in (150, 160):
            records += erasures(tag, ["rides"], at, entity, encode_entity(key))
    ensure_topics(embedded_pair.kafka, {f"rides-{tag}": PARTITIONS})
    produce(embedded_pair.kafka, tag, records)
    settings = settings_of(embedded_pair, tag, tmp_path, grid=32)
    work(definitions, settings)
    report = report_of(definitions, settings)
    assert (report.good, report.examples) == (True, [])
    assert report.mirror_compared > 600
    archive = table(tmp_path / "events" / f"rides-{tag}")
    assert archive.select(pl.col("city", "line", "who").is_null().sum()).row(0) == (0, 0, archive["who"].null_count())
    assert key_below(SimpleNamespace(records=records), archive, f"rides-{tag}", entity, KEYS[entity]) != []
    own = table(tmp_path / "features" / f"{entity}{tag}")
    assert key_below(SimpleNamespace(records=records), own, f"rides-{tag}", entity, KEYS[entity]) == []


def test_what_is_erased_from_one_topic_stays_in_another(embedded_pair, tmp_path):
    tag = secrets.token_hex(4)
    records, definitions = history(tag, 100, shuffled=False), shop(tag)
    records[450:450] = erasures(tag, ["clicks"], records[450].time, "user", b"su7")
    produce(embedded_pair.kafka, tag, records)
    settings = settings_of(embedded_pair, tag, tmp_path)
    work(definitions, settings)
    assert report_of(definitions, settings).good
    [own] = [made for made in definitions.views.values() if (made.entity.name, made.keyed) == ("user", False)]
    orders = [record.event["user"] for record in records if record.topic.startswith("orders") and record.event]
    assert (table(tmp_path / "features" / own.name)["user"] == "u7").sum() == orders.count("u7") > 0


def test_a_view_that_begins_anew_comes_to_old_erasures_and_nothing_else_is_lost(embedded_pair, tmp_path):
    tag = secrets.token_hex(4)
    records, definitions = with_erasures(tag, history(tag, 100, shuffled=False)), shop(tag)
    produce(embedded_pair.kafka, tag, records)
    settings = settings_of(embedded_pair, tag, tmp_path, chunk=50)
    work(definitions, settings)
    folders = [f"features/{name}" for name in definitions.views]
    folders += [f"predictions/{name}" for name in definitions.services]
    before = [table(tmp_path / folder) for folder in folders]
    found = stored(embedded_pair.redis_url, tag)

    async def drop():
        store = connect(settings.redis)
        for made in definitions.views.values():
            if made.source.name == f"clicks-{tag}":
                for p in range(PARTITIONS):
                    await store.drop(made.key, made.source.name, p)
        await store.close()

    asyncio.run(drop())
    work(definitions, settings)
    assert stored(embedded_pair.redis_url, tag) == found
    assert [table(tmp_path / folder).equals(frame) for folder, frame in zip(folders, before, strict=True)] == [True] * 6


def test_a_worker_without_memory_for_states_erases_them_as_well(embedded_pair, tmp_path):
    tag = secrets.token_hex(4)
    records, definitions = with_erasures(tag, history(tag, 100, shuffled=False), seed=5), shop(tag)
    produce(embedded_pair.kafka, tag, records)
    settings = settings_of(embedded_pair, tag, tmp_path, chunk=50)
    worker = build_worker(definitions, settings, until_end=True)
    run_worker(replace(worker, options=replace(worker.options, memory=0)), settings)
    report = report_of(definitions, settings)
    assert (report.good, report.skipped) == (True, 0), report


def test_live_files_and_states_follow_an_erasure_while_the_worker_runs(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(streams.files, "FLUSH_SECONDS", 0.1)
    tag = secrets.token_hex(4)
    now, definitions = time.time_ns() // 1_000_000, shop(tag)
    settings = settings_of(pair, tag, tmp_path, mode="live", grid=16)
    clicks = [{"user": f"u{i % 3}", "page": "p", "ms": 1.0, "at": now + i} for i in range(100)]
    lasting = [Log(f"clicks-{tag}", 0, now, json.dumps(event).encode(), event) for event in clicks]
    produce(pair.kafka, tag, lasting)
    [own] = [made for made in definitions.views.values() if made.source.name == f"clicks-{tag}" and made.keyed]
    worker = build_worker(definitions, settings)

    def users():
        folders = (tmp_path / "events" / f"clicks-{tag}", tmp_path / "features" / own.name)
        return [set(table(each)["user"]) if any(each.rglob("*.parquet")) else set() for each in folders]

    def states():
        return {entity for p in range(PARTITIONS) for entity in blobs(stored(pair.redis_url, tag), own, p)}

    def done():
        if states() == {b"su0", b"su1", b"su2"} and all(found == {"u0", "u1", "u2"} for found in users()):
            produce(pair.kafka, tag, erasures(tag, ["clicks"], now, "user", b"su1"))
        return states() == {b"su0", b"su2"} and not any("u1" in found for found in users())

    asyncio.run(beside(worker, settings, done, seconds=60))
    assert states() == {b"su0", b"su2"}
    assert users() == [{"u0", "u2", None}, {"u0", "u2"}]


def test_the_loop_reads_no_files_of_erasures_and_may_take_partitions_on_meanwhile(tmp_path, monkeypatch):
    tag, threads = secrets.token_hex(4), set()
    definitions = rides(tag)
    [topic] = definitions.sources
    forgetting = Forgetting(definitions.sources, list(definitions.views.values()), [], tmp_path)
    for partition in range(PARTITIONS):
        forgetting.begin((topic, partition), 7)

    def seen(function):
        def elsewhere(*arguments):
            threads.add(threading.current_thread())
            forgetting.begin((topic, 1), 99)
            return function(*arguments)

        return elsewhere

    for name in ("known", "remember"):
        monkeypatch.setattr(streams.forgetting, name, seen(getattr(streams.forgetting, name)))
    chunk = Chunk({}, {(topic, 0): (7, 12)}, erasures=[(0, Erasure(topic, 0, 9, "person", b"sAnn"))])
    asyncio.run(forgetting.remember(chunk))
    assert threads
    assert threading.main_thread() not in threads
    shown = [known(tmp_path / topic / f"partition={partition}").entries[0].shown for partition in range(PARTITIONS)]
    assert shown == [7, 7]


GROWN = {"partitioner": "murmur2", "grown_from": [1]}
# Both are of partition 1, and were of partition 0 before there was another one.
ERASED, OTHER = [city for city in "abcdefgh" if partition_of("murmur2", key_text([city]), PARTITIONS) == 1][:2]


def staged(tag, now, gone):
    """Records to be taken in list by list: partition 1 comes to the erasure long after partition 0."""
    numbers = itertools.count()

    def some(partition, cities):
        events = [{"city": city, "line": 2, "at": now + next(numbers)} for city in cities]
        return [Log(f"rides-{tag}", partition, e["at"], json.dumps(e).encode(), e) for e in events]

    return [
        [*some(0, [ERASED, OTHER] * 10), *some(1, [ERASED, ERASED, OTHER])],
        [gone[0], *some(0, [ERASED, OTHER] * 6)],  # their rows hold what partition 1 still knows
        [gone[1], *some(1, [ERASED, OTHER] * 4)],
        some(0, [ERASED, OTHER] * 5),
    ]


def placed(stages):
    """Of each event (stage, partition, offset, city)."""
    offsets = [0] * PARTITIONS
    for number, stage in enumerate(stages):
        for record in stage:
            if record.event is not None:
                yield number, record.partition, offsets[record.partition], record.event["city"]
            offsets[record.partition] += 1


def fed(kafka, made):
    """By partition and offset the counts that a view's feed shows."""
    tables = [pl.DataFrame(feature_table(read.value)[0]) for read in messages(kafka, f"features.{made.name}")]
    rows = pl.concat([each for each in tables if len(each)]).select("_partition", "_offset", "n_1h")
    return {(partition, offset): count for partition, offset, count in rows.iter_rows()}


@pytest.mark.parametrize(("columns", "options"), [(["city", "line"], {}), (["city"], GROWN)])
def test_live_no_row_stays_that_holds_what_a_partition_behind_still_knew(embedded_pair, tmp_path, columns, options):
    tag, now = secrets.token_hex(4), time.time_ns() // 1_000_000
    schema = {"city": str, "line": int, "at": "timestamp[ms]"}
    source = Source(f"rides-{tag}", schema=schema, event_time="at", key="city", **options)
    entity = Entity("ride", key=columns)
    made = view(entity=entity, source=source, windows=["1h"])(type(f"Rides{tag}", (), {"n": Count()}))
    definitions = Definitions({source.name: source}, {made.name: made}, {})
    key = encode_entity([ERASED, 2][: len(columns)])
    stages = staged(tag, now, erasures(tag, ["rides"], now, "ride", key))
    ensure_topics(embedded_pair.kafka, {source.name: PARTITIONS})
    settings = settings_of(embedded_pair, tag, tmp_path, mode="live", grid=16, max_wait_ms=50)
    worker = build_worker(definitions, settings)
    waiting, sent = list(stages), []

    def done():
        if worker.stats.events == sum(record.event is not None for record in sent) and waiting:
            sent.extend(waiting[0])
            produce(embedded_pair.kafka, tag, waiting.pop(0))
        return worker.stats.events == len(list(placed(stages)))

    asyncio.run(beside(worker, settings, done, seconds=60))
    work(definitions, settings_of(embedded_pair, tag, tmp_path, grid=16))  # finishes what was under way
    events, shown = list(placed(stages)), fed(embedded_pair.kafka, made)
    assert shown.keys() == {(partition, offset) for _, partition, offset, _ in events}
    behind = [shown[p, offset] for stage, p, offset, city in events if (stage, city) == (1, ERASED)]
    assert behind == [2 + 1 + i for i in range(6)]
    wanted = [(p, offset, city) for stage, p, offset, city in events if city == OTHER or stage > 1]
    left = table(tmp_path / "features" / made.name).select("_partition", "_offset", "city")
    assert sorted(left.iter_rows()) == sorted(wanted)
    assert report_of(definitions, settings).good
