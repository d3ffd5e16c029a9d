"""What a worker sends to Kafka, and how the mirror reads it back.

`features.<view>` carries one Arrow IPC stream a message: features right after each folded event, with the event's
partition and offset. `start` and `next` in the schema's metadata say which offsets of the source partition a message
covers, so that a reader can tell a repeated message from a missing one. `predictions.<service>` carries JSON, a
prediction a message.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from featurestore import predictions as shared
from featurestore.align import Partition
from featurestore.definitions import View
from featurestore.errors import DataError
from featurestore.headers import Headers
from featurestore.predictions import decode_prediction
from featurestore.predictions import prediction_topic as prediction_topic  # noqa: PLC0414 - it belongs to this page
from featurestore.sources import Source

#: A message stays well under the megabyte that brokers take by default.
MESSAGE_BYTES = 500_000
_DETAIL_BYTES = 4096
HEADER_PREFIX = "header."
"""What the name of a refused record's own header begins with in `<topic>.dlq`."""
_PREDICTION = {
    *("_partition", "_offset", "_time", "_effective"),
    *("id", "prediction", "probability", "model_version", "variant"),
}
_NO_EVENTS = pl.DataFrame(schema={"_partition": pl.Int32, "_offset": pl.Int64, "_time": pl.Int64})


class Message(NamedTuple):
    """One record to produce."""

    topic: str
    partition: int
    value: bytes | None
    key: bytes | None = None
    headers: Mapping[str, bytes] | None = None


class Record(NamedTuple):
    """A record of a source topic, as it came."""

    topic: str
    partition: int
    offset: int
    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()  # those that hold columns or name an entity to erase


def records_of(source: Source, events: pl.DataFrame) -> Iterator[Record]:
    """The records of events that were read; of one that holds several the whole, for each of them."""
    if len(events):
        for partition, offset, value in events.select("_partition", "_offset", "_raw").iter_rows():
            yield Record(source.name, partition, offset >> source.row_bits, value)


def feature_topic(view: View) -> str:
    """The topic of a view's online writes."""
    return f"features.{view.name}"


def feature_messages(view: View, events: pl.DataFrame, spans: Mapping[Partition, tuple[int, int]]) -> Iterator[Message]:
    """A view's online writes over the offsets of `spans`; at least one message a span, so that none looks missing."""
    topic = feature_topic(view)
    ordered = events.sort("_partition", "_offset") if events.width else _NO_EVENTS
    partitions = ordered["_partition"].to_numpy()
    for (_, partition), (start, end) in spans.items():
        rows = ordered[np.searchsorted(partitions, partition) : np.searchsorted(partitions, partition, side="right")]
        parts = list(_parts(rows.to_arrow()))
        offsets = [start, *(part["_offset"][0].as_py() for part in parts[1:]), end]
        for part, (begin, stop) in zip(parts, itertools.pairwise(offsets), strict=True):
            yield Message(topic, partition, _arrow_bytes(part, begin, stop))


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    """The table cut in halves until each part is small enough for a message, or one row."""
    if table.nbytes <= MESSAGE_BYTES or len(table) < 2:
        yield table
        return
    for part in (table[: len(table) // 2], table[len(table) // 2 :]):
        yield from _parts(part)


def _arrow_bytes(table: pa.Table, start: int, stop: int) -> bytes:
    table = table.replace_schema_metadata({"start": str(start), "next": str(stop)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def feature_table(value: bytes) -> tuple[pa.Table, int, int]:
    """The table in a message of `features.<view>` and the source offsets [start, next) that it covers."""
    table = pa.ipc.open_stream(value).read_all()
    metadata = table.schema.metadata
    return table.replace_schema_metadata(None), int(metadata[b"start"]), int(metadata[b"next"])


def prediction_messages(service: str, predictions: pl.DataFrame) -> Iterator[Message]:
    """Predictions as JSON, each to the partition of the event that it was made on."""
    topic = prediction_topic(service)
    meta = [
        "_partition",
        "_offset",
        "_time",
        "_effective",
        "id",
        "prediction",
        "probability",
        "model_version",
        "variant",
        "_error",
    ]
    features = [name for name in predictions.columns if name not in meta]
    probability = pl.col("probability")
    chances = pl.struct((1 - probability).alias("false"), probability.alias("true"))
    body = pl.struct(
        pl.col("id"),
        pl.col("_time").alias("event_time"),
        pl.col("prediction"),
        pl.when(probability.is_not_null()).then(chances).alias("probabilities"),
        pl.col("model_version"),
        pl.col("variant"),
        pl.struct(features).alias("features"),
        pl.col("_effective").alias("effective_time"),
        pl.col("_offset").alias("offset"),
        *([pl.col("_error").alias("error")] if "_error" in predictions.columns else []),
    )
    frame = predictions.select("_partition", "id", body.struct.json_encode().alias("body"))
    for partition, key, value in frame.iter_rows():
        yield Message(topic, partition, value.encode(), None if key is None else key.encode())


def prediction_table(values: Sequence[bytes], partition: int, features: Sequence[str]) -> pa.Table:
    """The table of a run of messages of `predictions.<service>`; DataError for one that is not ours."""
    try:
        rows = [decode_prediction(value) for value in values]
    except DataError as error:
        raise DataError(f"a message of partition {partition} is {error}") from error
    return shared.prediction_table(rows, partition, features)


def rejected(record: Record, error: str, detail: str) -> Message:
    """A record for `<topic>.dlq`: its key (none if above 4 KB), the original bytes (4 KB at most), why and whence.

    Its headers (none above 4 KB) get a prefix, so that none can say why; `size` counts what is left out.
    """
    value = record.value and record.value[:_DETAIL_BYTES]
    # A huge key would make the message larger than Kafka takes: one bad record would stop the worker.
    key = record.key if record.key and len(record.key) <= _DETAIL_BYTES else None
    given = {f"{HEADER_PREFIX}{name}": found or b"" for name, found in record.headers}
    kept = {name: found for name, found in given.items() if len(found) <= _DETAIL_BYTES}
    size = len(record.value or b"") + sum(len(given[name]) for name in given.keys() - kept.keys())
    headers = kept | _why(record, error, detail) | {"size": b"%d" % size}
    return Message(f"{record.topic}.dlq", record.partition, value, key, headers)


def late(record: Record, detail: str) -> Message:
    """A record for `<topic>.late`, and why it is."""
    headers = _why(record, "late", detail)
    return Message(f"{record.topic}.late", record.partition, record.value, None, headers)


def _why(record: Record, error: str, detail: str) -> dict[str, bytes]:
    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    return {name: str(value).encode() for name, value in {"error": error, "detail": detail, **place}.items()}
