"""A live worker whose partitions someone else has claimed."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from dataclasses import replace

import pytest

from featurestore.errors import FencedError
from featurestore.online import connect
from onceflow.runtime import build_worker
from streams.intake import Intake
from tests.streams.shop import PARTITIONS, history, logs, produce, shop
from tests.streams.test_worker import beside
from tests.streams.working import blobs, in_memory, settings_of, stored, table, work


async def intrude(url, views):
    """Claim every partition of the views as another worker would."""
    store = connect(url)
    for view in views:
        for partition in range(PARTITIONS):
            await store.claim(view.key, view.source.name, partition, "another worker")
    await store.close()


def taken(records):
    """Those of the topics that a live worker takes: labels are the learner's."""
    return [record for record in records if not record.topic.startswith("returns")]


def check_states(pair, tag, definitions, flow):
    found = stored(pair.redis_url, tag)
    for view in definitions.views.values():
        for partition in range(PARTITIONS):
            assert blobs(found, view, partition) == flow.states[view.key].blobs(partition)


def test_a_worker_of_a_group_asks_for_its_partitions_again_and_folds_every_event_once(pair, tmp_path):
    tag = secrets.token_hex(4)
    definitions, records = shop(tag), taken(history(tag, 200))
    settings, half = settings_of(pair, tag, tmp_path, mode="live"), len(records) // 2
    worker, intruded = build_worker(definitions, settings), []
    produce(pair.kafka, tag, records[:half])

    def ended():
        if worker.stats.events >= half and not intruded:
            intruded.append(asyncio.ensure_future(intrude(pair.redis_url, definitions.views.values())))
            intruded[0].add_done_callback(lambda _: produce(pair.kafka, tag, records[half:]))
        return worker.stats.events >= len(records)

    asyncio.run(beside(worker, settings, ended, 60, alone=False))
    assert worker.stats.events == len(records)
    check_states(pair, tag, definitions, in_memory(definitions, logs(definitions, records)[0])[0])


def test_a_worker_of_a_group_that_misses_a_batch_reads_it_again(pair, tmp_path, monkeypatch):
    tag = secrets.token_hex(4)
    definitions, records = shop(tag), taken(history(tag, 200))
    settings, third = settings_of(pair, tag, tmp_path, mode="live"), len(records) // 3
    worker, lost, take = build_worker(definitions, settings), [], Intake.take
    produce(pair.kafka, tag, records[:third])

    def losing(intake, batch, loads):
        if worker.stats.events >= third and len(batch) and not lost:
            lost.append(batch)
            produce(pair.kafka, tag, records[2 * third :])
        else:
            take(intake, batch, loads)

    def ended():
        if worker.stats.events >= third and not told:
            told.append(produce(pair.kafka, tag, records[third : 2 * third]))
        return worker.stats.events >= len(records)

    told = []
    monkeypatch.setattr(Intake, "take", losing)
    asyncio.run(beside(worker, settings, ended, 60, alone=False))
    assert (len(lost), worker.stats.events) == (1, len(records))
    check_states(pair, tag, definitions, in_memory(definitions, logs(definitions, records)[0])[0])


def test_a_worker_whose_files_another_has_taken_further_begins_anew_where_those_end(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("streams.files.FLUSH_SECONDS", 1_000.0)  # so that it has rows that no file has
    tag = secrets.token_hex(4)
    definitions, records = replace(shop(tag), services={}), taken(history(tag, 200))
    third = len(records) // 3
    settings = settings_of(pair, tag, tmp_path, mode="live", grid=4_096)
    worker, other = (build_worker(definitions, settings) for _ in range(2))
    ends = Counter((record.topic, record.partition) for record in records)
    produce(pair.kafka, tag, records[:third])

    async def take_over():
        produce(pair.kafka, tag, records[third : 2 * third])
        async with worker._turning:  # as if it were frozen
            await beside(other, settings, lambda: other.stats.events >= third // 2, 60)
        produce(pair.kafka, tag, records[2 * third :])

    def ended():
        if worker.stats.events >= third and not taking_over:
            taking_over.append(asyncio.ensure_future(take_over()))
        stored = all(worker._intake.lag(at, end) == 0 for at, end in ends.items())
        return bool(taking_over) and taking_over[0].done() and stored

    taking_over = []
    asyncio.run(beside(worker, settings, ended, 60, alone=False))
    taking_over[0].result()
    work(definitions, settings_of(pair, tag, tmp_path, grid=4_096))  # the mirror may lag
    good, _ = logs(definitions, records)
    for topic in {record.topic for record in records}:
        kept = table(tmp_path / "events" / topic).select("_partition", "_offset").rows()
        assert kept == [(p, at) for p in range(PARTITIONS) for at in good[topic, p]["_offset"]]
    flow, outputs, _ = in_memory(definitions, good)
    check_states(pair, tag, definitions, flow)
    for view in definitions.views.values():
        mirrored = table(tmp_path / "features" / view.name)
        assert len(mirrored) == len(outputs[view.key].events)


def test_a_worker_that_is_fenced_again_and_again_stops(embedded_pair, tmp_path, monkeypatch):
    monkeypatch.setattr("streams.worker.FENCED_AGAIN", 60.0)
    tag = secrets.token_hex(4)
    definitions, records = shop(tag), taken(history(tag, 200))
    settings = settings_of(embedded_pair, tag, tmp_path, mode="live")
    worker, sent = build_worker(definitions, settings), []

    def goes_on():
        if not sent or sent[-1].done():
            sent.append(asyncio.ensure_future(intrude(embedded_pair.redis_url, definitions.views.values())))
            some = records[20 * len(sent) :][:20]
            sent[-1].add_done_callback(lambda _: produce(embedded_pair.kafka, tag, some))
        return False

    with pytest.raises(FencedError, match="another worker has claimed it"):
        asyncio.run(beside(worker, settings, goes_on, 60, alone=False))
