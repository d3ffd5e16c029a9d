"""What a worker asks of the part that predicts, so that neither knows the other's inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import polars as pl

from featurestore.align import Chunk, Partition
from featurestore.flow import Read
from featurestore.sources import Source


class Processor(Protocol):
    """Something that turns events and features into predictions, in merged order."""

    @property
    def name(self) -> str:
        """The service's name: predictions go to predictions.<name>."""

    @property
    def on(self) -> Source:
        """The source on whose events it predicts."""

    @property
    def sources(self) -> Sequence[Source]:
        """Every source whose events it takes."""

    @property
    def reads(self) -> Sequence[Read]:
        """The features that it wants read."""

    @property
    def key(self) -> str | None:
        """The identity under which the online store keeps its positions; None when it keeps them itself."""

    def positions(self) -> Mapping[Partition, int]:
        """First offset not yet processed, of the partitions that it has processed something of."""

    def process(self, chunk: Chunk, reads: Mapping[Read, pl.DataFrame]) -> pl.DataFrame:
        """Predictions for the chunk's events at or after its positions, which move on to the chunk's end.

        Columns: _partition, _offset, _time, _effective, id, prediction, probability, model_version, variant, and one
        for each input of the model.
        """

    def checkpoint(self) -> Callable[[], None]:
        """What makes durable, once called, the positions and all that was learnt as they are now.

        It is called after the predictions have been delivered, and maybe after later chunks were processed.
        """
