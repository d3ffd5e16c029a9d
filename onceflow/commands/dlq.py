"""`onceflow dlq`: the records that a worker refused, counted, shown or sent back."""

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

from onceflow.escaping import escaped, text_of
from onceflow.quarantine import Refused, refused_records
from onceflow.sending_back import send_back
from onceflow.settings import load as load_settings


def run(
    *, action: Literal["list", "show", "replay"], topic: str, error: str | None, limit: int, again: bool, json: bool
) -> int:
    """Print how many records were refused, by reason and partition, or the first ones themselves; or send them back.

    The exit code is 1 where some cannot be sent back.
    """
    settings = load_settings(Path.cwd(), os.environ)
    if action == "replay":
        return _send_back(settings.kafka, topic, error, again=again, json=json)
    found = (record for record in refused_records(settings.kafka, topic) if error in (None, record.error))
    if action == "list":
        _list(found, json=json)
    else:
        _show(islice(found, limit), topic, json=json)
    return 0


def _send_back(kafka: str, topic: str, error: str | None, *, again: bool, json: bool) -> int:
    errors = [error] if error else sorted({record.error for record in refused_records(kafka, topic)})
    sent, cut = send_back(kafka, topic, errors, again=again)
    if json:
        typer.echo(codec.dumps({"sent": sent, "cut": cut}))
    else:
        typer.echo(f"{sent:,} records sent back to {topic}")
        if cut:
            typer.echo(f"{cut:,} were not: only their first 4,096 bytes were kept; send them from where they were made")
    return 1 if cut else 0


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
        for name, text in _named(record).items():
            typer.echo(escaped(f"    {name}: ") + escaped(text))


def _named(record: Refused) -> dict[str, bytes]:
    """What stands beside the value, where there is any."""
    key = {} if record.key is None else {"key": record.key}
    return key | {f"header {name}": value for name, value in record.headers.items()}


def _plain(record: Refused) -> dict[str, object]:
    """JSON has no bytes: one that is no UTF-8 is a lone surrogate, as Python's `surrogateescape` makes of it."""
    key, value = (None if each is None else text_of(each) for each in (record.key, record.value))
    return {
        "error": record.error,
        "detail": record.detail,
        "partition": record.partition,
        "offset": record.offset,
        "value": value,
        "key": key,
        "headers": {name: text_of(each) for name, each in record.headers.items()},
    }
