"""`onceflow demo`: the whole system on a year of real flights."""

from __future__ import annotations

import json as codec
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Self

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table

from onceflow import demo
from onceflow.demo import Outcome

_STEPS = {
    "produce": "1/5  sending the flights to Kafka",
    "replay": "2/5  replaying the year",
    "verify": "3/5  replaying the archive, and comparing bit for bit",
    "ask": "4/5  asking over HTTP",
    "live": "5/5  a few seconds live, to see how fresh features are",
}


def run(*, days: int | None, json: bool) -> int:
    """Run the demo; returns 1 when a check of it fails."""
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(stderr=json)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="onceflow-demo-") as folder, _Display(console) as display:
        outcome = demo.run(Path(folder), days, display.show)
    outcome.numbers["seconds"] = round(time.monotonic() - begun, 1)
    if json:
        typer.echo(codec.dumps({**outcome.numbers, "checks": outcome.checks, "ok": outcome.good}))
    else:
        _summarise(console, outcome)
    return 0 if outcome.good else 1


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Display:
    """One line that changes while a step runs, and stays when it has ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = Status("starting Kafka and Redis", console=console)
        self._step = ""
        self._begun = time.monotonic()

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()
        self._close()

    def show(self, step: str, numbers: Mapping[str, float]) -> None:
        """Show a step's numbers."""
        if step != self._step:
            self._close()
            self._step, self._begun = step, time.monotonic()
        self._status.update(f"{_STEPS[step]}  {_text(numbers, time.monotonic() - self._begun)}")

    def _close(self) -> None:
        if self._step:
            self._console.print(
                f"[green]✓[/green] {_STEPS[self._step]}  [dim]{time.monotonic() - self._begun:.1f} s[/dim]"
            )


def _text(numbers: Mapping[str, float], seconds: float) -> str:
    parts = []
    if "events" in numbers:
        parts.append(f"{numbers['events']:,.0f} of {numbers.get('of', 0):,.0f} events")
        parts.append(f"{numbers['events'] / max(seconds, 0.1):,.0f}/s")
    if numbers.get("predictions"):
        parts.append(f"{numbers['predictions']:,.0f} predictions, {numbers.get('labels_joined', 0):,.0f} labels")
    if numbers.get("auc"):
        parts.append(f"AUC {numbers['auc']:.3f}, without windows {numbers.get('auc_without_windows', 0):.3f}")
    return "  ".join(parts)


def _summarise(console: Console, outcome: Outcome) -> None:
    console.print()
    console.print(_table(outcome.numbers))
    for text, held in outcome.checks.items():
        console.print(f"{'[green]✓[/green]' if held else '[red]✗[/red]'} {text}")
    features = outcome.answers[0]
    console.print("\nAirports as of the last departure, over HTTP:" + _airports(features))
    console.print(
        "\nTry next:\n"
        "  onceflow init fraud            a project of your own\n"
        "  onceflow up                    Kafka and Redis to play with\n"
        "  examples/flights/features.py   the definitions behind this demo",
        highlight=False,
    )


def _table(numbers: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row(
        "Events", f"{numbers['events']:,}", f"folded at {numbers['events_per_s']:,} a second, states in Redis"
    )
    table.add_row(
        "Predictions", f"{numbers['predictions']:,}", "one an hour before each flight: more than 15 minutes late?"
    )
    joined, expired = f"{numbers['labels_joined']:,}", f"{numbers['labels_expired']:,}"
    table.add_row("Labels", joined, f"came hours later and were learnt from; {expired} never came")
    table.add_row(
        "ROC AUC", _number(numbers["auc"]), f"{_number(numbers['auc_without_windows'])} without windowed features"
    )
    table.add_row(
        "Log loss",
        _number(numbers["log_loss"]),
        f"{_number(numbers['log_loss_prior'])} for the running share of late flights",
    )
    compared = numbers["parity_compared"], numbers["mirror_compared"], numbers["logged_features_compared"]
    table.add_row("Replayed", f"{sum(compared):,}", "states, mirrored rows and logged features compared bit for bit")
    wrong = sum(numbers[f"{what}_mismatched"] for what in ("parity", "mirror", "logged_features"))
    table.add_row("Different", f"{wrong:,}", "of them")
    fresh = f"{numbers['freshness_p50_ms']:g} ms" if numbers["freshness_p50_ms"] is not None else "-"
    table.add_row(
        "Fresh", fresh, f"from Kafka to readable, half of the time; {numbers['freshness_p99_ms']:g} ms for 99 %"
    )
    table.add_row("Took", f"{numbers['seconds']:.0f} s", "")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _airports(features: Mapping[str, Any]) -> str:
    columns = dict(zip(features["metadata"]["feature_names"], features["results"], strict=True))
    origins = columns.pop("origin")["values"]
    parts = []
    for i, origin in enumerate(origins):
        values = ", ".join(f"{name} {column['values'][i]}" for name, column in columns.items())
        parts.append(f"\n  {origin}: {values}")
    return "".join(parts)
