"""A topic's archive, as a replay needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from batch.compare import Report
from batch.events import forgotten_of, reach, read_events
from featurestore.definitions import View
from featurestore.errors import ConfigError
from featurestore.forgotten import Forgotten, hidden_from
from featurestore.frames import META, empty_frame
from featurestore.sources import Source


@dataclass(frozen=True)
class Archive:
    """A topic's events, and by partition the first offset that the archive does not cover and what is forgotten."""

    events: pl.DataFrame
    ends: Mapping[int, int]
    partitions: int
    forgotten: Mapping[int, Sequence[Forgotten]] = field(default_factory=dict)

    def seen_by(self, view: View) -> pl.DataFrame:
        """The events as the view sees them."""
        return hidden_from(view, self.events, self.forgotten)


def read_archive(source: Source, data: Path, partitions: int, report: Report) -> Archive:
    """The archive of a source under the data folder; an empty one, with a note, when there is none."""
    path = data / "events" / source.name
    try:
        events = read_events(source, path)
    except ConfigError:
        report.notes.append(f"nothing is archived of {source.name}")
        return Archive(empty_frame(source).select(*source.types, *META), {}, partitions)
    ends = reach(path, source)
    return Archive(events, ends, max(partitions, max(ends) + 1), forgotten_of(source, path))


def below(frame: pl.DataFrame, ends: Mapping[int, int]) -> pl.DataFrame:
    """The rows of each partition below its end."""
    if not len(frame):
        return frame
    partitions, offsets = frame["_partition"].to_numpy(), frame["_offset"].to_numpy()
    limits = np.zeros(max(int(partitions.max()), max(ends, default=0)) + 1, np.int64)
    for partition, end in ends.items():
        limits[partition] = end
    keep = offsets < limits[partitions]
    return frame if keep.all() else frame.filter(pl.Series(keep))


def archived_partitions(events: Path) -> dict[str, int]:
    """By topic the number of partitions that the archive folder has."""
    folders = [folder for folder in events.glob("*/partition=*") if folder.is_dir()]
    out: dict[str, int] = {}
    for folder in folders:
        topic, number = folder.parent.name, int(folder.name.partition("=")[2])
        out[topic] = max(out.get(topic, 0), number + 1)
    return out
