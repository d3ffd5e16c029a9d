"""The stream part on work W: from Kafka through the windows of `work_views` to states in Redis.

Rates of a worker that replays a topic are those of its own account, from its first chunk to its last. Freshness is
what a caller sees: from before an event is handed to a producer until an answer over HTTP counts it.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from typing import Any

import httpx
import numpy as np
import psutil
from confluent_kafka import Producer
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from benchmarks import peers
from benchmarks.load import load
from benchmarks.quotas import quota, why_no_quota
from benchmarks.rig import Rig, cores, described, on, rig
from benchmarks.work import KEY, MANY_CARDS, PARTITIONS, TOPIC, VARIANTS, arrow_records, frames
from featurestore.errors import UnavailableError
from onceflow.children import free_port
from onceflow.processes import Command
from onceflow.produce import ensure_topics, produce_frames

EVENTS = 2_000_000
RUNS = 3
PROBES = 200
PROBE_PAUSE_SECONDS = 0.005
LOAD = 500_000
"""Events a second of which freshness is measured at a share, where a worker reaches them."""
CALM_RATE, CALM_SECONDS = 1_000, 10.0
PATIENCE_SECONDS = 60.0
MEASURED = 0.75
"""Share of a topic over which a group is measured."""
SHARE = 0.4
"""Of a core, what a worker gets where two must share one, and the servers have the other."""
REPLAY = ("worker", "--mode", "replay")


def fill(place: Rig, events: int, variant: str = "cents") -> None:
    if variant != "arrow":
        produce_frames(place.kafka, TOPIC, frames(events, variant), [KEY], PARTITIONS, timestamps="ts")
        return
    ensure_topics(place.kafka, {TOPIC: PARTITIONS})
    producer = Producer({"bootstrap.servers": place.kafka, "linger.ms": 50})
    for part in frames(events, variant):
        for partition, value, time_ms in arrow_records(part, PARTITIONS):
            producer.produce(TOPIC, value, partition=partition, timestamp=time_ms)
        producer.flush()


def replayed(place: Rig, redis: str, variant: str) -> dict[str, Any]:
    """What a worker says of one replay of the topic, into an empty Redis."""
    with Redis.from_url(redis) as client:
        client.flushall()
    module = "work_views_arrow" if variant == "arrow" else "work_views"
    with place.run(redis, "worker", *REPLAY, "--until-end", module=module) as worker:
        worker.wait()
        return worker.result()


def replays(variant: str, events: int, runs: int) -> list[dict[str, Any]]:
    """What a worker says of each replay after the first, which may compile, and gives Redis its memory."""
    with rig() as place, place.redis() as redis:
        fill(place, events, variant)
        return [replayed(place, redis, variant) for _ in range(runs + 1)][1:]


def median(results: list[dict[str, Any]], name: str) -> float:
    return statistics.median(float(result[name]) for result in results)


def process_of(command: Command) -> psutil.Process:
    """The process of a command, which its guard started."""
    return psutil.Process(command.guard.pid).children()[0]


# --- several workers ----------------------------------------------------------------------------------------------


def samples_of(port: int, name: str) -> list[float]:
    """The values of a metric of the worker with this port; none while it does not answer."""
    try:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=2).text
    except httpx.HTTPError:
        return []
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return [sample.value for sample in samples if sample.name == name]


def counted(*ports: int) -> int:
    """How many events the workers with these ports of metrics have stored."""
    return int(sum(sum(samples_of(port, "onceflow_events_total")) for port in ports))


def awaited(done: Callable[[], bool], what: str, pause_seconds: float = 0.02) -> None:
    """Wait until it is done, and ask again after each pause; UnavailableError after a minute."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise UnavailableError(f"{what} did not happen within {PATIENCE_SECONDS:.0f} s")
        time.sleep(pause_seconds)


def have_begun(ports: Sequence[int]) -> bool:
    """Whether the workers share all partitions, and have looked for records in each."""
    shares = [len(samples_of(port, "onceflow_lag_records")) for port in ports]
    return all(shares) and sum(shares) == PARTITIONS


def group_rate(workers: int, events: int, share: float = 0.0) -> float:
    """Events a second of workers that share a topic, from when they find it filled until three quarters are done.

    Until then all of them have events left: keys are skewed, and so are the workers' parts. Each has a core of its own,
    or where a `share` is given so much of the last core, which leaves another to the servers. They run live, for in a
    replay without end a partition that is at its end holds up the others; and they stand still while the topic is
    filled, so that they begin together, with all there is.
    """
    ports = [free_port() for _ in range(workers)]
    with rig() as place, place.redis() as redis, ExitStack() as stack:
        ensure_topics(place.kafka, {TOPIC: PARTITIONS})
        members = []
        for number, port in enumerate(ports):
            name, settings = f"member-{number}", dict[str, Any](group="several", session_timeout_ms=120_000)
            core = -1 if share else -1 - number
            member = place.run(redis, name, "worker", core=core, metrics_port=port, **settings)
            members.append(stack.enter_context(member))
        awaited(lambda: have_begun(ports), f"the start of {workers} workers")
        processes = [process_of(member) for member in members]
        for process in processes:
            process.suspend()
            if share:
                stack.enter_context(quota(process.pid, share))
        fill(place, events)
        for process in processes:
            process.resume()
        begun = time.monotonic()
        awaited(lambda: counted(*ports) >= MEASURED * events, f"most of the topic for {workers} workers")
        return counted(*ports) / (time.monotonic() - begun)


# --- freshness ----------------------------------------------------------------------------------------------------


@contextmanager
def serving(place: Rig, redis: str) -> Iterator[tuple[psutil.Process, HTTPConnection]]:
    """A live worker's process, and a connection to a server beside it."""
    port = free_port()
    with ExitStack() as stack:
        worker = stack.enter_context(place.run(redis, "live", "worker"))
        server = stack.enter_context(place.run(redis, "server", "serve", "--port", str(port), core=0))
        awaited(lambda: ready(port, worker, server), "the start of worker and server")
        yield process_of(worker), stack.enter_context(closing(HTTPConnection("127.0.0.1", port, timeout=10)))


def ready(port: int, *commands: Command) -> bool:
    for command in commands:
        if command.ended:
            command.fail()
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def is_counted(connection: HTTPConnection, card: str) -> bool:
    """Whether an answer over HTTP counts a card's event.

    It is asked for by a plain connection: what the client takes of the servers' core, they lack.
    """
    body = json.dumps({"features": ["card_spend:n_5m"], "entities": {KEY: [card]}})
    connection.request("POST", "/get-online-features", body, {"content-type": "application/json"})
    return bool(json.loads(connection.getresponse().read())["results"][1]["values"] == [1])


def probe(producer: Producer, connection: HTTPConnection, card: str) -> float:
    """Milliseconds until a card's first event can be read."""
    begun = time.perf_counter()
    text = f'{{"{KEY}":"{card}","amount":1.25,"merchant":"m","country":"DE","ts":{time.time_ns() // 1_000_000}}}'
    producer.produce(TOPIC, text.encode(), card.encode())
    producer.flush()
    awaited(lambda: is_counted(connection, card), "an answer", PROBE_PAUSE_SECONDS)
    return 1000 * (time.perf_counter() - begun)


def freshness(place: Rig, rate: float, probes: int, calm_seconds: float) -> dict[str, float]:
    """Milliseconds until an event can be read, at `rate` events a second; and a worker's CPU at 1,000 events/s."""
    ensure_topics(place.kafka, {TOPIC: PARTITIONS})
    producer = Producer({"bootstrap.servers": place.kafka, "linger.ms": 0, "partitioner": "consistent_random"})
    with place.redis() as redis, serving(place, redis) as (worker, connection):
        for number in range(20):  # while the kernel is loaded and connections are made
            probe(producer, connection, f"warm-{number}")
        with load(place.kafka, TOPIC, rate, PARTITIONS):
            ages: list[float] = []
            deadline = time.monotonic() + PATIENCE_SECONDS
            while len(ages) < probes and time.monotonic() < deadline:
                ages.append(probe(producer, connection, f"probe-{len(ages)}"))
        with load(place.kafka, TOPIC, CALM_RATE, PARTITIONS):
            before = sum(worker.cpu_times()[:2])
            time.sleep(calm_seconds)
            spent = sum(worker.cpu_times()[:2]) - before
    p50, p99 = np.quantile(ages, [0.5, 0.99])
    return {"p50": float(p50), "p99": float(p99), "cpu": spent / calm_seconds}


# --- memory -------------------------------------------------------------------------------------------------------


def memory(place: Rig, events: int) -> list[tuple[int, float]]:
    """The memory of a worker (MB) as it replays many events of many cards, at each tenth of them."""
    fill(place, events, "many")
    port, seen = free_port(), [(0, 0.0)]
    with place.redis() as redis, place.run(redis, "long", *REPLAY, "--until-end", metrics_port=port) as worker:
        while not worker.ended:
            time.sleep(0.05)
            done = counted(port)
            if done >= seen[-1][0] + events // 10:
                seen.append((done, process_of(worker).memory_info().rss / 1e6))
        worker.wait()
    return seen[1:]


# --- report -------------------------------------------------------------------------------------------------------


def say(what: str, value: float, unit: str = "") -> None:
    """Print one figure; nan where there were too few events for it."""
    print(f"  {what:<38}{value:>12,.{0 if value >= 100 else 2}f} {unit}".rstrip())


def tell_rates(variant: str, results: list[dict[str, Any]]) -> float:
    """Print what replays came to; returns their events a second."""
    first, wall = results[0], median(results, "events_per_s")
    print(f"{VARIANTS[variant]}: {first['events']:,} events, {first['states']:,} states written")
    say("events/s", wall)
    say("events per second of CPU", median(results, "events_per_cpu_s"))
    for stage in first["seconds"]:
        say(stage, statistics.median(result["seconds"][stage] for result in results), "s")
    return wall


def tell_scale(events: int, runs: int) -> None:
    """Print what two workers do of what one does: with a core each, and with a part of one core each."""

    def scale(share: float = 0.0) -> float:
        """The median of ratios, each of two measurements that follow each other."""
        return statistics.median(group_rate(2, events, share) / group_rate(1, events, share) for _ in range(runs))

    say("two workers in a group, of one", scale())
    if len(cores()) < 3:
        print("  (of two workers on this machine, one shares its core with the servers)")
    if why := why_no_quota():
        print(f"  two workers of a part of a core each: not measured: {why}")
    else:
        say(f"two workers of {SHARE} of a core each, of one", scale(SHARE))


def tell_freshness(rate: float, probes: int, calm_seconds: float) -> None:
    try:
        with rig() as place:
            found = freshness(place, rate, probes, calm_seconds)
    except UnavailableError as error:  # one core for all servers and the producer may not keep up
        print(f"  freshness at {rate:,.0f} events/s: not measured: {error}")
        return
    say(f"readable over HTTP at {rate:,.0f}/s, p50", found["p50"], "ms")
    say("p99", found["p99"], "ms")
    say(f"CPU at {CALM_RATE:,} events/s", 100 * found["cpu"], "% of a core")


def tell_peers(rate: float) -> None:
    """Run each peer on its part of work W, and print what the worker's rate is of its own."""
    with rig() as place:
        fill(place, max(peers.EVENTS.values()))
        for name, events in peers.EVENTS.items():
            with on(*place.cores[-1:]):
                found = peers.measured(name, place.kafka, events)
            if isinstance(found, str):
                print(f"  {name}: not measured: {found}")
                continue
            print(f"{name} ({', '.join(found['requirements'])}), hopping windows, {found['events']:,} events")
            say("events/s", found["events_per_s"])
            say("events per second of CPU", found["events_per_cpu_s"])
            say("rate of onceflow, of this", rate / found["events_per_s"])


def main(
    events: int = EVENTS,
    runs: int = RUNS,
    probes: int = PROBES,
    calm_seconds: float = CALM_SECONDS,
    long: int = 0,
    *,
    share: float = 0.5,
    beside_peers: bool = False,
) -> None:
    """Measure all of it; `long` is how many events to watch the worker's memory over.

    Freshness is measured at this `share` of the rate.
    """
    print(f"stream: work W on {described()}; medians of {runs} runs")
    rates = {variant: tell_rates(variant, replays(variant, events, runs)) for variant in VARIANTS}
    plain = rates["cents"]
    say("rate with a hot card, of plain", rates["hot"] / plain)
    tell_scale(events, runs)
    tell_freshness(share * min(plain, LOAD), probes, calm_seconds)
    if long:
        print(f"memory of a worker that replays {long:,} events, each fourth of the next of {MANY_CARDS:,} cards")
        with rig() as place:
            for done, used in memory(place, long):
                say(f"memory after {done:,} events", used, "MB")
    if beside_peers:
        tell_peers(plain)
