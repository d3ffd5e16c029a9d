"""The pairs of a joined source from the history of both its sides."""

from __future__ import annotations

import polars as pl

from batch.events import logs_of
from featurestore.align import merged
from featurestore.frames import empty_frame
from featurestore.joined import Joined
from featurestore.pairing import Pairing


def pairs_of(source: Joined, left: pl.DataFrame, right: pl.DataFrame) -> pl.DataFrame:
    """All pairs of two whole logs, as a replay of both topics makes them, in that order on each partition.

    `left` and `right` are event frames (see `events.read_events`). The answer has the source's schema, `_partition` and
    `_offset`, and so can be written to a file that a backfill reads.
    """
    sides = source.sides
    logs = [logs_of(side.name, frame) for side, frame in zip(sides, (left, right), strict=True)]
    parts = [pl.DataFrame(schema=empty_frame(source).select(*source.schema, "_partition", "_offset").schema)]
    for partition in sorted({at for each in logs for _, at in each}):
        mine = {(topic, at): frame for each in logs for (topic, at), frame in each.items() if at == partition}
        chunk = merged({side.name: 0 for side in sides}, mine)
        nothing = [empty_frame(side).with_columns(_step=pl.lit(0, pl.Int64)) for side in sides]
        frames = [chunk.frames.get(side.name, empty) for side, empty in zip(sides, nothing, strict=True)]
        pairs = Pairing(source, partition).take(*frames).pairs.select(*source.schema)
        place = [pl.lit(partition, pl.Int32).alias("_partition"), pl.int_range(pl.len()).alias("_offset")]
        parts.append(pairs.with_columns(place))
    return pl.concat(parts)
