from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from featurestore.errors import ConfigError, StateError
from onceflow import embedded
from streams import fetching
from streams.app import build_app, run_app
from streams.transport import TP, Delivery, batch_topic, end_offsets
from tests.streams.driving import Received, committed, make_topic, numbered, produce, running

MEMBER = Path(__file__).with_name("member.py")


def starting_at(positions):
    async def stored(tps):
        return {tp: positions.get(tp) for tp in tps}

    return Delivery(positions=stored)


@pytest.mark.parametrize("columns", [True, False], ids=["columns", "records"])
def test_every_record_arrives_once_in_order_and_the_batches_tile_their_partitions(pair, prefix, columns):
    topic = make_topic(pair.kafka, f"{prefix}in", 3)
    for partition in range(3):
        produce(pair.kafka, topic, partition, numbered(0, 1_000 + partition), **{"batch.num.messages": 300})

    async def main():
        received = Received()
        delivery = Delivery(max_records=400, columns=columns)
        async with running(pair.kafka, f"{prefix}g", [topic], received, delivery=delivery) as app:
            await received.until(lambda: received.count() == 3_003)
            return received, await end_offsets(app.consumer, list(received.values))

    received, ends = asyncio.run(main())
    for partition in range(3):
        tp, count = TP(topic, partition), 1_000 + partition
        assert received.values[tp] == numbered(0, count)
        assert (received.batches[tp][0].start, received.next(tp), ends[tp]) == (0, count, count)
        assert [o for batch in received.batches[tp] for o in batch.offsets] == list(range(count))
        assert received.batches[tp][0].timestamps[7] == 1_007
        assert received.batches[tp][0].keys[7] == b"k7"
        assert received.batches[tp][0].headers is None
        assert all(len(batch) <= 400 for batch in received.batches[tp])


def test_a_held_partition_waits_until_it_is_released(embedded_pair, prefix):
    kafka, topic = embedded_pair.kafka, make_topic(embedded_pair.kafka, f"{prefix}in", 2)
    held, free = TP(topic, 0), TP(topic, 1)

    async def main():
        received = Received()
        async with running(kafka, f"{prefix}g", [topic], received, alone=True) as app:
            app.consumer.hold(held)
            for partition in (0, 1):
                produce(kafka, topic, partition, numbered(0, 100))
            await received.until(lambda: received.next(free) == 100)
            await asyncio.sleep(0.3)
            assert received.values[held] == []
            app.consumer.release(held)
            await received.until(lambda: received.next(held) == 100)
            app.consumer.hold(held)
            app.consumer.hold(free)
            produce(kafka, topic, 1, numbered(100, 200))
            await asyncio.sleep(0.3)
            assert received.next(free) == 100
            app.consumer.release(free)
            await received.until(lambda: received.next(free) == 200)

    asyncio.run(main())


def test_a_fetch_from_before_a_rebalance_takes_nothing_that_is_to_come_after_it(embedded_pair, prefix):
    kafka, topic = embedded_pair.kafka, make_topic(embedded_pair.kafka, f"{prefix}in", 1)
    apps = []

    async def assigned(_):
        consumer = apps[0].consumer
        consumer.flow_active = True  # as it was when the fetch began
        fetch = asyncio.ensure_future(consumer._getmany(consumer._wanted, 1.0))
        await asyncio.sleep(0.2)
        consumer.flow_active = False
        produce(kafka, topic, 0, numbered(0, 10))
        assert await fetch == {}

    async def main():
        received, delivery = Received(), Delivery(assigned=assigned)
        async with running(kafka, f"{prefix}g", [topic], received, alone=True, delivery=delivery) as app:
            apps.append(app)
            await received.until(lambda: received.count() == 10)

    asyncio.run(main())


def test_nothing_is_delivered_before_the_app_has_heard_where_it_starts(embedded_pair, prefix):
    kafka, topic = embedded_pair.kafka, make_topic(embedded_pair.kafka, f"{prefix}in", 1)
    apps, early, received = [], [], Received()

    async def positions(_):
        apps[0].flow_control.resume()  # as the end of one rebalance may do in the middle of the next
        apps[0].consumer.resume_flow()
        return {TP(topic, 0): received.next(TP(topic, 0))}

    async def assigned(_):
        await asyncio.sleep(0.3)
        early.append(received.count())

    async def main():
        delivery = Delivery(positions=positions, assigned=assigned)
        async with running(kafka, f"{prefix}g", [topic], received, delivery=delivery) as app:
            apps.append(app)
            produce(kafka, topic, 0, numbered(0, 10))
            await received.until(lambda: received.count() == 10)
            app.consumer.hold(TP(topic, 0))
            produce(kafka, topic, 0, numbered(10, 20))
            app.consumer.rejoin()
            await received.until(lambda: received.count() == 20)

    asyncio.run(main())
    assert early == [0, 10]


def test_nothing_is_delivered_to_a_member_that_had_no_partition_before_it_has_heard_where_it_starts(
    embedded_pair, prefix
):
    kafka, topic = embedded_pair.kafka, make_topic(embedded_pair.kafka, f"{prefix}in", 1)
    early, received = [], Received()

    async def positions(_):
        return {TP(topic, 0): received.next(TP(topic, 0))}

    async def assigned(starts):
        await asyncio.sleep(0.3 * len(starts))
        early.append((len(starts), received.count()))

    async def main():
        delivery, group = Delivery(positions=positions, assigned=assigned), f"{prefix}g"
        async with running(kafka, group, [topic], received, delivery=delivery) as one:
            produce(kafka, topic, 0, numbered(0, 10))
            await received.until(lambda: received.count() == 10)
            async with running(kafka, group, [topic], received, delivery=delivery) as two:
                await received.until(lambda: early[1:])
                owner = one if one.consumer.assignment() else two
                owner.consumer.hold(TP(topic, 0))
                produce(kafka, topic, 0, numbered(10, 20))
                await owner.stop()
                await received.until(lambda: received.count() == 20)

    asyncio.run(main())
    assert early == [(1, 0), (1, 10), (1, 10)]


def test_a_restart_goes_on_from_the_stored_positions_and_not_from_what_kafka_has(pair, prefix):
    topic, group = make_topic(pair.kafka, f"{prefix}in", 2), f"{prefix}g"
    for partition in (0, 1):
        produce(pair.kafka, topic, partition, numbered(0, 50))

    async def main(delivery):
        received = Received()
        async with running(pair.kafka, group, [topic], received, delivery=delivery) as app:
            await received.until(lambda: all(received.next(TP(topic, p)) == 50 for p in (0, 1)))
            for partition in (0, 1):
                app.consumer.done(TP(topic, partition), 45)
        return {tp.partition: batches[0].start for tp, batches in received.batches.items()}

    assert asyncio.run(main(Delivery())) == {0: 0, 1: 0}
    assert committed(pair.kafka, group, topic, 2) == [45, 45]
    assert asyncio.run(main(starting_at({TP(topic, 0): 20}))) == {0: 20, 1: 0}


@pytest.mark.parametrize(("lead", "begin"), [(3, 17), (8, 12), (9, 12)])
def test_a_partition_with_a_lead_is_read_from_before_its_position_as_far_as_its_log_reaches(
    real_pair, prefix, lead, begin
):
    topic = make_topic(real_pair.kafka, f"{prefix}in", 1)
    tp = TP(topic, 0)
    produce(real_pair.kafka, topic, 0, numbered(0, 30))
    delete_until(real_pair.kafka, topic, 12)
    told = {}

    async def assigned(starts):
        told.update(starts)

    async def main():
        received, delivery = Received(), starting_at({tp: 20})
        delivery.lead, delivery.assigned = {tp: lead}.__getitem__, assigned
        async with running(real_pair.kafka, f"{prefix}g", [topic], received, delivery=delivery):
            await received.until(lambda: received.next(tp) == 30)
        return received.batches[tp][0].start

    assert asyncio.run(main()) == begin
    assert told == {tp: begin}


def test_nothing_is_committed_but_what_is_done(pair, prefix):
    topic, group = make_topic(pair.kafka, f"{prefix}in", 2), f"{prefix}g"
    produce(pair.kafka, topic, 0, numbered(0, 50))

    async def main():
        received = Received()
        async with running(pair.kafka, group, [topic], received, alone=True) as app:
            await received.until(lambda: received.count() == 50)
            app.consumer.done(TP(topic, 0), 10)
            await received.until(lambda: committed(pair.kafka, group, topic, 2)[0] == 10)

    asyncio.run(main())
    assert committed(pair.kafka, group, topic, 2)[0] == 10
    assert committed(pair.kafka, group, topic, 2)[1] < 0


def test_the_app_hears_of_partitions_before_they_flow_and_before_they_go(pair, prefix):
    topic = make_topic(pair.kafka, f"{prefix}in", 2)
    produce(pair.kafka, topic, 0, numbered(0, 10))
    heard = []

    async def main():
        received = Received()

        async def assigned(starts):
            heard.append(("assigned", dict(starts), received.count()))

        async def revoked(tps):
            heard.append(("revoked", tps, received.count()))
            app.consumer.done(TP(topic, 0), 10)

        delivery = Delivery(assigned=assigned, revoked=revoked)
        async with running(pair.kafka, f"{prefix}g", [topic], received, delivery=delivery) as app:
            await received.until(lambda: received.count() == 10)

    asyncio.run(main())
    both = {TP(topic, 0): 0, TP(topic, 1): 0}
    assert heard == [("assigned", both, 0), ("revoked", frozenset(both), 10)]
    assert committed(pair.kafka, f"{prefix}g", topic, 1) == [10]


def test_two_members_share_the_partitions_and_those_of_a_killed_one_move(pair, prefix):
    topic, group = make_topic(pair.kafka, f"{prefix}in", 2), f"{prefix}g"
    mine = set()

    async def main():
        async def assigned(starts):
            mine.update(starts)

        async def revoked(tps):
            mine.difference_update(tps)

        received = Received()
        delivery = Delivery(assigned=assigned, revoked=revoked)
        async with running(pair.kafka, group, [topic], received, delivery=delivery) as app:
            await received.until(lambda: len(mine) == 2)
            with subprocess.Popen([sys.executable, MEMBER, pair.kafka, group, topic]) as other:  # noqa: ASYNC220
                try:
                    await received.until(lambda: len(mine) == 1)
                    await received.until(lambda: app.consumer.flow_active)
                    kept = next(iter(mine))
                    produce(pair.kafka, topic, kept.partition, numbered(0, 10))
                    await received.until(lambda: received.next(kept) == 10)
                finally:
                    other.kill()
            received.batches.clear()
            produce(pair.kafka, topic, 1 - kept.partition, numbered(0, 10))
            await received.until(lambda: received.next(TP(topic, 1 - kept.partition)) == 10)

    asyncio.run(main())


def test_a_killed_member_that_has_a_name_gets_its_partitions_back_at_once(real_pair, prefix):
    topic, group = make_topic(real_pair.kafka, f"{prefix}in", 1), f"{prefix}g"
    long = 30_000  # without a name the start would take this long
    command = [sys.executable, MEMBER, real_pair.kafka, group, topic, str(long), "worker-1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout.readline() == "assigned 1\n"
        killed.kill()
    produce(real_pair.kafka, topic, 0, numbered(0, 10))

    async def main():
        received = Received()
        options = {"session_timeout_ms": long, "instance": "worker-1"}
        async with running(real_pair.kafka, group, [topic], received, **options):
            await received.until(lambda: received.count() == 10, seconds=15)

    asyncio.run(main())


def test_aborted_transactions_are_not_seen_and_the_markers_at_the_tail_are_delivered(real_pair, prefix):
    kafka, topic = real_pair.kafka, make_topic(real_pair.kafka, f"{prefix}in", 1)
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": f"{prefix}tx"})
    producer.init_transactions(20)
    for number in range(6):
        producer.begin_transaction()
        for value in numbered(0, 5):
            producer.produce(topic, b"aborted" if number % 2 else value, partition=0)
        producer.flush(20)
        producer.abort_transaction() if number % 2 else producer.commit_transaction()
    tp = TP(topic, 0)

    async def main(delivery):
        received = Received()
        async with running(kafka, f"{prefix}g", [topic], received, alone=True, delivery=delivery) as app:
            await received.until(lambda: app.consumer.fetched_end(tp) is not None)
            ends = await end_offsets(app.consumer, [tp])
            await received.until(lambda: received.next(tp) >= ends[tp])
        return received.values[tp], ends[tp], received.next(tp)

    assert asyncio.run(main(Delivery())) == (numbered(0, 5) * 3, 36, 36)
    assert asyncio.run(main(starting_at({tp: 31}))) == ([], 36, 36)  # only an aborted transaction and its marker


def test_a_position_that_retention_has_passed_stops_the_app(real_pair, prefix):
    topic = make_topic(real_pair.kafka, f"{prefix}in", 1)
    produce(real_pair.kafka, topic, 0, numbered(0, 20))
    delete_until(real_pair.kafka, topic, 10)
    message = rf"{topic}\[0\]: the stored position is 5, but Kafka has 10 to 20: .*retention.*Backfill"
    with pytest.raises(StateError, match=message):
        asyncio.run(run_from(real_pair.kafka, prefix, topic, 5))


def test_a_position_that_retention_passes_while_the_app_runs_stops_it(real_pair, prefix):
    topic, tp = make_topic(real_pair.kafka, f"{prefix}in", 1), TP(f"{prefix}in", 0)
    produce(real_pair.kafka, topic, 0, numbered(0, 20))

    async def main():
        received = Received()
        async with running(real_pair.kafka, f"{prefix}g", [topic], received, alone=True) as app:
            await received.until(lambda: received.count() == 20)
            delete_until(real_pair.kafka, topic, 10)
            await app.consumer.seek_wait({tp: 5})  # as if it had been held there
            await app.wait_until_stopped()

    with pytest.raises(StateError, match="the stored position is 5, but Kafka has 10 to 20"):
        asyncio.run(main())


def test_a_position_beyond_the_end_stops_the_app(pair, prefix):
    topic = make_topic(pair.kafka, f"{prefix}in", 1)
    produce(pair.kafka, topic, 0, numbered(0, 20))
    message = rf"{topic}\[0\]: the stored position is 500, but Kafka has 0 to \d+: .*created again.*Backfill"
    with pytest.raises(StateError, match=message):
        asyncio.run(run_from(pair.kafka, prefix, topic, 500))


def test_a_position_at_the_very_end_is_a_good_one(pair, prefix):
    topic, tp = make_topic(pair.kafka, f"{prefix}in", 1), TP(f"{prefix}in", 0)
    produce(pair.kafka, topic, 0, numbered(0, 20))

    async def main():
        received = Received()
        delivery = starting_at({tp: 20})
        async with running(pair.kafka, f"{prefix}g", [topic], received, alone=True, delivery=delivery) as app:
            await received.until(lambda: app.consumer.flow_active and app.consumer.fetched_end(tp) is not None)
            assert await end_offsets(app.consumer, [tp]) == {tp: 20}
            produce(pair.kafka, topic, 0, numbered(20, 30))
            await received.until(lambda: received.next(tp) == 30)
        return received.values[tp]

    assert asyncio.run(main()) == numbered(20, 30)


def test_a_topic_that_is_created_again_under_a_running_app_stops_it(prefix, monkeypatch):
    monkeypatch.setattr(fetching, "BEYOND", 0.5)
    topic = f"{prefix}in"

    async def main():
        received = Received()
        with ExitStack() as first:
            broker = first.enter_context(embedded.kafka())
            make_topic(broker.address, topic, 1)
            produce(broker.address, topic, 0, numbered(0, 20))
            async with running(broker.address, f"{prefix}g", [topic], received, alone=True) as app:
                await received.until(lambda: received.count() == 20)
                first.close()
                with embedded.kafka(broker.port):
                    make_topic(broker.address, topic, 1)
                    produce(broker.address, topic, 0, numbered(0, 3))
                    async with asyncio.timeout(30):
                        await app.wait_until_stopped()

    with pytest.raises(StateError, match="the stored position is 20, but Kafka has 0 to 3"):
        asyncio.run(main())


def test_an_app_that_is_alone_takes_up_new_partitions(real_pair, prefix):
    topic = make_topic(real_pair.kafka, f"{prefix}in", 1)
    later = f"{prefix}later"

    async def main():
        received = Received()
        async with running(real_pair.kafka, f"{prefix}g", [topic, later], received, alone=True):
            produce(real_pair.kafka, topic, 0, numbered(0, 10))
            await received.until(lambda: received.count() == 10)
            received.batches.clear()
            make_topic(real_pair.kafka, later, 1)
            produce(real_pair.kafka, later, 0, numbered(0, 10))
            await received.until(lambda: received.next(TP(later, 0)) == 10)

    asyncio.run(main())


def test_headers_are_kept_for_topics_that_ask_for_them(embedded_pair, prefix):
    kafka, topic = embedded_pair.kafka, make_topic(embedded_pair.kafka, f"{prefix}in", 1)
    producer = Producer({"bootstrap.servers": kafka, "enable.idempotence": True})
    producer.produce(topic, b"1", headers={"error": b"bad"}, partition=0)
    producer.produce(topic, None, partition=0)
    producer.flush(20)

    async def main():
        received = Received()
        app = build_app(f"{prefix}g", kafka, [], received, alone=True)

        @app.agent(batch_topic(app, topic, headers=True))
        async def take(stream):
            async for batch in stream:
                await received(batch)

        task = asyncio.ensure_future(run_app(app))
        await received.until(lambda: received.count() == 2)
        task.cancel()
        await asyncio.wait([task])
        return [header for batch in received.batches[TP(topic, 0)] for header in batch.headers], received.values

    headers, values = asyncio.run(main())
    assert headers == [(("error", b"bad"),), ()]
    assert values[TP(topic, 0)] == [b"1", None]


@pytest.mark.parametrize("columns", [True, False], ids=["columns", "records"])
def test_records_without_a_value_keep_their_headers_on_every_topic(pair, prefix, columns):
    topic = make_topic(pair.kafka, f"{prefix}in", 1)
    producer = Producer({"bootstrap.servers": pair.kafka, "enable.idempotence": True})
    for value, headers in [(b"1", {"a": b"x"}), (None, {"b": b"y"}), (b"", {"c": b"z"}), (None, None)]:
        producer.produce(topic, value, headers=headers, partition=0)
    producer.flush(20)

    async def main():
        received = Received()
        delivery = Delivery(max_records=3, columns=columns)
        async with running(pair.kafka, f"{prefix}g", [topic], received, delivery=delivery, alone=True):
            await received.until(lambda: received.count() == 4)
        return received.batches[TP(topic, 0)]

    batches = asyncio.run(main())
    found = {int(batch.offsets[row]): headers for batch in batches for row, headers in batch.tombstones.items()}
    assert found == {1: (("b", b"y"),), 3: ()}


def test_a_topic_that_takes_single_records_is_refused(embedded_pair, prefix):
    async def main():
        app = build_app(f"{prefix}g", embedded_pair.kafka, [], Received())

        @app.agent(app.topic(f"{prefix}in"))
        async def take(stream):
            async for _ in stream:
                pass

        await run_app(app)

    with pytest.raises(ConfigError, match="batch_topic"):
        asyncio.run(main())


def delete_until(kafka, topic, offset):
    admin = AdminClient({"bootstrap.servers": kafka})
    for deleted in admin.delete_records([TopicPartition(topic, 0, offset)]).values():
        deleted.result(20)


async def run_from(kafka, prefix, topic, position):
    delivery = starting_at({TP(topic, 0): position})
    async with asyncio.timeout(30):
        await run_app(build_app(f"{prefix}g", kafka, [topic], Received(), alone=True, delivery=delivery))
