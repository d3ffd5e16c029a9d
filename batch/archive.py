"""A topic's archive, as a replay needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from batch.compare import Report
from batch.events import reach, read_events
from featurestore.errors import ConfigError
from featurestore.frames import META, empty_frame
from featurestore.sources import Source


@dataclass(frozen=True)
class Archive:
    """A topic's events, and by partition the first offset that the archive does not cover."""

    events: pl.DataFrame
    ends: Mapping[int, int]
    partitions: int


def read_archive(source: Source, data: Path, partitions: int, report: Report) -> Archive:
    """The archive of a source under the data folder; an empty one, with a note, when there is none."""
    path = data / "events" / source.name
    try:
        events = read_events(source, path)
    except ConfigError:
        report.notes.append(f"nothing is archived of {source.name}")
        return Archive(empty_frame(source).select(*source.types, *META), {}, partitions)
    ends = reach(path, source)
    return Archive(events, ends, max(partitions, max(ends) + 1))


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
