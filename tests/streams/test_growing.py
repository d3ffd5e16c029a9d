"""Partitions are added to a topic: nothing moves, and every value is what the words of the semantics give."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from types import SimpleNamespace

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from batch.verify import verify
from featurestore import Count, Entity, Last, LastN, Max, Source, Sum, TopK, last, oracle, view
from featurestore.errors import StateError
from featurestore.online import connect
from featurestore.partitioners import key_text, partition_of
from onceflow import server
from onceflow.modules import Definitions
from onceflow.produce import ensure_topics
from onceflow.reading import topic_partitions
from serving.reader import FeatureReader, Lookup
from tests.streams.working import settings_of, table, work

START, BEFORE, AFTER, USERS = 1_700_000_000_000, 2, 5, 40


def definitions_of(tag, **options):
    schema = {"user": str, "page": str, "n": int, "at": "timestamp[ms]"}
    source = Source(f"clicks-{tag}", schema=schema, event_time="at", key="user", lateness="1m", **options)
    members = {"count": Count(), "sum": Sum("n"), "most": Max("n"), "pages": TopK("page", k=2)}
    members |= {"latest": Last("page", windows=[last(3)]), "newest": LastN("n", n=3)}
    views = [
        view(entity=Entity(key, key=key), source=source, windows=["1m", "1h", "lifetime"])(
            type(f"By{key.title()}{tag}", (), members)
        )
        for key in ("user", "page")
    ]
    return Definitions({source.name: source}, {made.name: made for made in views}, {})


def history(seed, count, begin=0):
    """Events in order of time but for some that are late by less than is allowed."""
    rng = random.Random(seed)
    for i in range(begin, begin + count):
        at = START + 700 * i - rng.choice([0, 0, 30_000])
        yield {"user": f"u{rng.randrange(USERS)}", "page": f"p{rng.randrange(6)}", "n": rng.randrange(100), "at": at}


def produce(kafka, topic, partitioner, events, partitions):
    producer = Producer({"bootstrap.servers": kafka, "enable.idempotence": True})
    for event in events:
        place = partition_of(partitioner, key_text([event["user"]]), partitions)
        producer.produce(topic, json.dumps(event).encode(), partition=place, timestamp=event["at"] + 30_000)
    assert producer.flush(20) == 0


def grow(kafka, topic):
    admin = AdminClient({"bootstrap.servers": kafka})
    for made in admin.create_partitions([NewPartitions(topic, AFTER)]).values():
        made.result(20)


def values(pair, definitions, partitions, grown=None):
    """What is served of every entity, by view and entity; the reader may learn that the topic has grown."""

    async def main():
        store = connect(pair.redis_url)
        views = list(definitions.views.values())
        topic = next(iter(definitions.sources))
        reader = FeatureReader(views, store, {topic: partitions}, lambda: 0, stream_time=True)
        if grown is not None:
            reader.grow({topic: grown})
        keys = {"user": [(f"u{i}",) for i in range(USERS)], "page": [(f"p{i}",) for i in range(6)]}
        frames = await reader.read([Lookup(made, keys[made.entity.name], END) for made in views])
        await store.close()
        rows = {}
        for made, frame in zip(views, frames, strict=True):
            for each, row in zip(keys[made.entity.name], frame.select(*made.outputs).rows(named=True), strict=True):
                rows[made.entity.name, each] = row
        return rows

    return asyncio.run(main())


END = START + 700 * 900


def wanted(definitions, archive):
    events = [row | {"_time": row["at"]} for row in archive.sort("_partition", "_offset").rows(named=True)]
    found = {}
    for made in definitions.views.values():
        for entity in {oracle.key(made, event) for event in events}:
            found[made.entity.name, entity] = oracle.features(made, events, entity, END)[1]
    return found


def verified(pair, settings, definitions, *, merged):
    async def main():
        store = connect(pair.redis_url)
        partitions = dict.fromkeys(definitions.sources, AFTER)
        views = list(definitions.views.values())
        options = {"merged": merged, "mirrored": settings.mirror, "now": START}
        report = await verify(views, [], store, settings.data, partitions, **options)
        await store.close()
        return report

    return asyncio.run(main())


def test_a_server_takes_added_partitions_in_by_itself(real_pair, monkeypatch):
    monkeypatch.setattr(server, "GROWTH_SECONDS", 0.05)
    [topic] = (definitions := definitions_of(secrets.token_hex(4), partitioner="crc32")).sources
    ensure_topics(real_pair.kafka, {topic: BEFORE})

    async def main():
        store = connect(real_pair.redis_url)
        reader = FeatureReader(list(definitions.views.values()), store, {topic: BEFORE}, lambda: 0)
        following = asyncio.create_task(server.follow_growth(reader, real_pair.kafka))
        await asyncio.to_thread(grow, real_pair.kafka, topic)
        async with asyncio.timeout(20):
            while set(map(tuple, reader._counts.values())) != {(BEFORE, AFTER)}:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        following.cancel()
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("partitioner", [None, "murmur2", "crc32"])
def test_a_topic_that_grew_serves_what_all_of_its_events_give(real_pair, tmp_path, partitioner):
    tag = secrets.token_hex(4)
    told = {} if partitioner is None else {"partitioner": partitioner}
    [topic] = (old := definitions_of(tag, **told)).sources
    settings = settings_of(real_pair, tag, tmp_path)
    ensure_topics(real_pair.kafka, {topic: BEFORE})
    produce(real_pair.kafka, topic, partitioner or "crc32", history(1, 500), BEFORE)
    work(old, settings)
    before = values(real_pair, old, BEFORE)
    assert before == wanted(old, table(tmp_path / "events" / topic))
    grow(real_pair.kafka, topic)
    produce(real_pair.kafka, topic, partitioner or "crc32", history(2, 400, begin=500), AFTER)
    new = definitions_of(tag, **told) if partitioner is None else definitions_of(tag, **told, grown_from=[BEFORE])
    if partitioner is not None:
        with pytest.raises(StateError, match=rf"lies on {topic}:\d, where no lookup would find it: {partitioner}"):
            work(old, settings)
    work(new, settings)
    archive = table(tmp_path / "events" / topic)
    assert len(archive) == 900
    expected = wanted(new, archive)
    assert values(real_pair, new, AFTER) == expected != before
    assert values(real_pair, old, BEFORE, grown=AFTER) == expected
    assert (values(real_pair, old, AFTER) == expected) == (partitioner is None)
    there = topic_partitions(real_pair.kafka)
    assert {there[name] for name in there if topic in name or f"by_user{tag}" in name} == {AFTER}
    report = verified(real_pair, settings, new, merged=False)
    assert report.good, report
    assert report.parity_compared > USERS
    assert report.mirror_compared > 0
    assert any("changed partitions" in note for note in report.notes)
    # One worker that replays the grown topic from its beginning comes to the same.
    again = SimpleNamespace(kafka=real_pair.kafka, redis_url=real_pair.redis_url.removesuffix("/0") + "/7")
    settings = settings_of(again, f"{tag}-again", tmp_path / "again", mirror=False)  # the feed has the first run's rows
    work(new, settings)
    assert values(again, new, AFTER) == expected
    assert verified(again, settings, new, merged=True).good
