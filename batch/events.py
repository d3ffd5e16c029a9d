"""Events from Parquet: a topic's archive, or any file or folder with the columns of its source."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.align import Aligner, Chunk, Partition
from featurestore.definitions import View
from featurestore.errors import ConfigError, DataError
from featurestore.forgotten import Forgotten, known, masked_events
from featurestore.frames import META, checked_events
from featurestore.plan import compiled
from featurestore.repeats import without_repeats
from featurestore.sources import Source

_FOLDER = re.compile(r"partition=(\d+)")


def event_files(source: Source, path: Path) -> list[Path]:
    """The Parquet files of a source's events under `path`: a file, a folder of files, or an archive.

    Of an archive, `path` may be the topic's folder or the one that holds the topics'. Files come in order of partition,
    then of name. ConfigError when there are none.
    """
    if path.is_file():
        return [path]
    folder = path / source.name if (path / source.name).is_dir() else path
    files = [file for file in folder.rglob("*.parquet") if not file.name.startswith(".")]
    if not files:
        raise ConfigError(f"there are no Parquet files of {source.name!r} under {path}: check the path")
    return sorted(files, key=lambda file: (_number(file.parent), str(file.parent), len(file.name), file.name))


def read_events(source: Source, path: Path, columns: Collection[str] | None = None) -> pl.DataFrame:
    """The event frame of all events under `path`, in order of partition and offset.

    Repeats are left out as in the stream; an archive has none. `columns` (of the source, derived ones too) keeps memory
    small; None keeps all. Files without `_partition` are one partition; without `_offset`, their rows in order are the
    log. Events of erased entities lack their keys. Raises ConfigError when there are no files, DataError for rows that
    are not the source's events or an offset that is there twice.
    """
    kept = [name for name in source.types if columns is None or name in columns]
    looked_at = kept if source.id is None or source.id in kept else [*kept, source.id]
    frames: list[pl.DataFrame] = []
    rows = 0
    for file in event_files(source, path):
        frame = _read(file, [*source.schema, *META])
        if "_offset" not in frame.columns:
            frame = frame.with_columns(pl.int_range(rows, rows + len(frame), dtype=pl.Int64).alias("_offset"))
        rows += len(frame)
        forgotten = known(file.parent).entries
        checked = checked_events(source, frame, {name for each in forgotten for name in each.masked})
        frames.append(masked_events(source, checked, forgotten).select(*looked_at, *META))
    events = without_repeats(source, _in_log_order(source, pl.concat(frames)))
    return events.select(*kept, *META)


def forgotten_of(source: Source, path: Path) -> dict[int, Sequence[Forgotten]]:
    """What is forgotten of the events under `path`, by partition."""
    folders = {file.parent for file in event_files(source, path)}
    return {_number(folder): found for folder in folders if (found := known(folder).entries)}


def is_log(path: Path, source: Source) -> bool:
    """Whether the events under `path` say at which partitions and offsets they lie in Kafka."""
    return all({"_partition", "_offset"} <= set(pq.read_schema(file).names) for file in event_files(source, path))


def reach(path: Path, source: Source) -> dict[int, int]:
    """By partition the first offset that is not covered: an archive says it, other files end with their last event."""
    ends: dict[int, int] = {}
    for file in event_files(source, path):
        said = (pq.read_schema(file).metadata or {}).get(b"onceflow")
        if said is not None:
            found = {_number(file.parent): int(json.loads(said)["next"])}
        else:
            found = last_offsets(pl.read_parquet(file, columns=["_partition", "_offset"]))
        for partition, end in found.items():
            ends[partition] = max(end, ends.get(partition, 0))
    return ends


def last_offsets(events: pl.DataFrame) -> dict[int, int]:
    """By partition the offset after its last event."""
    ends = events.group_by("_partition").agg(pl.col("_offset").max() + 1)
    return {int(partition): int(end) for partition, end in ends.iter_rows()}


def partitions_of(events: pl.DataFrame) -> int:
    """The least number of partitions that the events can come from."""
    return int(events["_partition"].to_numpy().max()) + 1 if len(events) else 1


def columns_of(view: View) -> list[str]:
    """The columns of the source that the view needs."""
    read = {*view.entity.keys, *compiled(view).columns}
    return [name for name in view.source.types if name in read]


def logs_of(topic: str, events: pl.DataFrame) -> dict[Partition, pl.DataFrame]:
    """An event frame, taken apart into its partitions."""
    parts = events.partition_by("_partition", as_dict=True)
    return {(topic, int(partition)): frame for (partition,), frame in parts.items()}


def chunks(logs: Mapping[Partition, pl.DataFrame], ranks: Mapping[str, int], size: int) -> Iterator[Chunk]:
    """The merged order of whole logs, about `size` events at a time."""
    aligner = Aligner(ranks)
    aligner.assign(dict.fromkeys(logs))
    pieces = {partition: _pieces(frame, size) for partition, frame in logs.items()}
    newest: dict[Partition, float] = dict.fromkeys(logs, -math.inf)
    while True:
        # With a piece of each partition and one more, about `size` events are certain.
        enough = sum(map(aligner.buffered, logs)) >= size * (len(newest) + 1)
        chunk = aligner.take(size) if enough or not newest else None
        if chunk is not None:
            yield chunk
        elif not newest:
            return
        else:
            last = min(newest, key=newest.__getitem__)  # the one that all others wait for
            piece = next(pieces[last], None)
            if piece is None:
                aligner.drain(last)
                del newest[last]
            else:
                aligner.push(last, *piece)
                newest[last] = max(newest[last], piece[0]["_time"].to_numpy().max())


def _pieces(frame: pl.DataFrame, size: int) -> Iterator[tuple[pl.DataFrame, int, int]]:
    """A partition's events a piece at a time, with the offsets [start, next) that each piece covers."""
    start = 0
    for at in range(0, len(frame), size):
        piece = frame[at : at + size]
        end = int(piece["_offset"][-1]) + 1
        yield piece, start, end
        start = end


def _number(folder: Path) -> int:
    match = _FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else -1


def _read(file: Path, wanted: Sequence[str]) -> pl.DataFrame:
    try:
        there = pq.read_schema(file).names
        return pl.read_parquet(file, columns=[name for name in there if name in wanted], hive_partitioning=False)
    except (pl.exceptions.PolarsError, pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} cannot be read as Parquet: {error}") from error


def _in_log_order(source: Source, frame: pl.DataFrame) -> pl.DataFrame:
    places = frame["_partition"].to_numpy(), frame["_offset"].to_numpy()
    steps, moves = np.diff(places[0]), np.diff(places[1])
    if not ((steps > 0) | ((steps == 0) & (moves > 0))).all():
        frame = frame.sort("_partition", "_offset")
        twice = (np.diff(frame["_partition"].to_numpy()) == 0) & (np.diff(frame["_offset"].to_numpy()) == 0)
        if twice.any():
            where = frame.row(int(np.argmax(twice)), named=True)
            raise DataError(
                f"the events of {source.name!r} hold offset {where['_offset']} of partition {where['_partition']} "
                f"twice: each file should be there once"
            )
    return frame
