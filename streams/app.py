"""A Faust app for batches, started and stopped by the program it is part of.

`build_app` gives an app without tables, web server, leader or producer: Faust brings topics, agents, timers and the
consumer group. `run` (or `run_app` inside a running event loop) starts it and stops it; whatever fails inside, be it an
agent, a callback of `Delivery` or the coroutine that runs beside the app, stops it and is raised to the caller.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import faust
from faust.app.base import BootStrategy
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from mode.supervisors import CrashingSupervisor

from streams.transport import Batch, Delivery, batch_topic

__all__ = ["App", "Main", "build_app", "run", "run_app"]

log = logging.getLogger("streams.kafka")  # Faust logs its services under the names of their modules

Receive = Callable[[Batch], Awaitable[None]]
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOP_SECONDS = 4.5
"""Seconds that what is under way gets to be stored, once the process was told to stop."""
REMIND = 30.0
"""Seconds until the same line about Kafka is logged again."""


class _Boot(BootStrategy):  # type: ignore[misc]
    enable_kafka_producer = False
    enable_web = False
    enable_sensors = False


class _Recovery(Recovery):  # type: ignore[misc]
    async def _wait(self, coro: Any, timeout: Any = None) -> None:  # noqa: ANN401, ARG002, ASYNC109
        # To Faust a seek that takes too long is a service that was stopped: it would wait for ever, without a word.
        await super()._wait(coro)


class _Tables(TableManager):  # type: ignore[misc]
    _recovery: Recovery | None = None

    async def on_start(self) -> None:
        # Faust sleeps for a second here, in case tables are still being added. There are none.
        await self._update_channels()
        await self.recovery.start()

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = _Recovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


class App(faust.App):  # type: ignore[misc]
    """A Faust app whose topics deliver batches as its `delivery` says."""

    BootStrategy = _Boot
    delivery: Delivery
    alone: bool

    def receive(self, topic: Any, function: Callable[[Any], Awaitable[None]]) -> None:  # noqa: ANN401
        """Make an agent, as `agent` does, but for the search of all modules for the place where that was called."""
        agent = self.conf.Agent(
            function, name=f"receive {topic.topics[0]}", app=self, channel=topic, on_error=self._on_agent_error
        )
        self.agents[agent.name] = agent
        self.topics.beacon.add(agent)

    async def on_first_start(self) -> None:
        """Make no directories: nothing is kept on disk."""


Main = Callable[[App], Awaitable[None]]


def build_app(
    group: str,
    kafka: str,
    topics: Iterable[str],
    receive: Receive,
    *,
    delivery: Delivery | None = None,
    session_timeout_ms: int = 10_000,
    instance: str | None = None,
    client: str = "onceflow",
    alone: bool = False,
    credentials: Any = None,  # noqa: ANN401 - faust.SASLCredentials, faust.SSLCredentials and the like
) -> App:
    """Return an app of consumer group `group` that hands every batch of `topics` to `receive`.

    `kafka` is `host:port`, or several separated by commas. `receive` is called for one batch a topic at a time and
    must return soon: to slow a partition down, hold it. `session_timeout_ms` is how long a dead worker's partitions
    stay unowned. `instance` names this worker for Kafka (static membership): when it starts again within that
    time it gets its partitions back at once, without a rebalance; two workers must not use one name. `client` is only
    what Kafka's tools show. An app that is `alone` takes all partitions without asking the group: it starts at once,
    also after it was killed.
    """
    session = session_timeout_ms / 1000
    rebalance = max(2 * session, 20.0)
    app = App(
        group,
        broker=";".join(f"kafka-batch://{address.strip()}" for address in kafka.split(",")),
        broker_credentials=credentials,
        broker_client_id=client,
        broker_session_timeout=session,
        broker_heartbeat_interval=session / 4,
        broker_rebalance_timeout=rebalance,
        broker_request_timeout=rebalance + 10,  # a join waits for the whole rebalance
        broker_max_poll_interval=86_400.0,
        broker_commit_interval=1.0,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=instance,
        consumer_metadata_max_age_ms=10_000,  # how soon a topic or partition is seen that was made later
        store="memory://",
        topic_disable_leader=True,
        web_enabled=False,
        stream_recovery_delay=0.0,
        stream_wait_empty=False,
        agent_supervisor=CrashingSupervisor,
        TableManager=_Tables,
        HttpClient=object,  # never made; the usual one takes its time to import
    )
    app.alone = alone
    app.delivery = delivery or Delivery()
    _hear(kafka)
    for name in topics:
        _receive(app, name, receive)
    return app


def _receive(app: App, name: str, receive: Receive) -> None:
    async def agent(stream: Any) -> None:  # noqa: ANN401
        async for batch in stream:
            await receive(batch)

    app.receive(batch_topic(app, name, headers=name in app.delivery.headers), agent)


async def run_app(app: App, main: Main | None = None) -> None:
    """Run the app, and `main(app)` beside it, until one of them ends or this is cancelled; then stop the app.

    While the app stops `main` still runs, so `Delivery.revoked` can count on it; then it is cancelled. Raises what
    `main`, an agent, a callback or the consumer failed with.
    """
    tasks = [asyncio.ensure_future(_live(app))]
    if main is not None:
        tasks.append(asyncio.ensure_future(main(app)))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        tasks[0].cancel()
        await app.stop()
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for failure in (app.crash_reason, *outcomes):
            if isinstance(failure, Exception):
                raise failure


async def _live(app: App) -> None:
    await app.start()
    await app.wait_until_stopped()


def run(app: App, main: Main | None = None) -> bool:
    """Run as `run_app` does, in an event loop of its own, until SIGINT or SIGTERM; returns whether neither ended it.

    What is still under way `STOP_SECONDS` later, or at a second signal, is given up: the process ends with exit code 1.
    """
    told: list[int] = []  # before there was a loop that listens: what a handler raises would leave one half made
    before = {number: signal.signal(number, lambda number, _: told.append(number)) for number in _SIGNALS}
    try:
        return asyncio.run(_until_signalled(app, main, told))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _until_signalled(app: App, main: Main | None, told: Sequence[int]) -> bool:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(run_app(app, main))

    def stop() -> None:
        if task.cancelling():
            _give_up()
        task.cancel()
        loop.call_later(STOP_SECONDS, _give_up)

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    if told:
        stop()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return not task.cancelled()


def _give_up() -> None:
    """End the process, whose threads may wait for a server that is away."""
    log.error("told to stop, it could not store what was under way: who comes next does it again")
    logging.shutdown()
    os._exit(1)


class _Broker(logging.Handler):
    """Turns the many records that aiokafka logs while a broker is away into one line now and then."""

    AWAY = ("Unable connect to", "Unable to request metadata", "Unable to update metadata")
    FOLLOWING = (
        "Failed fetch",
        "Error sending",
        "Marking the coordinator dead",
        "Group Coordinator Request failed",
        "Heartbeat",
        "OffsetCommit failed",
        "LeaveGroup request failed",
    )

    def __init__(self, kafka: str) -> None:
        super().__init__(logging.WARNING)
        self.kafka = kafka
        self.said: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on what is worth a line."""
        message = record.getMessage()
        if message.startswith(self.AWAY):
            self._say("cannot reach Kafka, trying again", kafka=self.kafka)
        elif not message.startswith(self.FOLLOWING):
            self._say(message, source=record.name)

    def _say(self, message: str, **fields: str) -> None:
        now = time.monotonic()
        if now - self.said.get(message, -REMIND) >= REMIND:
            self.said[message] = now
            log.warning(message, extra=fields)


class _Service(logging.Handler):
    """Passes Faust's warnings on, but for the report that each service makes of one failure: `run` raises it.

    Nor is there a line for every commit that has to wait while a broker is away.
    """

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "Crashed reason" not in message and "commit is overlapping" not in message:
            log.warning(message, extra={"source": record.name})


def _hear(kafka: str) -> None:
    """Let aiokafka, and the services of Faust, speak through one logger only."""
    service = _Service(logging.WARNING)
    handlers = {"aiokafka": _Broker(kafka)} | dict.fromkeys(
        ("faust", "mode", "streams.app", "streams.fetching", "streams.transport"), service
    )
    for name, handler in handlers.items():
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.WARNING)
