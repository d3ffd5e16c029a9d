"""`onceflow backfill`: features from history, and states for the stream to go on from."""

from __future__ import annotations

import json as codec
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl
import typer
from rich.progress import Progress, TaskID

from batch.backfill import Mode, after_event_parts, at_rows, time_column
from batch.events import columns_of, event_files, forgotten_of, is_log, reach, read_events
from batch.grafts import Older
from batch.parts import Parts
from featurestore.definitions import View
from featurestore.errors import ConfigError
from featurestore.forgotten import hidden_from
from onceflow import modules
from onceflow.commands.verify import bar
from onceflow.handing import find_older, hand_over_online, told

#: Rows of an --at file that make one part.
ROWS = 1_000_000
#: Events that make one part.
EVENTS = 250_000


@dataclass
class _Summary:
    """What was done."""

    view: str
    events: int
    rows: int = 0
    parts: int = 0
    kept: int = 0
    seconds: float = 0.0
    online: dict[str, object] | None = field(default=None)


def run(
    *,
    module: str,
    view: str,
    events: Path,
    out: Path | None,
    at: Path | None,
    mode: Mode,
    online: bool,
    engine: Literal["local", "spark"],
    resume: bool,
    json: bool,
) -> None:
    """Write the parts and, with `online`, the states; then print what was done."""
    if engine == "spark":
        raise ConfigError("the engine spark comes with a later version; --engine local does the same work here")
    if out is None and (not online or at is not None or resume):
        raise ConfigError("where to? Give --out a folder for the features; only --online does without one")
    made = _view(module, view)
    if online and not is_log(events, made.source):
        raise ConfigError(
            f"{events} does not say where its events lie in Kafka: --online needs the columns _partition and _offset, "
            f"as the archive has them"
        )
    began = time.perf_counter()
    parts = None if out is None else Parts(out, _job(made, events, at, mode), resume=resume)
    with bar("done") as progress:
        task = progress.add_task(f"reading {made.source.name}", total=None)
        ends = reach(events, made.source) if online else {}
        older = find_older(made, ends) if online else Older()
        forgotten = forgotten_of(made.source, events)
        frame = read_events(made.source, events, {*columns_of(made), *older.columns})
        frame = hidden_from(made, frame, forgotten)
        summary = _Summary(made.name, len(frame))
        if parts is not None:
            progress.update(task, description=made.name)
            _write(made, frame, None if at is None else _rows(at), mode, parts, summary, progress, task)
        if online:
            summary.online = hand_over_online(made, older, frame, ends, forgotten, progress)
    summary.seconds = round(time.perf_counter() - began, 3)
    typer.echo(codec.dumps(vars(summary)) if json else _text(summary, out))


def _write(
    view: View,
    events: pl.DataFrame,
    asked: pl.DataFrame | None,
    mode: Mode,
    parts: Parts,
    summary: _Summary,
    progress: Progress,
    task: TaskID,
) -> None:
    """Write the parts that lack."""

    def wanted(part: int) -> bool:
        return not parts.has(part)

    size, total = (EVENTS, len(events)) if asked is None else (ROWS, len(asked))
    progress.update(task, total=total)
    done = (
        after_event_parts(view, events, EVENTS, wanted)
        if asked is None
        else _at_row_parts(view, events, asked, mode, wanted)
    )
    for part, rows in enumerate(done):
        _keep(part, rows, parts, summary)
        progress.update(task, completed=min((part + 1) * size, total))


def _view(module: str, name: str) -> View:
    views = modules.load(module).views
    if name not in views:
        raise ConfigError(f"module {module!r} has no view {name!r}; its views are {', '.join(views)}")
    return views[name]


def _job(view: View, events: Path, at: Path | None, mode: Mode) -> dict[str, object]:
    """All that the parts depend on."""
    read = [*event_files(view.source, events), *([at] if at is not None else [])]
    files = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in read if file.exists()]
    return {"definition": view.spec(), "files": files, "mode": mode if at is not None else "after events"}


def _at_row_parts(
    view: View, events: pl.DataFrame, rows: pl.DataFrame, mode: Mode, wanted: Callable[[int], bool]
) -> Iterator[pl.DataFrame | None]:
    name = time_column(view, rows)
    for part, begin in enumerate(range(0, max(len(rows), 1), ROWS)):
        yield at_rows(view, events, rows[begin : begin + ROWS], mode, name) if wanted(part) else None


def _keep(part: int, frame: pl.DataFrame | None, parts: Parts, summary: _Summary) -> None:
    """Write a new part; None: it is there already."""
    summary.parts += 1
    if frame is None:
        summary.kept += 1
    else:
        parts.write(part, frame)
        summary.rows += len(frame)


def _rows(at: Path) -> pl.DataFrame:
    try:
        if at.suffix == ".csv":
            return pl.read_csv(at, try_parse_dates=True)
        return pl.read_parquet(at)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ConfigError(f"{at} cannot be read as {'CSV' if at.suffix == '.csv' else 'Parquet'}: {error}") from error


def _text(summary: _Summary, out: Path | None) -> str:
    kept = f", {summary.kept} of them kept" if summary.kept else ""
    lines = [f"{summary.view}: {summary.events:,} events in {summary.seconds:.1f} s"]
    if out is not None:
        lines.append(f"{summary.rows:,} rows written to {out}, {summary.parts} parts{kept}")
    if summary.online is not None:
        lines += told(summary.online)
    return "\n".join(lines)
