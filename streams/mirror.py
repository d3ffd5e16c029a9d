"""The offline mirror: feeds on Kafka, written to Parquet on the offset grid of the topic they speak of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import polars as pl
import pyarrow as pa

from featurestore.errors import GapError
from featurestore.forgotten import Revision
from featurestore.offline import GridWriter
from streams.messages import feature_table, prediction_table
from streams.transport import Batch

#: A feed's decoder: from a batch of its messages to tables, each with the source offsets [start, next) it covers.
Decode = Callable[[Batch], Sequence[tuple[pa.Table, int | None, int]]]


def decode_features(batch: Batch) -> list[tuple[pa.Table, int | None, int]]:
    """Messages of `features.<view>`."""
    return [feature_table(value) for value in batch.values if value is not None]


def predictions_decoder(features: Sequence[str]) -> Decode:
    """A decoder of `predictions.<service>`, given the names of the model's inputs."""

    def decode(batch: Batch) -> list[tuple[pa.Table, int | None, int]]:
        table = prediction_table([value for value in batch.values if value], batch.partition, features)
        if not len(table):
            return []
        # A worker that died sends some again when it is back: the first counts, as everywhere.
        offsets = table["_offset"].to_numpy()
        newest = np.maximum.accumulate(offsets)
        first = offsets > np.append(-1, newest[:-1])
        return [(table.filter(first), None, int(newest[-1]) + 1)]

    return decode


class Mirror:
    """Writes feeds to `<root>/<folder of the feed>`; goes on where its files end, so that twice is once."""

    def __init__(
        self,
        root: Path,
        feeds: Mapping[str, tuple[str, Decode, int]],
        revisions: Mapping[str, Callable[[int], Revision]] = MappingProxyType({}),
    ) -> None:
        """`feeds`: by feed topic the folder under `root`, such as "features/card_activity", decoder and grid.

        `revisions`: by feed topic and partition what its files must not hold any more.
        """
        self._root, self._feeds, self._revisions = root, feeds, revisions
        self._writers: dict[tuple[str, int], GridWriter] = {}
        self._done: dict[tuple[str, int], int] = {}
        self._lock = asyncio.Lock()

    def position(self, topic: str, partition: int) -> int | None:
        """The offset of the feed from which to go on; None from its start."""
        return self._writer(topic, partition).feed

    def begin(self, topic: str, partition: int, offset: int) -> None:
        """Expect a feed's batches from this offset on."""
        self._done[topic, partition] = offset

    def done(self, topic: str, partition: int) -> int:
        """The offset of the feed up to which all is with the writer."""
        return self._done.get((topic, partition), 0)

    async def take(self, batch: Batch) -> None:
        """Write a batch of a feed."""
        async with self._lock:
            expected = self._done.get((batch.topic, batch.partition))
            if expected is None or batch.next <= expected:
                return  # from before a rebalance
            if batch.start != expected:
                raise GapError(
                    f"{batch.topic}[{batch.partition}]: expected offset {expected}, Kafka gave {batch.start}"
                )
            await asyncio.to_thread(self._take, batch)
            self._done[batch.topic, batch.partition] = batch.next

    async def flush(self) -> None:
        """Write what is buffered, as files that grow later."""
        async with self._lock:
            for writer in self._writers.values():
                await asyncio.to_thread(writer.flush)

    @property
    def writers(self) -> list[GridWriter]:
        """The writers of all partitions that there are now."""
        return list(self._writers.values())

    async def forget(self) -> None:
        """Drop writers and what they have buffered: the files say where to go on."""
        async with self._lock:
            self._writers.clear()
            self._done.clear()

    def _take(self, batch: Batch) -> None:
        writer = self._writer(batch.topic, batch.partition)
        tables, upto = [], writer.next
        for table, start, end in self._feeds[batch.topic][1](batch):
            if start is not None and start > upto > 0:
                raise GapError(
                    f"{batch.topic}:{batch.partition} goes on at source offset {start}, the mirror ends at "
                    f"{upto}: messages are missing; rebuild it with `onceflow backfill`"
                )
            if end > upto:
                tables.append(table.slice(int(np.searchsorted(table["_offset"].to_numpy(), upto))))
                upto = end
        if tables:  # at once: the file may say that it goes on after this batch only when it has all of it
            writer.append(_joined(tables), upto, feed=batch.next, start=writer.next)

    def _writer(self, topic: str, partition: int) -> GridWriter:
        if (topic, partition) not in self._writers:
            folder, _, grid = self._feeds[topic]
            revision = self._revisions[topic](partition) if topic in self._revisions else None
            self._writers[topic, partition] = GridWriter(self._root / folder, partition, grid, revision=revision)
        return self._writers[topic, partition]


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of one feed as one; those without rows may lack columns."""
    filled = [table for table in tables if table.num_rows] or tables[:1]
    return pa.concat_tables(filled, promote_options="default")


def archive_table(frame: pl.DataFrame, columns: Sequence[str]) -> pa.Table:
    """Events as the archive keeps them: the source's own columns and the record's place and time."""
    return frame.select("_partition", "_offset", "_timestamp", *columns).to_arrow()
