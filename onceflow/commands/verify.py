"""`onceflow verify`: replay the archive, and compare all that was stored with it."""

from __future__ import annotations

import asyncio
import dataclasses
import json as codec
import os
import time
from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from batch.archive import archived_partitions
from batch.compare import Report
from batch.logged import Logged
from batch.verify import verify
from featurestore.errors import ConfigError
from featurestore.online import connect
from onceflow import modules, settings
from onceflow.modules import Definitions
from onceflow.settings import Settings


def run(*, module: str, json: bool) -> int:
    """Print what was compared; the exit code is 1 when anything differs or is missing."""
    definitions, chosen = modules.load(module), settings.load(Path.cwd(), os.environ)
    began = time.perf_counter()
    with bar() as progress:
        task = progress.add_task("", total=None)
        report = asyncio.run(_verified(definitions, chosen, lambda what: progress.update(task, description=what)))
    seconds = round(time.perf_counter() - began, 3)
    if json:
        typer.echo(codec.dumps({**dataclasses.asdict(report), "good": report.good, "seconds": seconds}))
    else:
        typer.echo(_text(report, seconds))
    return 0 if report.good else 1


def bar(counted: str = "") -> Progress:
    """A progress bar on standard error, where that is a terminal; it may count things."""
    text = "{task.description}" + (f"  {{task.completed:,}} {counted}" if counted else "")
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn(text), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


async def _verified(definitions: Definitions, chosen: Settings, progress: Callable[[str], None]) -> Report:
    events = chosen.data / "events"
    if not events.is_dir():
        raise ConfigError(
            f"there is no archive under {events}: a worker keeps one unless `archive` is off; run it first, or set "
            f"`data` to where it is"
        )
    store = connect(chosen.redis)
    try:
        return await verify(
            list(definitions.views.values()),
            [Logged(each.name, each.feature_set, each.before) for each in definitions.services.values()],
            store,
            chosen.data,
            archived_partitions(events),
            merged=chosen.mode == "replay",
            mirrored=chosen.mirror,
            now=time.time_ns() // 1_000_000,
            progress=progress,
        )
    finally:
        await store.close()


def _text(report: Report, seconds: float) -> str:
    kinds = [
        ("states in Redis", report.parity_compared, report.parity_mismatched),
        ("rows of the mirror", report.mirror_compared, report.mirror_mismatched),
        ("logged features", report.logged_features_compared, report.logged_features_mismatched),
    ]
    lines = [f"{compared:>12,} {what}, {wrong:,} differ" for what, compared, wrong in kinds]
    lines += [f"{report.skipped:>12,} not compared"] * bool(report.skipped)
    for title, texts in (("Missing", report.missing), ("Differing", report.examples), ("Notes", report.notes)):
        if texts:
            lines += ["", f"{title}:", *(f"  {text}" for text in texts)]
    verdict = "All equals a replay of the archive, bit for bit" if report.good else "Not all is as a replay gives it"
    return "\n".join([*lines, "", f"{verdict} ({seconds:.1f} s)."])
