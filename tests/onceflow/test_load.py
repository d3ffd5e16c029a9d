"""A load for benchmarks: record batches made beforehand arrive as events of now."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import psutil
import pytest
from aiokafka.record.memory_records import MemoryRecords
from confluent_kafka import Consumer

from benchmarks.load import batches, load, prepared
from benchmarks.quotas import quota, why_no_quota
from benchmarks.work import KEY, PARTITIONS, frame
from featurestore.errors import UnavailableError
from onceflow import embedded

NOW_MS = 1_812_345_678_901


def records_of(batch, now_ms):
    read = MemoryRecords(batch.at(now_ms)).next_batch()
    assert read.validate_crc()
    return list(read)


def test_a_batch_is_sound_at_any_time_and_its_events_are_of_that_time():
    events = frame(np.random.default_rng(1), np.full(300, 1_700_000_000_000))
    made = batches(events, PARTITIONS)
    for now_ms in (NOW_MS, NOW_MS + 1):
        found = [record for batch in made for record in records_of(batch, now_ms)]
        decoded = [json.loads(record.value) for record in found]
        assert {record.timestamp for record in found} == {event["ts"] for event in decoded} == {now_ms}
        assert sorted(record.key.decode() for record in found) == sorted(events[KEY])
        assert sorted(event["amount"] for event in decoded) == sorted(events["amount"])


@pytest.mark.parametrize(("rate", "each"), [(1_000.0, 20), (30.0, 1)])
def test_as_many_events_are_prepared_for_each_tick_as_the_rate_says(rate, each):
    for tick in prepared(rate, 2)[:3]:
        assert sum(len(batch.digits) for batch in tick) == each


def test_a_load_comes_at_its_rate(kafka):
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "watch", "auto.offset.reset": "earliest"})
    with load(kafka, "load", 500.0, 2):
        time.sleep(2)
    consumer.subscribe(["load"])
    found = []
    while not found or (more := consumer.consume(1_000, timeout=3)):
        found += more if found else consumer.consume(1_000, timeout=10)
    consumer.close()
    assert 500 <= len(found) <= 1_500
    times = [json.loads(message.value())["ts"] for message in found]
    assert max(times) <= time.time() * 1_000
    assert max(times) - min(times) >= 1_000


def kill_under_load(broker):
    with load(broker.address, "load", 500.0, 2):
        time.sleep(0.5)
        os.kill(broker.pid, signal.SIGKILL)
        time.sleep(1)


def test_a_load_that_nobody_takes_is_an_error():
    with embedded.kafka() as broker, pytest.raises(UnavailableError, match="does not take the load"):
        kill_under_load(broker)


def spin():
    while True:
        pass


@pytest.mark.skipif(bool(why_no_quota()), reason=why_no_quota())
def test_a_quota_holds_a_process_back_and_is_gone_afterwards():
    process = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
    process.start()
    watched = psutil.Process(process.pid)
    try:
        while watched.cpu_times().user < 0.5:
            time.sleep(0.05)
        with quota(process.pid, 0.2):
            before = watched.cpu_times().user
            time.sleep(2)
            assert watched.cpu_times().user - before <= 0.8
        assert process.is_alive()
    finally:
        process.kill()
        process.join()
