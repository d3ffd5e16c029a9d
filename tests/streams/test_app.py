from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from pathlib import Path

import faust
import pytest

from onceflow import embedded
from onceflow.children import free_port
from streams.app import App, build_app, run_app
from streams.transport import TP, Delivery, Transport
from tests.streams.driving import Received, make_topic, numbered, produce, running

MEMBER = Path(__file__).with_name("member.py")


@pytest.fixture
def topic(embedded_pair, prefix):
    return make_topic(embedded_pair.kafka, f"{prefix}in", 1)


def failing_with(error):
    async def fail(_):
        raise error

    return fail


def test_the_transport_is_found_by_its_url_scheme():
    assert faust.transport.by_url("kafka-batch://localhost:9092") is Transport


def test_several_brokers_may_be_named():
    app = build_app("g", "one:9092, two:9093", [], Received())
    assert [str(url) for url in app.conf.broker] == ["kafka-batch://one:9092", "kafka-batch://two:9093"]


@pytest.mark.parametrize("hook", ["positions", "assigned", "revoked"])
def test_a_failing_callback_stops_the_app_and_is_raised(embedded_pair, prefix, topic, hook):
    produce(embedded_pair.kafka, topic, 0, numbered(0, 10))

    async def main():
        received = Received()
        delivery = Delivery(**{hook: failing_with(ValueError(hook))})
        app = build_app(f"{prefix}g", embedded_pair.kafka, [topic], received, delivery=delivery, alone=True)
        await run_app(app, lambda _: received.until(lambda: received.count() == 10))

    with pytest.raises(ValueError, match=hook):
        asyncio.run(main())


def test_an_app_stops_without_a_word_when_its_thread_has_ended(embedded_pair, prefix, topic, caplog, monkeypatch):
    stop = App.stop

    async def late(app):
        while not app.consumer._thread.thread_loop.is_closed():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await stop(app)

    monkeypatch.setattr(App, "stop", late)
    delivery = Delivery(positions=failing_with(ValueError("no positions")))
    app = build_app(f"{prefix}g", embedded_pair.kafka, [topic], Received(), delivery=delivery, alone=True)
    with pytest.raises(ValueError, match="no positions"):
        asyncio.run(run_app(app))
    assert caplog.messages == []


def test_a_failing_receiver_stops_the_app_and_is_raised(embedded_pair, prefix, topic):
    produce(embedded_pair.kafka, topic, 0, numbered(0, 10))
    receive = failing_with(ValueError("no more"))
    revoked = []

    async def note(tps):
        revoked.append(tps)

    async def main():
        app = build_app(
            f"{prefix}g", embedded_pair.kafka, [topic], receive, delivery=Delivery(revoked=note), alone=True
        )
        await run_app(app)

    with pytest.raises(ValueError, match="no more"):
        asyncio.run(main())
    assert revoked == []  # what failed must not be finished


def test_a_failing_main_stops_the_app_and_is_raised(embedded_pair, prefix, topic):
    async def main():
        app = build_app(f"{prefix}g", embedded_pair.kafka, [topic], Received(), alone=True)
        await run_app(app, failing_with(ValueError("broken loop")))

    with pytest.raises(ValueError, match="broken loop"):
        asyncio.run(main())


def test_the_app_stops_when_main_returns_and_main_runs_until_partitions_are_given_away(embedded_pair, prefix, topic):
    produce(embedded_pair.kafka, topic, 0, numbered(0, 10))
    heard = []

    async def revoked(tps):
        heard.append(("revoked", tps))

    async def main():
        received = Received()

        async def work(app):
            await received.until(lambda: received.count() == 10)
            heard.append("worked")

        app = build_app(
            f"{prefix}g", embedded_pair.kafka, [topic], received, delivery=Delivery(revoked=revoked), alone=True
        )
        await run_app(app, work)

    asyncio.run(main())
    assert heard == ["worked", ("revoked", frozenset({TP(topic, 0)}))]


def test_a_broker_that_is_missing_or_goes_away_is_waited_for(prefix, caplog):
    port, topic = free_port(), f"{prefix}in"
    tp = TP(topic, 0)

    async def main():
        received = Received()
        async with running(f"127.0.0.1:{port}", f"{prefix}g", [topic], received, alone=True):
            await received.until(lambda: "cannot reach" in caplog.text)
            with embedded.kafka(port) as broker:
                produce(broker.address, topic, 0, numbered(0, 0))
            await asyncio.sleep(0.5)
            with embedded.kafka(port) as broker:
                produce(broker.address, topic, 0, numbered(0, 10))
                await received.until(lambda: received.next(tp) == 10)

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (record.getMessage(), record.kafka) == ("cannot reach Kafka, trying again", f"127.0.0.1:{port}")


def test_an_app_stops_while_the_broker_is_missing():
    async def main():
        async with running(f"127.0.0.1:{free_port()}", "g", ["in"], Received()):
            await asyncio.sleep(0.2)

    asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_app_in_good_order(embedded_pair, prefix, topic, number):
    command = [sys.executable, MEMBER, embedded_pair.kafka, f"{prefix}g", topic]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as member:
        assert member.stdout.readline() == "assigned 1\n"
        member.send_signal(number)
        out, err = member.communicate(timeout=20)
    assert (member.returncode, out, err) == (0, "revoked 1\n", "")
