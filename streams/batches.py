"""What the transport delivers, and what it asks of the app."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from faust import Schema
from faust.types import TP

from featurestore.values import Values

__all__ = ["TP", "Batch", "BatchSchema", "Delivery"]


@dataclass(slots=True)
class Batch:
    """What one fetch brought of one partition: rows in offset order, possibly none.

    `start <= offset < next` for every row. The intervals `[start, next)` tile the partition in delivery order, also
    where offsets are missing (compaction, transaction markers), so a sink that stores `next` can tell a batch that
    was replayed from one that was lost. A batch without rows says that nothing readable lies in its interval.
    """

    topic: str
    partition: int
    start: int
    next: int
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    timestamps: np.ndarray[Any, np.dtype[np.int64]]
    """Kafka's record timestamps, ms."""
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[tuple[tuple[str, bytes], ...]] | None = None
    """One tuple of pairs a row; None unless the topic asks for headers."""
    tombstones: Mapping[int, tuple[tuple[str, bytes], ...]] = field(default_factory=dict)
    """The headers of rows without a value, for every topic."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, unpacked."""
        return Values.of(self.keys).nbytes + Values.of(self.values).nbytes


async def _from_the_beginning(_tps: frozenset[TP]) -> Mapping[TP, int | None]:
    return {}


def _no_lead(_tp: TP) -> int:
    return 0


async def _nothing(_tps: Any) -> None:  # noqa: ANN401 - stands in for two different callbacks
    pass


@dataclass(slots=True)
class Delivery:
    """What the app has to say about the delivery of its partitions. All callbacks run in the app's event loop."""

    positions: Callable[[frozenset[TP]], Awaitable[Mapping[TP, int | None]]] = _from_the_beginning
    """Asked for newly assigned partitions: the offset to start each one at; None or absent: the start of its log.

    May be cancelled when another rebalance begins. An error stops the app with that error.
    """
    lead: Callable[[TP], int] = _no_lead
    """How many offsets before its position a partition is read from, as far as its log reaches back."""
    assigned: Callable[[Mapping[TP, int]], Awaitable[None]] = _nothing
    """Told where each newly assigned partition is read from, before the first batch flows. Errors as above."""
    revoked: Callable[[frozenset[TP]], Awaitable[None]] = _nothing
    """Told of partitions about to be given away, after the last batch: at every rebalance (of all partitions, also of
    those that come back) and at a clean stop, not when the app fails. `Consumer.done` still counts until it returns.
    """
    max_records: int = 20_000
    """Rows in a batch, at most."""
    headers: frozenset[str] = frozenset()
    """Topics whose batches have their records' headers."""
    columns: bool = True
    """Whether records come as columns; if not, aiokafka makes an object of each one first."""
    interval: float = 0.01
    """Seconds between fetches, at least: what it adds to latency at low rates it saves in CPU time."""


class BatchSchema(Schema):  # type: ignore[misc]
    """Marks a topic as delivered by the batch; `headers` says whether record headers are kept."""

    def __init__(self, *, headers: bool = False) -> None:
        super().__init__(key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
        self.headers = headers

    def compile(self, app: Any, **_: Any) -> Callable[..., Awaitable[Any]]:  # noqa: ANN401 - Faust is untyped
        """Return Faust's decoder: the value is a `Batch` already."""

        async def decode(message: Any, *, propagate: bool = False) -> Any:  # noqa: ANN401, ARG001
            return app.create_event(None, message.value, message.headers, message)

        return decode
