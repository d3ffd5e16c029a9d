"""Whether everything that was stored equals a replay of the archive, to the bit.

Three things are compared: states in the online store, rows of the offline mirror, and the features that were logged
with predictions. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from batch.archive import Archive, below, read_archive
from batch.backfill import after_events, fresh_flow
from batch.compare import Report, differing, matched
from batch.events import chunks, last_offsets, logs_of
from batch.logged import Logged, verify_service
from featurestore.definitions import View
from featurestore.engine import words_of
from featurestore.flow import Flow
from featurestore.forgotten import erased_from, without_rows
from featurestore.frames import empty_frame
from featurestore.offline import read_table
from featurestore.sources import Source
from featurestore.stores import OnlineStore, Position

_CHUNK = 100_000


@dataclass(frozen=True)
class _Run:
    """What goes through a verification: the report, and wall-clock time in ms."""

    report: Report
    now: int

    def expired(self, view: View, state: bytes) -> bool:
        """Whether a live run may have let the state expire: no window can see it any more."""
        newest = int(words_of(state)[1])  # see `kernel.layout.FORMAT`
        return not self.report.merged and newest + view.keep <= self.now


async def verify(
    views: Sequence[View],
    services: Sequence[Logged],
    store: OnlineStore,
    data: Path,
    partitions: Mapping[str, int],
    *,
    merged: bool,
    mirrored: bool = True,
    now: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Compare the online store, the mirror and the prediction logs under `data` with a replay of the archive there.

    `partitions`: of every topic. `merged`: all events went through one worker in replay mode, so that also what
    depends on how partitions interleave must be equal. `mirrored`: whether there is a mirror. `now` is wall-clock time
    in ms: a live run's states that no window can see any more may have expired. `progress` is told what comes next.
    """
    report = Report(merged)
    archives: dict[str, Archive] = {}
    for source in _sources(views, services):
        progress(f"reading {source.name}")
        archives[source.name] = read_archive(source, data, partitions.get(source.name, 1), report)
    for view in views:
        progress(view.name)
        await _verify_view(view, archives[view.source.name], store, data if mirrored else None, _Run(report, now))
    for service in services:
        verify_service(service, archives, data, report, progress)
    return report


def _sources(views: Sequence[View], services: Sequence[Logged]) -> list[Source]:
    sets = [service.features for service in services]
    read = [view.source for features in sets for view in features.views]
    every = [*(view.source for view in views), *(features.on for features in sets), *read]
    return list({source.name: source for source in every}.values())


async def _verify_view(view: View, archive: Archive, store: OnlineStore, data: Path | None, run: _Run) -> None:
    """Compare the view's states and, with `data`, its mirror."""
    topic, report = view.source.name, run.report
    before = await store.positions(view.key, topic, archive.partitions)
    stored = [{e: b async for e, b in store.scan(view.key, topic, p)} for p in range(archive.partitions)]
    if await store.positions(view.key, topic, archive.partitions) != before:
        report.missing.append(f"{view.name}: a worker writes to it; stop the worker, then verify again")
        return
    upto = _upto(view, archive, before, report)
    compared = len(upto) == archive.partitions and (report.merged or archive.partitions == 1)
    emit = data is not None and (compared or view.keyed)
    rows, flow = _replayed(view, below(archive.seen_by(view), upto), archive.partitions, emit=emit)
    rows = without_rows(view, rows, archive.forgotten)
    for partition, end in upto.items():
        _compare_clock(view, partition, flow, before[partition], report)
        leaving = set(erased_from(view, archive.forgotten.get(partition, ()), end))
        _compare_states(view, partition, flow, stored[partition], leaving, run)
    if data is not None:
        mirror = _mirror(view, data)
        ends = upto if report.merged else _reached(upto, mirror)
        if emit:
            made, found = below(rows, ends), below(mirror, ends)
            if not compared:
                made, found = _settled(view, made, found, report)
            _compare_rows(f"features/{view.name}", made, found, report)
        else:
            report.skip(len(mirror), f"mirrored rows of {view.name}: they depend on how partitions interleaved")


def _upto(view: View, archive: Archive, positions: Sequence[Position | None], report: Report) -> dict[int, int]:
    """By partition the offset up to which the store can be compared; partitions that cannot be are left out."""
    upto = {}
    last = last_offsets(archive.events)
    for partition, position in enumerate(positions):
        where, end = _place(view, partition), archive.ends.get(partition, 0)
        if position is not None and not end and not position.clock:
            upto[partition] = 0  # what lies there held no event: there is nothing that an archive could have
        elif position is not None and position.next > end:
            report.missing.append(f"{where}: the store stands at offset {position.next}, the archive ends before {end}")
        elif position is None and partition in last:
            report.missing.append(f"{where}: nothing is stored, though events up to {last[partition]} are archived")
        else:
            upto[partition] = position.next if position is not None else 0
    return upto


def _replayed(view: View, events: pl.DataFrame, partitions: int, *, emit: bool) -> tuple[pl.DataFrame, Flow]:
    """Feature rows in order of offset (none unless `emit`), and the flow in its end state."""
    flow, topic = fresh_flow(view, partitions), view.source.name
    rows = [after_events(view, events.clear())]
    for chunk in chunks(logs_of(topic, events), {topic: 0}, _CHUNK):
        flow.lookups(chunk, {})
        made = flow.run(chunk, emit=emit)[view.key].events
        rows += [made] if made.width else []
    return pl.concat(rows).sort("_partition", "_offset"), flow


def _compare_clock(view: View, partition: int, flow: Flow, position: Position | None, report: Report) -> None:
    if position is not None:
        clock = flow.states[view.key].clock(partition) or 0
        report.parity_compared += 1
        if position.clock != clock:
            report.parity_mismatched += 1
            report.example(f"{_place(view, partition)}: its clock is {position.clock}, a replay gives {clock}")


def _compare_states(
    view: View, partition: int, flow: Flow, stored: Mapping[bytes, bytes], leaving: set[bytes], run: _Run
) -> None:
    wanted, report = flow.states[view.key].blobs(partition), run.report
    expired = {entity for entity in wanted.keys() - stored.keys() if run.expired(view, wanted[entity])}
    report.skip(len(expired), f"states of {_place(view, partition)}: they have expired")
    leaving = leaving & stored.keys()
    report.skip(len(leaving), f"states of {_place(view, partition)}: the next worker erases them")
    for entity in sorted((wanted.keys() | stored.keys()) - expired - leaving):
        report.parity_compared += 1
        if wanted.get(entity) != stored.get(entity):
            report.parity_mismatched += 1
            how = "differs from a replay" if entity in wanted else "is not in a replay"
            how = how if entity in stored else "is missing"
            report.example(f"{_place(view, partition)}: the stored state of {entity.decode()} {how}")


def _place(view: View, partition: int) -> str:
    return f"{view.name} on {view.source.name}:{partition}"


def _mirror(view: View, data: Path) -> pl.DataFrame:
    folder = data / "features" / view.name
    if not any(folder.glob("partition=*/*.parquet")):
        return after_events(view, pl.DataFrame(schema=empty_frame(view.source).schema))
    return pl.DataFrame(read_table(folder))


def _settled(view: View, rows: pl.DataFrame, mirror: pl.DataFrame, report: Report) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both without the entities that have moved, since partitions were added: how their partitions met is not known."""
    keys = list(view.entity.keys)
    places = rows.group_by(keys).agg(pl.col("_partition").n_unique())
    moved = places.filter(pl.col("_partition") > 1).select(keys)
    made, found = (frame.join(moved, on=keys, how="anti", maintain_order="left") for frame in (rows, mirror))
    report.skip(len(mirror) - len(found), f"mirrored rows of {view.name}: their entities have changed partitions")
    return made, found


def _reached(upto: Mapping[int, int], mirror: pl.DataFrame) -> dict[int, int]:
    """How far the mirror of a live run goes: it may lag."""
    ends = last_offsets(mirror)
    return {partition: min(end, ends.get(partition, 0)) for partition, end in upto.items()}


def _compare_rows(where: str, wanted: pl.DataFrame, found: pl.DataFrame, report: Report) -> None:
    left, right = matched(wanted, found)
    a, b = wanted[left], found[right]
    differs = np.zeros(len(left), np.bool_)
    for name in wanted.columns:
        if name not in ("_partition", "_offset"):
            other = b[name] if name in b.columns else pl.Series(name, [None] * len(b), wanted[name].dtype)
            wrong = differing(a[name], other)
            report.tell(where, a, other, wrong)
            differs |= wrong
    absent, extra = len(wanted) - len(left), len(found) - len(right)
    report.mirror_compared += len(wanted) + extra
    report.mirror_mismatched += int(differs.sum()) + absent + extra
    if absent or extra:
        report.example(f"{where}: {absent:,} rows are missing and {extra:,} are not in a replay")
