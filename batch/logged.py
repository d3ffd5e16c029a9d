"""Features that were logged with predictions, compared with the offline backfill at the same instants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from batch.archive import Archive, below
from batch.compare import Report, differing, matched
from batch.inputs import inputs_at
from featurestore.expressions import TYPES
from featurestore.featureset import FeatureSet
from featurestore.forgotten import may_have_known
from featurestore.offline import read_table


@dataclass(frozen=True)
class Logged:
    """What a service logs: predictions on the events of `features.on`, with the inputs by full name."""

    name: str
    features: FeatureSet
    before: bool = False


def verify_service(
    service: Logged, archives: Mapping[str, Archive], data: Path, report: Report, progress: Callable[[str], None]
) -> None:
    """Compare every input of every logged prediction."""
    folder, archive = data / "predictions" / service.name, archives[service.features.on.name]
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
    erased = np.zeros(len(asked), np.bool_)
    for view in service.features.views:
        erased |= may_have_known(view, asked, archive.forgotten)
    asked, answers = asked.filter(~pl.Series(erased)), answers.filter(~pl.Series(erased))
    report.skip(int(erased.sum()), f"predictions of {service.name}: they know of entities that were erased")
    wanted = inputs_at(
        service.features,
        {topic: archive.events for topic, archive in archives.items()},
        asked,
        before=service.before,
        forgotten={topic: archive.forgotten for topic, archive in archives.items()},
        progress=lambda view: progress(f"{service.name}: {view}"),
    )
    for column in wanted:
        empty = pl.Series(column.name, [None] * len(answers), TYPES["float"])
        found = answers[column.name] if column.name in answers.columns else empty
        _compare_values(where, column, asked, found, report)


def _compare_values(where: str, wanted: pl.Series, asked: pl.DataFrame, found: pl.Series, report: Report) -> None:
    """One input: as a prediction logs it, it is a float, and null when it is not finite."""
    real = pl.select(pl.when(wanted.is_finite()).then(wanted).alias(found.name)).to_series()
    wrong = differing(real, found)
    report.logged_features_compared += len(wrong)
    report.logged_features_mismatched += int(wrong.sum())
    report.tell(where, asked.select("_partition", "_offset").with_columns(real), found, wrong)
