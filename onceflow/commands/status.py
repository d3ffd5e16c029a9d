"""`onceflow status`: how far every view has come on every partition, who works there, and what was set aside."""

from __future__ import annotations

import asyncio
import json as codec
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from featurestore.align import Partition
from featurestore.definitions import View
from featurestore.joined import Joined
from featurestore.online import connect
from featurestore.sources import Source
from featurestore.stores import UNFINISHED, Position
from onceflow import modules
from onceflow.ends import Span, spans
from onceflow.members import Member, members
from onceflow.reading import topic_partitions
from onceflow.settings import load as load_settings
from serving.instants import rfc3339
from streams.joins import made_key

#: States of a view on a partition that are looked at; what has more says so.
SAMPLE = 10_000
_ASIDE = ("dlq", "late")


@dataclass(frozen=True, slots=True)
class Sizes:
    """States of a view on a partition: how many, and their bytes. `sampled`: there are more, which were not counted."""

    states: int
    bytes: int
    sampled: bool


@dataclass(frozen=True, slots=True)
class Line:
    """A view on a partition, or a join on one of a side: next offset, Kafka's end, newest event time (ms), its owner.

    `next` and `newest_event` are None where nothing is stored. `lag` counts the offsets that are still to be folded.
    `owner` is None where no worker of the group has the partition.
    """

    view: str
    topic: str
    partition: int
    next: int | None
    end: int
    lag: int
    newest_event: int | None
    unfinished: bool
    owner: str | None
    sizes: Sizes | None


def run(*, module: str, sizes: bool, json: bool) -> None:
    """Print a line for every view and partition, then the workers, and how many records were set aside."""
    definitions = modules.load(module)
    views, joins = definitions.every_view, definitions.joins
    settings = load_settings(Path.cwd(), os.environ)
    joined = {side.name for source in joins for side in source.sides}
    sources = sorted({view.source.name for view in views} | joined)
    there = topic_partitions(settings.kafka)
    wanted = {name: there[name] for name in _with_aside(sources) if name in there}
    found = spans(settings.kafka, wanted)
    workers = members(settings.kafka, settings.group)
    owners = {(topic, at): each.worker for each in workers for topic, own in each.partitions.items() for at in own}
    ends = {name: found.get(name, []) for name in sources}
    lines = asyncio.run(_lines(views, joins, settings.redis, ends, owners, sizes=sizes))
    aside = {name: _records(found[name]) for name in wanted if name not in sources}
    absent = [name for name in sources if name not in there]
    if json:
        told = {"views": [asdict(line) for line in lines], "workers": [asdict(each) for each in workers]}
        typer.echo(codec.dumps({**told, "set_aside": aside, "absent": absent}))
    else:
        _print(lines, aside, absent)
        _print_workers(workers, settings.group)


def _with_aside(sources: list[str]) -> list[str]:
    return [*sources, *(f"{name}.{suffix}" for name in sources for suffix in _ASIDE)]


def _records(partitions: list[Span]) -> int:
    return sum(span.end - span.begin for span in partitions)


async def _lines(
    views: list[View],
    joins: list[Joined],
    redis: str,
    ends: Mapping[str, list[Span]],
    owners: Mapping[Partition, str],
    *,
    sizes: bool,
) -> list[Line]:
    store = connect(redis)
    lines = []
    try:
        for view in views:
            topic = view.source.name
            stored = await store.positions(view.key, topic, len(ends[topic]))
            for partition, (position, span) in enumerate(zip(stored, ends[topic], strict=True)):
                counted = await measured(store.scan(view.key, topic, partition)) if sizes else None
                owner = owners.get((topic, partition))
                lines.append(_line(view.name, view.source, partition, position, span, owner, counted))
        for join, side in [(each, side) for each in joins for side in each.sides]:
            made = await store.positions(made_key(join), side.name, len(ends[side.name]))
            for partition, (position, span) in enumerate(zip(made, ends[side.name], strict=True)):
                owner = owners.get((side.name, partition))
                lines.append(_line(f"join {join.name}", side, partition, position, span, owner, None))
    finally:
        await store.close()
    return lines


def _line(
    name: str,
    source: Source,
    partition: int,
    position: Position | None,
    span: Span,
    owner: str | None,
    sizes: Sizes | None,
) -> Line:
    unfinished = position is not None and position.next == UNFINISHED
    known = None if position is None or unfinished else position
    # Kafka may have deleted what was not folded yet: it is not waited for, so it is no lag.
    following = known.next >> source.row_bits if known else None  # of records
    lag = span.end - max(span.begin, span.begin if following is None else following)
    return Line(
        name,
        source.name,
        partition,
        following,
        span.end,
        max(lag, 0),
        known.clock if known else None,
        unfinished,
        owner,
        sizes,
    )


async def measured(states: AsyncIterator[tuple[bytes, bytes]], most: int = SAMPLE) -> Sizes:
    """How many states there are and their bytes, of `most` at most."""
    count = size = 0
    async for _, blob in states:
        if count == most:
            return Sizes(count, size, sampled=True)
        count, size = count + 1, size + len(blob)
    return Sizes(count, size, sampled=False)


def _print(lines: list[Line], aside: Mapping[str, int], absent: list[str]) -> None:
    sized = any(line.sizes for line in lines)
    table = Table("view", "partition", "next", "end", "lag", "newest event", "owner", *["states", "bytes"] * sized)
    for line in lines:
        table.add_row(*(Text(cell) for cell in _cells(line)))
    console = _console()
    console.print(table)
    for topic, count in aside.items():
        console.print(Text(f"{count:,} records in {topic}"))
    for topic in absent:
        console.print(Text(f"topic {topic} is not there yet: a worker creates it, and so does `onceflow produce`"))


def _console() -> Console:
    """Where the output is no terminal nothing is cut off."""
    console = Console()
    return console if console.is_terminal else Console(width=1_000)


def _print_workers(workers: list[Member], group: str) -> None:
    console = _console()
    if not workers:
        console.print(Text(f"Kafka names no worker of group {group}; one that is `alone` is in none"))
        return
    table = Table("worker", "host", "partitions")
    for each in workers:
        owned = "\n".join(f"{topic}: {', '.join(map(str, own))}" for topic, own in each.partitions.items())
        table.add_row(Text(each.worker), Text(each.host), Text(owned or "-"))
    console.print(table)


def _cells(line: Line) -> tuple[str, ...]:
    upto = "a backfill writes" if line.unfinished else "-" if line.next is None else f"{line.next:,}"
    newest = "-" if line.newest_event is None else rfc3339(line.newest_event)
    sizes = line.sizes
    more = "+" if sizes and sizes.sampled else ""
    counted = () if sizes is None else (f"{sizes.states:,}{more}", f"{sizes.bytes:,}{more}")
    return (
        line.view,
        f"{line.topic}:{line.partition}",
        upto,
        f"{line.end:,}",
        f"{line.lag:,}",
        newest,
        line.owner or "-",
        *counted,
    )
