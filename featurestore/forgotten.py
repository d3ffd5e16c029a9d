"""What the files of the offline store no longer hold, or must lose yet: erased entities, by partition of a topic.

    events/<topic>/partition=3/forgotten.json

The file stands beside the archive of the partition, also where there is no archive, and is there before a state is
erased. So whoever reads the archive leaves out what is in it already, and files can be rewritten later.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.erasures import rows_of
from featurestore.errors import FormatError
from featurestore.files import locked, publish
from featurestore.frames import with_derived
from featurestore.offline import cell_path, partition_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from featurestore.definitions import View
    from featurestore.sources import Source

FORMAT = 1
"""Version of the file."""

MARK = "_erased "
"""Before the name of an entity: the column of the archive that says which events were of an erased one."""

_FILE = "forgotten.json"
_LOCK = ".forgotten.lock"


What = Literal["events", "rows", "predictions"]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """An erased entity: of its events on the partition those below `offset` are forgotten.

    `key` is encoded, `columns` hold it in events, and those in `masked` are null in the archive then. Gone are rows of
    the mirror that merge partitions below `shown`, and below `asked` predictions: they may hold what another partition
    or topic still knew.
    """

    entity: str
    key: str
    columns: tuple[str, ...]
    masked: tuple[str, ...]
    offset: int
    shown: int
    asked: int = 0

    def below(self, what: What) -> int:
        """The offset below which it is gone: as an event, from rows of the mirror, or from predictions."""
        if what == "events":
            return self.offset
        return max(self.offset, self.shown, self.asked if what == "predictions" else 0)


class Known(NamedTuple):
    """What is forgotten on a partition, a number that stands for just that, and the offsets by entity and key."""

    version: int = 0
    entries: Sequence[Forgotten] = ()
    offsets: Mapping[tuple[str, str], int] = MappingProxyType({})


_newest: dict[Path, tuple[tuple[int, int, int], Known]] = {}
"""What was read last of each file, with what tells that it is still the same: it is asked for again and again."""


def known(folder: Path) -> Known:
    """What is forgotten of a partition, whose archive is `folder`; FormatError when the file cannot be read."""
    path = folder / _FILE
    try:
        stat = path.stat()
    except FileNotFoundError:
        return Known()
    mark = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
    held = _newest.get(path)
    if held is None or held[0] != mark:
        held = _newest[path] = mark, _read(path)  # newer than the mark, maybe: then it is read once more
    return held[1]


def _read(path: Path) -> Known:
    try:
        said = json.loads(path.read_bytes())
        if said["format"] != FORMAT:
            raise FormatError(f"{path} was written by format {said['format']}, this version reads {FORMAT}")
        entries = [
            Forgotten(**{**each, "columns": tuple(each["columns"]), "masked": tuple(each["masked"])})
            for each in said["forgotten"]
        ]
        return Known(int(said["version"]), entries, {(each.entity, each.key): each.offset for each in entries})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{path} cannot be read: it says which entities were erased; restore it, or erase them again"
        ) from error


@dataclass(frozen=True)
class Revision:
    """What must be left out of files of a partition, whose archive is `folder`, as far as it is known at the time."""

    folder: Path
    change: Callable[[pa.Table, Sequence[Forgotten]], pa.Table]

    @property
    def version(self) -> int:
        """A number that stands for what is forgotten there: another one for anything else, 0 for nothing."""
        return known(self.folder).version

    def __call__(self, table: pa.Table) -> pa.Table:
        """What may stay of a table; the same table where that is all."""
        return self.change(table, known(self.folder).entries)


def archive_revision(events: Path, source: Source, partition: int) -> Revision:
    """The revision of a source's archive under the folder of all."""
    return Revision(partition_folder(events / source.name, partition), partial(masked_table, source))


def mirror_revision(events: Path, view: View, partition: int) -> Revision:
    """The revision of a view's mirror; `events` is the folder of all archives."""
    return Revision(partition_folder(events / view.source.name, partition), partial(mirrored_table, view, partition))


def prediction_revision(events: Path, on: Source, views: Sequence[View], grid: int, partition: int) -> Revision:
    """The revision of the predictions on events of `on`, at which `views` are read; the archive has the same `grid`."""
    folder = partition_folder(events / on.name, partition)

    def change(table: pa.Table, forgotten: Sequence[Forgotten]) -> pa.Table:
        offsets = table["_offset"].to_numpy()
        paths = [cell_path(folder, cell) for cell in np.unique(offsets // grid).tolist()] if forgotten else []
        archived = [pq.ParquetFile(path).read() for path in paths if path.exists()]
        gone = [_known_at(events, on, views, {partition: forgotten}) for events in archived]
        stays = ~np.isin(offsets, np.concatenate([np.zeros(0, np.int64), *gone]))
        return table if stays.all() else table.filter(pa.array(stays))

    return Revision(folder, change)


def _known_at(
    archive: pa.Table, on: Source, views: Sequence[View], forgotten: Mapping[int, Sequence[Forgotten]]
) -> NDArray[np.int64]:
    """The offsets of archived events at which one of the views was read, and knew what is forgotten now."""
    events, found = with_derived(on, pl.DataFrame(archive)), np.zeros(len(archive), np.bool_)
    for view in views:
        found |= _marked(archive, view.entity.name) | _found(events, view, forgotten, "predictions")
    offsets: NDArray[np.int64] = archive["_offset"].to_numpy()[found]
    return offsets


def remember(folder: Path, new: Iterable[Forgotten]) -> None:
    """Add to what is forgotten on a partition, durably. What is there already stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / _LOCK):  # what others write down at the same time is not to be lost
        path = folder / _FILE
        before = _read(path).entries if path.exists() else ()
        entries = {(each.entity, each.key): each for each in before}
        for each in new:
            old = entries.get((each.entity, each.key), each)
            furthest = {name: max(getattr(each, name), getattr(old, name)) for name in ("offset", "shown", "asked")}
            entries[each.entity, each.key] = replace(each, **furthest)
        if list(entries.values()) != list(before):
            publish(path, _text([asdict(each) for each in entries.values()]))


def _text(entries: Sequence[dict[str, object]]) -> bytes:
    """The file's text. A version is a digest: a count could stand for two things, as where an old file was restored."""
    version = int(hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:15], 16)
    return json.dumps({"format": FORMAT, "version": version, "forgotten": entries}, indent=1).encode()


def masked_events(source: Source, events: pl.DataFrame, forgotten: Sequence[Forgotten]) -> pl.DataFrame:
    """Events of one partition, with null in the key columns of those that are forgotten."""
    masks, _ = _masks(source, events, forgotten)
    return events.with_columns(pl.when(~pl.Series(mask)).then(pl.col(name)).alias(name) for name, mask in masks.items())


def masked_table(source: Source, table: pa.Table, forgotten: Sequence[Forgotten]) -> pa.Table:
    """As `masked_events`, of a table of the archive; the same table where nothing in it changes.

    It gets a column for each entity, which is true where an event was one's that is forgotten.
    """
    masks, marks = _masks(source, pl.DataFrame(table) if forgotten else pl.DataFrame(), forgotten)
    for name, mask in masks.items():
        at = table.schema.get_field_index(name)
        nothing = pa.scalar(None, table.schema.types[at])
        table = table.set_column(at, table.schema.field(at), pc.if_else(pa.array(mask), nothing, table.column(at)))
    for entity, mark in marks.items() if masks else ():
        marked = _marked(table, entity) | mark
        table = table.drop_columns({MARK + entity} & set(table.column_names))
        table = table.append_column(MARK + entity, pa.array(marked, mask=~marked))
    # In one order, whichever was erased first: the same events are to make the same file.
    names = sorted(table.column_names, key=lambda name: name if name.startswith(MARK) else "") if masks else None
    return table if names is None else table.select(names)


def _marked(table: pa.Table, entity: str) -> NDArray[np.bool_]:
    """The events of a table of the archive that were of an erased entity."""
    if MARK + entity not in table.column_names:
        return np.zeros(len(table), np.bool_)
    marked: NDArray[np.bool_] = table[MARK + entity].is_valid().to_numpy()
    return marked


def _masks(
    source: Source, events: pl.DataFrame, forgotten: Sequence[Forgotten]
) -> tuple[dict[str, NDArray[np.bool_]], dict[str, NDArray[np.bool_]]]:
    """By column of the source the events that must lose it; and by entity the events for which they do."""
    masks: dict[str, NDArray[np.bool_]] = {}
    marks: dict[str, NDArray[np.bool_]] = {}
    if not forgotten or not len(events):
        return masks, marks
    told = events if set(source.types) <= set(events.columns) else with_derived(source, events)
    alike: dict[tuple[str, tuple[str, ...], tuple[str, ...]], dict[bytes, int]] = {}
    for each in forgotten:
        alike.setdefault((each.entity, each.columns, each.masked), {})[each.key.encode()] = each.offset
    for (entity, columns, masked), limits in alike.items():
        found = rows_of(told, columns, limits)
        if masked and found.any():
            marks[entity] = marks.get(entity, found) | found
            masks |= {name: masks.get(name, found) | found for name in masked}
    return {name: mask for name, mask in masks.items() if (mask & told[name].is_not_null().to_numpy()).any()}, marks


def hidden_from(view: View, events: pl.DataFrame, forgotten: Mapping[int, Sequence[Forgotten]]) -> pl.DataFrame:
    """Events as the view sees them: those that are forgotten of its entity have no key, though the archive may."""
    found = _found(events, view, forgotten, "events")
    if not found.any():
        return events
    keep = ~pl.Series(found)
    return events.with_columns(pl.when(keep).then(pl.col(name)).alias(name) for name in view.entity.keys)


def may_have_known(view: View, events: pl.DataFrame, forgotten: Mapping[int, Sequence[Forgotten]]) -> NDArray[np.bool_]:
    """Events at which what was read of the view may have held something that is forgotten now.

    Of those that lack a key, it is not known any more whether it was masked.
    """
    found = _found(events, view, forgotten, "predictions")
    keyless = events.select(pl.any_horizontal(pl.col(view.entity.keys).is_null())).to_series().to_numpy()
    for partition, entries in forgotten.items():
        end = max((each.offset for each in entries if each.entity == view.entity.name), default=0)
        places = events.select((pl.col("_partition") == partition) & (pl.col("_offset") < end)).to_series()
        found |= keyless & places.to_numpy()
    return found


def erased_from(view: View, forgotten: Sequence[Forgotten], offset: int) -> list[bytes]:
    """The entities of which a view that stands at an offset of the partition still has what is forgotten by now."""
    mine = [each for each in forgotten if each.entity == view.entity.name]
    return [each.key.encode() for each in mine if each.offset >= offset]


def without_rows(view: View, rows: pl.DataFrame, forgotten: Mapping[int, Sequence[Forgotten]]) -> pl.DataFrame:
    """Rows of a view's mirror without those of erased entities."""
    found = _found(rows, view, forgotten, _what(view))
    return rows.filter(~pl.Series(found)) if found.any() else rows


def mirrored_table(view: View, partition: int, table: pa.Table, forgotten: Sequence[Forgotten]) -> pa.Table:
    """As `without_rows`, of a table of one partition; the same table where nothing in it changes."""
    if not forgotten or not set(view.entity.keys) <= set(table.column_names):
        return table
    rows = pl.DataFrame(table.select(["_partition", "_offset", *view.entity.keys]))
    found = _found(rows, view, {partition: forgotten}, _what(view))
    return table.filter(pa.array(~found)) if found.any() else table


def _what(view: View) -> What:
    """Up to where rows of the view's mirror are gone: only those that merge no partitions hold nothing of others.

    It is by the same words that a worker lets partitions go on without each other.
    """
    return "events" if view.apart else "rows"


def _found(
    rows: pl.DataFrame, view: View, forgotten: Mapping[int, Sequence[Forgotten]], what: What
) -> NDArray[np.bool_]:
    """Which rows are of the view's entity and forgotten."""
    found = np.zeros(len(rows), np.bool_)
    for partition, entries in forgotten.items():
        limits = {each.key.encode(): each.below(what) for each in entries if each.entity == view.entity.name}
        places = np.flatnonzero(rows["_partition"].to_numpy() == partition) if limits else np.zeros(0, np.int64)
        if len(places):
            found[places] = rows_of(rows[places], view.entity.keys, limits)
    return found
