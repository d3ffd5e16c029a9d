"""`onceflow dlq`: the records that a worker refused, counted or shown."""

from __future__ import annotations

import json as codec
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onceflow.quarantine import Refused, escaped, refused_records, text_of
from onceflow.settings import load as load_settings


def run(*, action: Literal["list", "show"], topic: str, error: str | None, limit: int, json: bool) -> None:
    """Print how many records were refused, by reason and partition, or the first ones themselves."""
    settings = load_settings(Path.cwd(), os.environ)
    found = (record for record in refused_records(settings.kafka, topic) if error in (None, record.error))
    if action == "list":
        _list(found, json=json)
    else:
        _show(islice(found, limit), topic, json=json)


def _list(found: Iterator[Refused], *, json: bool) -> None:
    counts = Counter((record.error, record.partition) for record in found)
    ordered = sorted(counts.items())
    if json:
        lines = [{"error": error, "partition": partition, "records": n} for (error, partition), n in ordered]
        typer.echo(codec.dumps({"refused": lines}))
        return
    table = Table("error", "partition", "records")
    for (error, partition), count in ordered:
        table.add_row(Text(escaped(error)), Text(escaped(partition)), f"{count:,}")
    Console().print(table)


def _show(found: Iterator[Refused], topic: str, *, json: bool) -> None:
    if json:
        typer.echo(codec.dumps({"refused": [_plain(record) for record in found]}))
        return
    for record in found:
        place = f"{topic}[{record.partition}] at offset {record.offset}"
        typer.echo(escaped(f"{place}: {record.error}: {record.detail}"))
        typer.echo("    " + ("no value" if record.value is None else escaped(record.value)))


def _plain(record: Refused) -> dict[str, str | None]:
    """JSON has no bytes: one that is no UTF-8 is a lone surrogate, as Python's `surrogateescape` makes of it."""
    value = None if record.value is None else text_of(record.value)
    return {
        "error": record.error,
        "detail": record.detail,
        "partition": record.partition,
        "offset": record.offset,
        "value": value,
    }
