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

    def positions(self) -> Mapping[Partition, int] | None:
        """First offset not yet processed, of partitions that it has processed something of, as it knows itself.

        They may be ahead of those in the online store, for its checkpoint comes first. None: it keeps none.
        """

    def process(self, chunk: Chunk, reads: Mapping[Read, pl.DataFrame]) -> pl.DataFrame:
        """Predictions for the chunk's events, which are all new to it; its positions move on to the chunk's end.

        `reads` have a row for each event of `on`, in the same order. Columns of the answer: _partition, _offset, _time,
        _effective, id, prediction, probability, model_version, variant, and one for each input of the model; where an
        event may go without an answer, whose columns are null then, also _error, which says why.
        """

    def checkpoint(self) -> Callable[[], None]:
        """What makes durable, once called, the positions and all that was learnt as they are now.

        It is called after the predictions have been delivered, and maybe after later chunks were processed.
        """
