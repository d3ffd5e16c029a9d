"""The offline store: Parquet files on a fixed grid of source offsets.

File `k` of a partition holds the rows of offsets `[k * size, (k + 1) * size)`, whatever batches they came in: rows
written twice are written once, and a replay that cuts its batches elsewhere gives the same files, byte for byte. The
open cell at the end is written to its final name too, and replaced as it grows.

    <directory>/partition=3/000000000007.parquet

A footer says how far its file goes. That of the open cell also says how far the feed was read that the rows come from;
a complete file says nothing that depends on how batches were cut.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import DataError, FencedError, FormatError, GapError
from featurestore.files import publish

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pyarrow.dataset as ds

    from featurestore.forgotten import Revision

FORMAT = 1
"""Version of the files' footer."""

ABANDONED_SECONDS = 600.0
"""How old a temporary file is that nobody writes any more."""

_ROW_GROUP = 1 << 16
_MARK = ".revised"  # in a partition's folder: the version of what its complete files were revised for
_FILE = re.compile(r"\d{12,}\.parquet")
_FOLDER = re.compile(r"partition=\d+")
_PLAIN = {
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
}


class _Footer(NamedTuple):
    """What a file says of itself: it holds every row of its cell below offset `next`; go on in the feed at `feed`."""

    next: int
    size: int
    feed: int | None


class GridWriter:
    """Writes one partition. `size` is the number of offsets a file spans; it must stay the same for a directory.

    `next` is the first offset not yet taken; after a restart, the first that is not on disk. `feed` is the offset at
    which to go on reading the feed; None means from its beginning, which is always safe.

    `revision` is given what a file is to hold and returns what it may hold. It may come to know more: a flush
    takes that up, and `sweep`.

    Raises `FormatError` when the last file cannot be read or was written with another `size`.
    """

    def __init__(
        self,
        directory: Path,
        partition: int,
        size: int,
        *,
        compression: str = "zstd",
        revision: Revision | None = None,
    ) -> None:
        self._folder = partition_folder(directory, partition)
        self._size = size
        self._compression = compression
        self._revision = revision
        self._folder.mkdir(parents=True, exist_ok=True)
        _clear(self._folder)
        self.next = 0
        self.feed: int | None = None
        self._rows: list[pa.Table] = []
        self._begun = False
        self._recover()
        self._saved = self.next

    def append(self, table: pa.Table, next: int, feed: int | None = None, *, start: int | None = None) -> None:  # noqa: A002
        """Take the rows of source offsets below `next`; every grid cell that this completes is written at once.

        `table` has its rows in ascending order of the int64 column `_offset`; one offset may have several rows. Rows
        below `self.next` are there already and are dropped. `start` says from which offset on the table is complete: it
        is needed where the source lacks offsets. Without it the table begins at its first row or, empty, at `next`.
        `feed` is where to go on in the feed once this table is taken.

        Raises `GapError` when the table begins after `self.next`, `DataError` for rows out of order or not below
        `next`, `FormatError` for a column that changed its type, `FencedError` when another writer is ahead of this
        one, and `StateError` when the disk refuses. What lies below `self.next` has been taken then, and the call may
        be repeated.
        """
        offsets = _offsets(table, next)
        begins = start if start is not None else int(offsets[0]) if len(offsets) else next
        if begins > self.next:
            raise GapError(
                f"{self._folder}: the rows begin at offset {begins}, the files end before offset {self.next}. "
                f"Read again from offset {self.next}, or say start={self.next} if the source has no offsets in between"
            )
        open_cell = self.next // self._size
        if next > self.next:
            fresh = int(np.searchsorted(offsets, self.next))
            self._take(_plain(table.slice(fresh)), offsets[fresh:], next)
        if feed is not None:
            self.feed = feed
            if next // self._size > open_cell:
                self.flush()  # or the position in the feed would be gone with the file that held it

    def flush(self) -> None:
        """Write all that was taken: the open cell under its final name, with the position in the feed."""
        self._renew()
        if self.next == self._saved:
            return
        if self.next % self._size or self.feed is not None:
            self._rows = [self._write(self.next // self._size, self._rows, self.next, self.feed)]
        self._saved = self.next

    def sweep(self, left_off: Callable[[], bool] = lambda: False) -> None:
        """Rewrite the complete files that the revision changes, unless that was done since it came to know more.

        What a kill leaves undone the next call does, also where it is `left_off`. Another thread may append meanwhile.
        """
        mark = self._folder / _MARK
        if self._revision is None or not (version := self._revision.version):
            return
        if mark.exists() and mark.read_bytes() == b"%d" % version:
            return
        for path in _grid_files(self._folder):
            if left_off():
                return
            footer, _ = _footer(path)
            if footer.next % self._size == 0:
                table = pq.ParquetFile(path).read()
                revised = self._revision(table)
                if revised is not table:
                    publish(path, _encoded(revised.combine_chunks(), footer, self._compression))
        publish(mark, b"%d" % version)

    def _renew(self) -> None:
        """Have the open cell written again, should the revision change it now."""
        if self._revision is not None and self._revision.version and self._rows and self.next % self._size:
            rows = _joined(self._rows, self._folder)
            revised = self._revision(rows)
            if revised is not rows:
                self._rows, self._saved = [revised], -1

    def _take(self, rows: pa.Table, offsets: np.ndarray[Any, np.dtype[np.int64]], upto: int) -> None:
        done = 0
        cell = self.next // self._size
        while upto >= (end := (cell + 1) * self._size):
            cut = int(np.searchsorted(offsets, end))
            self._write(cell, [*self._rows, rows.slice(done, cut - done)], end, None)
            # Only now: should the disk refuse, the same rows may be given again.
            self._rows, self.next, done, cell = [rows.slice(0, 0)], end, cut, cell + 1
        self._rows.append(rows.slice(done))
        self.next = upto

    def _write(self, cell: int, rows: Sequence[pa.Table], upto: int, feed: int | None) -> pa.Table:
        """Write a cell and return its rows as one table."""
        path, footer = cell_path(self._folder, cell), _Footer(upto, self._size, feed)
        table = _joined(rows, path)
        while True:
            version = 0 if self._revision is None else self._revision.version
            # One chunk a column: the writer starts a new page at every chunk.
            revised = (table if self._revision is None else self._revision(table)).combine_chunks()
            self._publish(path, revised, footer)
            # If it has come to know more, a sweep for that may have been done before the file was there.
            if self._revision is None or self._revision.version == version:
                return revised

    def _publish(self, path: Path, table: pa.Table, footer: _Footer) -> None:
        # Cells before the first row are not written: a topic may begin at any offset.
        self._begun = self._begun or table.num_rows > 0
        if self._begun:
            # A writer that was suspended and replaced must not put its shorter file over the longer one.
            if path.exists() and (held := _footer(path)[0].next) > footer.next:
                raise FencedError(
                    f"{path} holds offsets up to {held}, this writer only up to {footer.next}: another one writes here"
                )
            publish(path, _encoded(table, footer, self._compression))

    def _recover(self) -> None:
        files = _grid_files(self._folder)
        if not files:
            return
        last = files[-1]
        footer, schema = _footer(last)
        if footer.size != self._size:
            raise FormatError(
                f"{last} was written with size {footer.size}, not {self._size}: use {footer.size}, or move away"
            )
        self._begun = True
        self.next = footer.next
        rows = pq.ParquetFile(last).read() if self.next % self._size else schema.empty_table()
        self._rows = [_plain(rows)]
        self.feed = footer.feed


def partition_folder(directory: Path, partition: int) -> Path:
    """The folder of a partition's files under `directory`."""
    return directory / f"partition={partition}"


def cell_path(folder: Path, cell: int) -> Path:
    """The file of a cell of the grid in a partition's folder."""
    return folder / f"{cell:012d}.parquet"


def read_table(directory: Path, columns: Sequence[str] | None = None, filters: ds.Expression | None = None) -> pa.Table:
    """Read the rows under `directory`, in order of partition and offset.

    `columns` and `filters` (a pyarrow expression) may name the column `partition`. What a file lacks is null.
    Raises `DataError` when there are no files and `FormatError` when one cannot be read.
    """
    import pyarrow.dataset as ds  # noqa: PLC0415 - brings pandas, which writers can do without

    files, schema, hive = _folder_schema(directory)
    parts = ds.partitioning(pa.schema([("partition", pa.int32())]), flavor="hive") if hive else None
    schema = schema.append(pa.field("partition", pa.int32())) if hive else schema
    dataset = ds.dataset([str(file) for file in files], schema=schema, format="parquet", partitioning=parts)
    try:
        return dataset.to_table(columns=None if columns is None else list(columns), filter=filters)
    except (pa.ArrowInvalid, OSError) as error:
        raise FormatError(f"a file under {directory} cannot be read: {error}") from error


def scan(directory: Path) -> pl.LazyFrame:
    """Read the rows under `directory` lazily, in order of partition and offset; errors are those of `read_table`."""
    files, schema, hive = _folder_schema(directory)
    known = pl.DataFrame(schema.empty_table()).schema
    frames = []
    # Polars' own hive reading takes every `name=value` in the path for a column, also those above `directory`.
    for folder, members in groupby(files, key=lambda file: file.parent):
        frame = pl.scan_parquet(
            list(members), schema=known, missing_columns="insert", glob=False, hive_partitioning=False
        )
        number = pl.lit(_number(folder), pl.Int32).alias("partition")
        frames.append(frame.with_columns(number) if hive else frame)
    return pl.concat(frames)


def _folder_schema(directory: Path) -> tuple[list[Path], pa.Schema, bool]:
    """Return the files in order, their common schema, and whether `partition` is the folders' to add as a column."""
    folders = sorted(
        (folder for folder in directory.glob("partition=*") if _FOLDER.fullmatch(folder.name)), key=_number
    )
    files = [file for folder in folders for file in _grid_files(folder)]
    if not files:
        raise DataError(f"there are no rows under {directory}: nothing was archived yet, or it is another folder")
    try:
        schema = pa.unify_schemas([_footer(file)[1] for file in files])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise FormatError(f"the files under {directory} disagree on the type of a column: {error}") from error
    return files, schema, "partition" not in schema.names


def _number(folder: Path) -> int:
    return int(folder.name.partition("=")[2])


def _clear(folder: Path) -> None:
    """Remove what writers that were killed have left. What is young may be written just now, by another worker."""
    for leftover in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > ABANDONED_SECONDS:
                leftover.unlink()


def _grid_files(folder: Path) -> list[Path]:
    files = [file for file in folder.glob("*.parquet") if _FILE.fullmatch(file.name)]
    return sorted(files, key=lambda file: int(file.stem))


def _footer(path: Path) -> tuple[_Footer, pa.Schema]:
    try:
        schema = pq.read_schema(path)
        said = json.loads((schema.metadata or {})[b"onceflow"])
        if said["format"] != FORMAT:
            raise FormatError(f"{path} was written by format {said['format']}, this version reads {FORMAT}")
        return _Footer(said["next"], said["size"], said["feed"]), schema.remove_metadata()
    except (pa.ArrowInvalid, OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{path} is torn or was not written by onceflow: move it away; its offsets are then read from Kafka again"
        ) from error


def _encoded(table: pa.Table, footer: _Footer, compression: str) -> pa.Buffer:
    said = {"format": FORMAT, **footer._asdict()}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({"onceflow": json.dumps(said)}),
        sink,
        version="2.6",
        row_group_size=_ROW_GROUP,
        compression=compression,
    )
    return sink.getvalue()


def _joined(tables: Sequence[pa.Table], path: Path) -> pa.Table:
    # An empty table is there for its schema, which counts only where there are no rows.
    tables = [table for table in tables if table.num_rows] or tables[-1:]
    try:
        return pa.concat_tables(tables, promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise FormatError(f"{path}: a column changed its type ({error}): archive into another folder") from error


def _plain(table: pa.Table) -> pa.Table:
    """Give columns one type for each kind of value, whatever library made them, and drop metadata."""
    fields = [pa.field(field.name, _plain_type(field.type)) for field in table.schema]
    return table.cast(pa.schema(fields))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(_plain_type(kind.key_type), _plain_type(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain_type(field.type)) for field in kind])
    return _PLAIN.get(kind, kind)


def _offsets(table: pa.Table, upto: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    column = table["_offset"]
    if column.type != pa.int64() or column.null_count:
        raise DataError(f"_offset must be int64 without nulls, not {column.type} with {column.null_count} nulls")
    offsets: np.ndarray[Any, np.dtype[np.int64]] = column.to_numpy()
    if len(offsets) and (bool((np.diff(offsets) < 0).any()) or offsets[0] < 0 or offsets[-1] >= upto):
        raise DataError(f"rows must be in ascending order of _offset, from 0 on and below next={upto}")
    return offsets
