"""The private names of Faust, mode and aiokafka that the transport relies on.

When one of these fails after an upgrade, read what became of the name before changing the pins in pyproject.toml: most
of them decide which records are delivered.
"""

from __future__ import annotations

import asyncio
import inspect
from importlib.metadata import version

import aiokafka
import faust
import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import Fetcher, FetchResult
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import Assignment, TopicPartitionState
from faust.app.base import App, BootStrategy
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer, ConsumerThread, ThreadDelegateConsumer
from faust.transport.drivers import aiokafka as driver
from mode.services import Service
from mode.threads import QueueServiceThread, ServiceThread

from streams.records import MemoryRecords, PlainRecords, SlabRecords


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_the_versions_are_those_that_were_read():
    assert [version(name) for name in ("faust-streaming", "aiokafka")] == ["0.15.3", "0.14.0"]


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (driver.AIOKafkaConsumerThread._create_worker_consumer, ["self", "transport"]),
        (driver.AIOKafkaConsumerThread._seek_wait, ["self", "consumer", "partitions"]),
        (
            driver.AIOKafkaConsumerThread._fetch_records,
            ["self", "consumer", "active_partitions", "timeout", "max_records"],
        ),
        (driver.AIOKafkaConsumerThread._commit, ["self", "offsets"]),
        (driver.AIOKafkaConsumerThread._ensure_consumer, ["self"]),
        (driver.AIOKafkaConsumerThread.on_thread_stop, ["self"]),
        (driver.AIOKafkaConsumerThread.subscribe, ["self", "topics"]),
        (driver.Consumer._new_consumer_thread, ["self"]),
        (driver.Consumer._to_message, ["self", "tp", "record"]),
        (ThreadDelegateConsumer._commit, ["self", "offsets"]),
        (ThreadDelegateConsumer._getmany, ["self", "active_partitions", "timeout"]),
        (Consumer._wait_next_records, ["self", "timeout"]),
        (Consumer.force_commit, ["self", "topics", "start_new_transaction"]),
        (Consumer.seek_to_committed, ["self"]),
        (Consumer.on_partitions_revoked, ["self", "revoked"]),
        (Consumer.on_buffer_drop, ["self", "tp"]),
        (Consumer.resume_flow, ["self"]),
        (Consumer.verify_event_path, ["self", "now", "tp"]),
        (ConsumerThread.on_partitions_assigned, ["self", "assigned", "generation_id"]),
        (ConsumerThread.on_partitions_revoked, ["self", "revoked"]),
        (QueueServiceThread.call_thread, ["self", "fun", "args", "kwargs"]),
        (ServiceThread.on_crash, ["self", "msg", "fmt", "kwargs"]),
        (ServiceThread._stopped_set, ["self"]),
        (Service.add_future, ["self", "coro"]),
        (App._on_agent_error, ["self", "agent", "exc"]),
        (TableManager._update_channels, ["self"]),
        (Recovery._wait, ["self", "coro", "timeout"]),
        (Fetcher.fetched_records, ["self", "partitions", "timeout", "max_records"]),
        (Fetcher._notify, ["self", "future"]),
        (Assignment.state_value, ["self", "tp"]),
        (AIOKafkaClient.set_topics, ["self", "topics"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_a_method_takes_what_it_took(function, names):
    assert parameters(function) == names


def test_the_flow_of_records_calls_what_the_transport_replaces():
    assert "await self._wait_next_records(timeout)" in inspect.getsource(Consumer.getmany)
    assert "active_partitions is None" in inspect.getsource(Consumer.getmany)
    assert "self._fetch_records" in inspect.getsource(driver.AIOKafkaConsumerThread.getmany)
    assert "await self.seek_to_committed()" in inspect.getsource(Consumer.perform_seek)
    assert "consumer.perform_seek()" in inspect.getsource(Recovery._resume_streams)
    assert "except IllegalStateError" in inspect.getsource(Recovery._restart_recovery.fun)
    assert "await self.crash(exc)" in inspect.getsource(Service._execute_task)
    assert "self.agents[agent.name] = agent" in inspect.getsource(App.agent)
    assert "self.topics.beacon.add(agent)" in inspect.getsource(App.agent)


def test_a_fetch_looks_its_partitions_up_each_time_and_moves_the_position_past_markers():
    assert "if partitions and tp not in partitions" in inspect.getsource(Fetcher.fetched_records)
    assert "state.consumed_to(self._partition_records.next_fetch_offset)" in inspect.getsource(
        FetchResult._update_position
    )
    assert inspect.getsource(PlainRecords._unpack_records).count("next_fetch_offset = next_batch.next_offset") == 3
    assert isinstance(TopicPartitionState.has_valid_position, property)


def test_a_fetch_is_unpacked_by_classes_that_are_looked_up_by_name_when_it_has_come():
    source = inspect.getsource(Fetcher._proc_fetch_request)
    assert "records = MemoryRecords(part_data[-1])" in source
    assert fetcher.MemoryRecords is MemoryRecords
    made = fetcher.PartitionRecords
    assert "partition_records = PartitionRecords(" in source
    assert made is not PlainRecords
    assert parameters(PlainRecords.__init__)[1:] == [
        "tp",
        "records",
        "aborted_transactions",
        "fetch_offset",
        "key_deserializer",
        "value_deserializer",
        "check_crcs",
        "isolation_level",
    ]
    assert "self._value_deserializer," in source
    assert "value_deserializer=self._value_deserializer" in inspect.getsource(aiokafka.AIOKafkaConsumer.start)
    assert "self._records_iterator = self._unpack_records()" in inspect.getsource(PlainRecords.__init__)
    records = SlabRecords("topic", MemoryRecords(b""), None, 5, None, None, True, 1)
    for name in ("_tp", "_records", "_aborted_producers", "_isolation_level", "_consume_aborted_up_to"):
        assert hasattr(records, name)
    assert records.next_fetch_offset == 5


def test_the_objects_have_the_attributes_that_are_set_or_read():
    async def main():
        consumer = aiokafka.AIOKafkaConsumer("topic", group_id="group")
        missing = [
            name
            for name in (
                "_isolation_level",
                "_auto_offset_reset",
                "_fetch_max_wait_ms",
                "_max_partition_fetch_bytes",
                "_partition_assignment_strategy",
                "_fetcher",
                "_value_deserializer",
                "_subscription",
                "_client",
                "_coordinator",
            )
            if not hasattr(consumer, name)
        ]
        own = Fetcher(consumer._client, consumer._subscription)
        missing += [
            name for name in ("_prefetch_backoff", "_fetch_waiters", "_pending_tasks") if not hasattr(own, name)
        ]
        state = TopicPartitionState(None)
        missing += [name for name in ("lso", "_position") if not hasattr(state, name)]
        await own.close()
        await consumer.stop()
        return missing

    assert asyncio.run(main()) == []
    assert hasattr(GroupCoordinator, "request_rejoin")
    source = inspect.getsource(Consumer.__init__) + inspect.getsource(Consumer._reset_state)
    for name in ("_active_partitions", "_committed_offset", "can_resume_flow", "flow_active"):
        assert f"self.{name}" in source
    assert {"enable_kafka_producer", "enable_web", "enable_sensors"} <= set(vars(BootStrategy))
    assert hasattr(App, "on_first_start")
    assert "topic.maxsize" not in inspect.getsource(faust.App.topic)  # still dropped: batch_topic sets it
