"""`onceflow produce`: a file to Kafka."""

from __future__ import annotations

import json as codec
import os
import time
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from featurestore.errors import ConfigError
from featurestore.joined import Joined
from featurestore.sources import Source
from onceflow import modules, settings
from onceflow.produce import produce_file


def run(
    *,
    topic: str,
    file: Path,
    key: list[str] | None,
    module: str | None,
    timestamp: str | None,
    partitions: int | None,
    kafka: str | None,
    json: bool,
) -> None:
    """Send every row of the file and print how many there were."""
    chosen = settings.load(Path.cwd(), os.environ, kafka=kafka, partitions=partitions)
    source = _source(topic, module) if module else None
    if isinstance(source, Joined):
        raise ConfigError(
            f"{topic!r} holds the pairs that a worker makes of {source.left.name!r} and {source.right.name!r}: "
            "produce events to those"
        )
    if source and (source.format != "json" or source.fields):
        raise ConfigError(
            f"`onceflow produce` writes flat JSON, and source {topic!r} reads {source.format}"
            f"{' with fields by path' if source.fields else ''}: use a producer that writes it so"
        )
    columns = key or (source.keys if source else ())
    started = time.perf_counter()
    with _bar() as bar:
        task = bar.add_task(f"{file.name} -> {topic}", total=None)
        count = produce_file(
            chosen.kafka,
            topic,
            file,
            columns,
            chosen.partitions,
            timestamps=timestamp,
            progress=lambda sent: bar.update(task, completed=sent),
            partitioner=source.partitioner if source else None,
            types=source.schema if source else None,
            headers=source.headers if source else None,
        )
    seconds = time.perf_counter() - started
    if json:
        typer.echo(codec.dumps({"topic": topic, "events": count, "seconds": round(seconds, 3)}))
    else:
        typer.echo(f"{count:,} events to {topic} in {seconds:.1f} s")


def _source(topic: str, module: str) -> Source:
    sources = modules.load(module).sources
    if topic not in sources:
        raise ConfigError(f"module {module!r} has no source {topic!r}; its sources are {', '.join(sources)}")
    return sources[topic]


def _bar() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}  {task.completed:,} events"), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
