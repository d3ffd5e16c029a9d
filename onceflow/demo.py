"""The whole system on a year of real flights: what `onceflow demo` does, step by step.

Everything runs as it does in production, by the same commands in processes of their own: a worker, a server, the
verification. Only Kafka and Redis are the embedded ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import httpx
import polars as pl
from prometheus_client.parser import text_string_to_metric_families

from featurestore import ConfigError, OnceflowError
from onceflow import embedded
from onceflow.children import free_port
from onceflow.processes import Command, running
from onceflow.produce import encode, produce_frame
from streams.messages import Message
from streams.publisher import Publisher

MODULE = "examples.flights.features"
SERVICE = "late_arrival"
PARTITIONS = 2
#: The live part: so many events a second, for so many seconds.
LIVE_RATE, LIVE_SECONDS = 1_000, 5
YEAR_MS = 365 * 86_400_000

_SOURCES = {"schedule": "flight_id", "departures": "flight_id", "arrivals": "flight_id", "weather": "origin"}
#: What is shown of the service's summary.
_WANTED = (
    *("predictions", "labels_joined", "labels_expired", "labels_pending", "auc", "auc_without_windows"),
    *("log_loss", "log_loss_prior", "log_loss_without_windows", "accuracy", "accuracy_prior", "model_digest"),
)
_POLL_SECONDS = 0.25
_READY_SECONDS = 60.0


@dataclass
class Outcome:
    """What the demo found. `checks` maps what was checked to whether it held."""

    numbers: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether every check held."""
        return all(self.checks.values())


#: Told what goes on: a step's name and its numbers so far.
Report = Callable[[str, Mapping[str, float]], None]


def run(folder: Path, days: int | None, report: Report) -> Outcome:
    """Run the demo in `folder`; whatever was started has ended when this returns or raises."""
    frames = _events(days)
    outcome = Outcome()
    with embedded.kafka() as kafka, embedded.redis() as redis:
        environment = {
            "ONCEFLOW_KAFKA": kafka.address,
            "ONCEFLOW_REDIS": f"redis://{redis.address}/0",
            "ONCEFLOW_DATA": str(folder / "data"),
            "ONCEFLOW_PARTITIONS": str(PARTITIONS),
            "ONCEFLOW_ALONE": "true",
        }
        sent = _produce(kafka.address, frames, report)
        _replay(folder, environment, sent, outcome, report)
        _verify(folder, environment, outcome, report)
        _ask(folder, environment, frames, outcome, report)
        _live(folder, environment, frames, outcome, report)
    if days is None:
        _judge(outcome)
    return outcome


def _events(days: int | None) -> dict[str, pl.DataFrame]:
    try:
        from examples.flights.data import topics  # noqa: PLC0415 - the data is an extra

        frames = topics()
    except ModuleNotFoundError as error:
        raise ConfigError(f"the flights are not installed ({error}): install onceflow[demo]") from error
    if days is None:
        return frames
    start = min(int(frame["at"].to_numpy().min()) for frame in frames.values())
    return {name: frame.filter(pl.col("at") < start + days * 86_400_000) for name, frame in frames.items()}


def _produce(kafka: str, frames: Mapping[str, pl.DataFrame], report: Report) -> int:
    sent = 0
    for topic, frame in frames.items():
        before = sent

        def progress(count: int, before: int = before) -> None:
            report("produce", {"events": before + count, "of": sum(map(len, frames.values()))})

        sent += produce_frame(kafka, topic, frame, [_SOURCES[topic]], PARTITIONS, progress=progress)
    return sent


def _replay(folder: Path, environment: Mapping[str, str], sent: int, outcome: Outcome, report: Report) -> None:
    """The year, as fast as it goes."""
    arguments = ["worker", "--module", MODULE, "--mode", "replay", "--until-end"]
    with _worker(folder / "logs" / "replay.log", arguments, environment) as (worker, port):
        while not worker.ended:
            report("replay", {**_metrics(port), "of": sent})
            time.sleep(_POLL_SECONDS)
        worker.wait()
        result = worker.result()
    service = result["services"][SERVICE]
    outcome.numbers |= {"events": result["events"], "events_per_s": result["events_per_s"], "states": result["states"]}
    outcome.numbers |= {name: service[name] for name in _WANTED}
    outcome.numbers["stage_seconds"] = result["seconds"]
    outcome.checks["every event that was sent was processed"] = result["events"] == sent


def _verify(folder: Path, environment: Mapping[str, str], outcome: Outcome, report: Report) -> None:
    report("verify", {})
    replayed = {**environment, "ONCEFLOW_MODE": "replay"}
    with running(["verify", "--module", MODULE, "--json"], folder / "logs" / "verify.log", replayed) as verify:
        verify.guard.wait()
        result = verify.result()
    names = [f"{what}_{how}" for what in ("parity", "mirror", "logged_features") for how in ("compared", "mismatched")]
    outcome.numbers |= {name: result[name] for name in names}
    for what, text in (
        ("parity", "states in Redis equal a replay of the archive"),
        ("mirror", "the offline mirror equals a replay of the archive"),
        ("logged_features", "features logged with predictions equal the offline backfill"),
    ):
        outcome.checks[text] = result[f"{what}_compared"] > 0 and result[f"{what}_mismatched"] == 0


def _ask(
    folder: Path, environment: Mapping[str, str], frames: Mapping[str, pl.DataFrame], outcome: Outcome, report: Report
) -> None:
    """Query features, and a prediction, over HTTP."""
    report("ask", {})
    port = free_port()
    moment = int(frames["departures"]["at"].to_numpy().max())
    last = frames["schedule"].tail(1).to_dicts()[0]
    question = {
        "features": ["origin_departures:flights_1h", "origin_departures:delay_3h", "origin_weather:visib_3h"],
        "entities": {"origin": ["EWR", "JFK", "LGA"]},
        "as_of": moment,
    }
    serve = ["serve", "--module", MODULE, "--port", str(port)]
    with (
        running(serve, folder / "logs" / "serve.log", environment) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client,
    ):
        _wait_for(lambda: client.get("/readyz").is_success, server)
        features = client.post("/get-online-features", json=question)
        prediction = client.post(f"/predict/{SERVICE}", json=last)
    outcome.checks["features are answered over HTTP"] = features.is_success
    outcome.checks["a prediction is answered over HTTP"] = prediction.is_success
    outcome.answers = [features.json(), prediction.json()]


def _live(
    folder: Path, environment: Mapping[str, str], frames: Mapping[str, pl.DataFrame], outcome: Outcome, report: Report
) -> None:
    """A few seconds of departures of the next year, live, to see how fresh features are."""
    events = frames["departures"].head(LIVE_RATE * LIVE_SECONDS).with_columns(pl.col("at") + YEAR_MS)
    records, step = _records(events), LIVE_RATE // 50
    publisher = Publisher(environment["ONCEFLOW_KAFKA"])
    begun = time.monotonic()
    arguments = ["worker", "--module", MODULE, "--mode", "live"]
    with _worker(folder / "logs" / "live.log", arguments, environment) as (worker, port):
        publisher.send(records[:LIVE_RATE])  # so much to warm up
        _wait_for(lambda: _metrics(port).get("events", 0.0) >= LIVE_RATE, worker)
        outcome.numbers["second_start_s"] = round(time.monotonic() - begun, 2)
        before, started = _metrics(port), time.monotonic()
        for at in range(LIVE_RATE, len(records), step):
            publisher.send(records[at : at + step])
            report("live", {"events": float(at + step), "of": float(len(records))})
            time.sleep(max(0.0, started + (at + step - LIVE_RATE) / LIVE_RATE - time.monotonic()))
        asyncio.run(publisher.flush())
        _wait_for(lambda: _metrics(port).get("events", 0.0) >= len(records), worker)
        after = _metrics(port)
    fresh = {1_000 * float(k[6:]): after[k] - before.get(k, 0.0) for k in after if k.startswith("fresh:")}
    outcome.numbers |= {f"freshness_p{q}_ms": _quantile(fresh, q / 100) for q in (50, 99)}


def _records(events: pl.DataFrame) -> list[Message]:
    """Departures as records, to the partitions to which `onceflow produce` sends them."""
    keys = [key.encode() for key in events["flight_id"].to_list()]
    values = zip(keys, encode(events), strict=True)
    return [Message("departures", crc32(key) % PARTITIONS, value, key) for key, value in values]


def _quantile(cumulative: Mapping[float, float], quantile: float) -> float | None:
    """The upper bound of the bucket in which the quantile lies."""
    total = max(cumulative.values(), default=0.0)
    reached = [bound for bound, count in sorted(cumulative.items()) if total and count >= quantile * total]
    return reached[0] if reached else None


def _judge(outcome: Outcome) -> None:
    """Hold the model to what a whole year of labels should teach it."""
    numbers = outcome.numbers
    gain = numbers["auc"] - numbers["auc_without_windows"]
    outcome.checks["ROC AUC is at least 0.70"] = numbers["auc"] >= 0.70
    outcome.checks["windowed features add at least 0.01 to it"] = gain >= 0.01
    outcome.checks["log loss is below the prior's"] = numbers["log_loss"] < numbers["log_loss_prior"]


@contextmanager
def _worker(log: Path, arguments: list[str], environment: Mapping[str, str]) -> Iterator[tuple[Command, int]]:
    port = free_port()
    with running(arguments, log, {**environment, "ONCEFLOW_METRICS_PORT": str(port)}) as worker:
        yield worker, port


def _metrics(port: int) -> dict[str, float]:
    """A worker's numbers by short name; empty while it does not answer."""
    try:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=2).text
    except httpx.HTTPError:
        return {}
    out: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "onceflow_freshness_seconds_bucket":
                out[f"fresh:{sample.labels['le']}"] = sample.value
            elif set(sample.labels) <= {"service"}:
                out[sample.name.removeprefix("onceflow_").removeprefix("service_").removesuffix("_total")] = (
                    sample.value
                )
    return out


def _wait_for(done: Callable[[], bool], command: Command) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        try:
            if done():
                return
        except httpx.HTTPError:
            pass  # not listening yet
        if command.ended:
            command.fail()
        time.sleep(0.05)
    raise OnceflowError(
        f"`onceflow {command.name}` was not ready after {_READY_SECONDS:.0f} s; its log is {command.log}"
    )
