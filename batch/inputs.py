"""A service's inputs at given events, from history."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import polars as pl

from batch.backfill import at_rows
from batch.compare import matched
from batch.events import chunks, logs_of, partitions_of
from featurestore.definitions import View
from featurestore.errors import DataError
from featurestore.featureset import FeatureSet
from featurestore.flow import Flow, Read
from featurestore.forgotten import Forgotten, hidden_from

_CHUNK = 100_000


def inputs_at(
    features: FeatureSet,
    events: Mapping[str, pl.DataFrame],
    asked: pl.DataFrame,
    *,
    before: bool = False,
    forgotten: Mapping[str, Mapping[int, Sequence[Forgotten]]] = MappingProxyType({}),
    progress: Callable[[str], None] = lambda _: None,
) -> pl.DataFrame:
    """Every input of a model at events, as floats, by full name: what the stream finds where nothing is out of order.

    `events` are the event frames of the views' sources by topic, `asked` are some of the service's own source, in any
    order; with `before` they see a view of that topic as it was right before them. `forgotten` are the erased entities
    by topic and partition. `progress` is told what comes next. Raises DataError when a topic's events are not given, or
    lack a column that the inputs need.
    """
    found = {}
    for view in features.views:
        progress(view.name)
        if view.source.name not in events:
            raise DataError(f"view {view.name!r} needs the events of {view.source.name!r}; give them")
        log = hidden_from(view, events[view.source.name], forgotten.get(view.source.name, {}))
        own = view.source.name == features.on.name and len(log) > 0
        every = _in_merged_order(view, log, asked, before) if own else _as_of(view, log, asked)
        found[view] = every.select(features.seen(view))
    return features.inputs(asked, found)


def _as_of(view: View, events: pl.DataFrame, asked: pl.DataFrame) -> pl.DataFrame:
    return at_rows(view, events, asked.select(*view.entity.keys, "_time"))


def _in_merged_order(view: View, events: pl.DataFrame, asked: pl.DataFrame, before: bool) -> pl.DataFrame:
    """The features of a view of the service's own topic.

    Of events of one instant, some come after the one that is predicted on, and with `before` even the event itself
    does: they are read in merged order.
    """
    topic, partitions = view.source.name, partitions_of(events)
    read = Read(view, topic, view.entity.keys, before)
    flow = Flow([view], [read], {topic: partitions})
    for partition in range(partitions):
        flow.begin(view.key, (topic, partition), None)
    everything = dict.fromkeys(((topic, partition) for partition in range(partitions)), 0)
    parts = []
    for chunk in chunks(logs_of(topic, events), {topic: 1}, _CHUNK):
        flow.lookups(chunk, everything)
        reads = flow.run(chunk, emit=False)[view.key].reads[read]
        parts.append(chunk.frames[topic].select("_partition", "_offset").hstack(reads.select(*view.outputs)))
    rows = pl.concat(parts).sort("_partition", "_offset")
    places = matched(asked, rows)[1]
    if len(places) < len(asked):
        raise DataError(f"{len(asked) - len(places):,} of the events asked for are not among those of {topic!r}")
    return rows[places]
