"""Features that were logged with predictions, compared with the offline backfill at the same instants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import polars as pl

from batch.archive import Archive, below
from batch.backfill import at_rows
from batch.compare import Report, differing, matched
from batch.events import chunks, logs_of
from featurestore.definitions import View
from featurestore.expressions import TYPES
from featurestore.flow import Flow, Read
from featurestore.offline import read_table
from featurestore.sources import Source

_CHUNK = 100_000

#: A model's input: a feature of a view, by short name, or a column of the event.
Input: TypeAlias = "tuple[View, str] | str"


@dataclass(frozen=True)
class Logged:
    """What a service logs: predictions on the events of `on`, with the inputs by full name."""

    name: str
    on: Source
    inputs: Mapping[str, Input]
    before: bool = False


def verify_service(
    service: Logged, archives: Mapping[str, Archive], data: Path, report: Report, progress: Callable[[str], None]
) -> None:
    """Compare every input of every logged prediction."""
    folder, archive = data / "predictions" / service.name, archives[service.on.name]
    if not any(folder.glob("partition=*/*.parquet")):
        report.notes.append(f"no predictions of {service.name} are logged")
        return
    where, logged = f"predictions/{service.name}", pl.DataFrame(read_table(folder))
    covered = below(logged, archive.ends)
    report.skip(len(logged) - len(covered), f"predictions of {service.name}: their events are not archived yet")
    left, right = matched(archive.events, covered)
    asked, answers = archive.events[left], covered[right]
    if len(right) < len(covered):
        report.logged_features_mismatched += len(covered) - len(right)
        report.example(f"{where}: {len(covered) - len(right):,} were made on no archived event")
    for wanted in _inputs(service, archives, asked, progress):
        empty = pl.Series(wanted.name, [None] * len(answers), TYPES["float"])
        found = answers[wanted.name] if wanted.name in answers.columns else empty
        _compare_values(where, wanted, asked, found, report)


def _inputs(
    service: Logged, archives: Mapping[str, Archive], asked: pl.DataFrame, progress: Callable[[str], None]
) -> Iterator[pl.Series]:
    """Each input of the model at the events, by full name."""
    for view, names in _views(service).items():
        progress(f"{service.name}: {view.name}")
        features = _offline(service, view, archives, asked)
        yield from (features[short].alias(full) for full, short in names.items())
    yield from (asked[made].alias(full) for full, made in service.inputs.items() if isinstance(made, str))


def _views(service: Logged) -> dict[View, dict[str, str]]:
    """By view, the inputs that come from it: full name and short name."""
    out: dict[View, dict[str, str]] = {}
    for full, made in service.inputs.items():
        if isinstance(made, tuple):
            out.setdefault(made[0], {})[full] = made[1]
    return out


def _offline(service: Logged, view: View, archives: Mapping[str, Archive], asked: pl.DataFrame) -> pl.DataFrame:
    """The view's features at the events, by backfill.

    A view of the service's own topic is read in merged order instead: of events of one instant, some come after the
    one that is predicted on, and with `before` even the event itself does.
    """
    if view.source.name != service.on.name:
        rows = asked.select(*view.entity.keys, "_time")
        return at_rows(view, archives[view.source.name].events, rows)
    topic, partitions = service.on.name, archives[service.on.name].partitions
    read = Read(view, topic, view.entity.keys, service.before)
    flow = Flow([view], [read], {topic: partitions})
    for partition in range(partitions):
        flow.begin(view.key, (topic, partition), None)
    everything = dict.fromkeys(((topic, partition) for partition in range(partitions)), 0)
    found = []
    for chunk in chunks(logs_of(topic, archives[topic].events), {topic: 1}, _CHUNK):
        flow.lookups(chunk, everything)
        reads = flow.run(chunk, emit=False)[view.key].reads[read]
        found.append(chunk.frames[topic].select("_partition", "_offset").hstack(reads.select(*view.outputs)))
    rows = pl.concat(found).sort("_partition", "_offset")
    return rows[matched(rows, asked)[0]]


def _compare_values(where: str, wanted: pl.Series, asked: pl.DataFrame, found: pl.Series, report: Report) -> None:
    """One input: as a prediction logs it, it is a float, and null when it is not finite."""
    real = wanted.cast(TYPES["float"])
    real = pl.select(pl.when(real.is_finite()).then(real).alias(found.name)).to_series()
    wrong = differing(real, found)
    report.logged_features_compared += len(wrong)
    report.logged_features_mismatched += int(wrong.sum())
    report.tell(where, asked.select("_partition", "_offset").with_columns(real), found, wrong)
