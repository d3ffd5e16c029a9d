"""Frames and files to Kafka, keyed, as JSON: one message an event, encoded column by column."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from featurestore.errors import ConfigError, DataError, UnavailableError

Progress = Callable[[int], None]
"""Called with the number of events handed to Kafka so far."""
Headers = dict[str, bytes] | None

TIMEOUT_SECONDS = 30.0

_CHUNK = 50_000
_WAIT_SECONDS = 0.05
_PARTITIONERS = {"murmur2": "murmur2_random", "crc32": "consistent_random"}


def produce_frame(
    address: str,
    topic: str,
    frame: pl.DataFrame,
    key: Sequence[str],
    partitions: int = 4,
    *,
    timestamps: str | None = None,
    progress: Progress | None = None,
    partitioner: str | None = None,
) -> int:
    """Send every row as one message, in order, and return their number once Kafka has acknowledged all of them.

    The value is the row as a JSON object: dates and times as ms since the epoch, null and NaN as null. The key is the
    text of the key columns, joined by "|"; without key columns, or with a null in one, a message has no key.
    `timestamps` names a column of times that become Kafka's record timestamps; else they are the time of sending.
    `partitioner` is a source's ("crc32" if None). A topic that is not there is created.
    ConfigError: a column that is not there. UnavailableError: Kafka did not take the messages.
    """
    options: dict[str, Any] = {"timestamps": timestamps, "progress": progress, "partitioner": partitioner}
    return produce_frames(address, topic, [frame], key, partitions, **options)


def produce_frames(
    address: str,
    topic: str,
    frames: Iterable[pl.DataFrame],
    key: Sequence[str],
    partitions: int = 4,
    *,
    timestamps: str | None = None,
    progress: Progress | None = None,
    partitioner: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> int:
    """Send frames one after another, each as soon as it is there, as `produce_frame` does.

    `headers` are the names of those that take columns, by column.
    """
    ensure_topics(address, {topic: partitions})
    outbox = _Outbox(address, topic, partitioner)
    return _produce(outbox, frames, key, timestamps, progress, headers or {})


def produce_file(
    address: str,
    topic: str,
    path: Path,
    key: Sequence[str],
    partitions: int = 4,
    *,
    timestamps: str | None = None,
    progress: Progress | None = None,
    partitioner: str | None = None,
    types: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> int:
    """Send every row of a JSON lines, CSV or Parquet file, as `produce_frame` does, without holding the file in memory.

    `types` are a source's column types: such columns are cast, and other columns left out. DataError: it cannot be.
    """
    options: dict[str, Any] = {"timestamps": timestamps, "progress": progress, "partitioner": partitioner}
    return produce_frames(address, topic, read(path, types), key, partitions, headers=headers, **options)


def read(path: Path, types: Mapping[str, str] | None = None) -> Iterator[pl.DataFrame]:
    """The rows of a JSON lines, CSV or Parquet file, in order, as frames of at most 50,000 rows."""
    scans: dict[str, Callable[[], pl.LazyFrame]] = {
        ".parquet": lambda: pl.scan_parquet(path),
        ".csv": lambda: pl.scan_csv(path, infer_schema_length=None, try_parse_dates=True),
        ".jsonl": lambda: pl.scan_ndjson(path, infer_schema_length=None),
    }
    scan = scans.get({".ndjson": ".jsonl", ".json": ".jsonl"}.get(path.suffix, path.suffix))
    if scan is None:
        raise ConfigError(f"{path}: cannot tell the format; use a name that ends in .jsonl, .csv or .parquet")
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    try:
        rows = scan()
        if types is not None:
            rows = _typed(rows, types, path)
        yield from rows.collect_batches(chunk_size=_CHUNK)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def ensure_topics(address: str, topics: Mapping[str, int]) -> None:
    """Create the topics that are not there, each with its number of partitions; leave the others as they are.

    Returns when every topic has a leader for every partition. UnavailableError: Kafka cannot be reached, or refuses.
    """
    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    wanted = [NewTopic(name, partitions) for name, partitions in topics.items() if name not in _led(admin, address)]
    for name, done in admin.create_topics(wanted).items() if wanted else ():
        try:
            done.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise UnavailableError(
                    f"Kafka at {address} did not create topic {name!r}: {error.args[0].str()}"
                ) from None
    _wait_for(admin, address, dict.fromkeys(topics, 1))


def add_partitions(address: str, topics: Mapping[str, int]) -> None:
    """Bring topics to their numbers of partitions. UnavailableError: Kafka cannot be reached, or refuses."""
    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    for name, done in admin.create_partitions([NewPartitions(*each) for each in topics.items()]).items():
        try:
            done.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.INVALID_PARTITIONS:  # another worker was faster
                why = error.args[0].str()
                raise UnavailableError(f"Kafka at {address} did not add partitions to {name!r}: {why}") from None
    _wait_for(admin, address, topics)


def _wait_for(admin: AdminClient, address: str, topics: Mapping[str, int]) -> None:
    """Return when every topic has a leader for each of its partitions, of which there are so many at least."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not all(_led(admin, address).get(name, 0) >= count for name, count in topics.items()):
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"Kafka at {address} has no leader for {', '.join(topics)} after 30 s: look at its log"
            )
        time.sleep(_WAIT_SECONDS)


def encode(frame: pl.DataFrame) -> list[bytes]:
    """Every row as one JSON object: times as ms since the epoch, null, NaN and the infinities as null."""
    times = pl.selectors.temporal() - pl.selectors.time() - pl.selectors.duration()
    plain = frame.with_columns(times.cast(pl.Datetime("ms")).dt.epoch("ms"))
    values: list[bytes] = plain.select(pl.struct(pl.all()).struct.json_encode().cast(pl.Binary)).to_series().to_list()
    return values


class _Outbox:
    """A producer of one topic that fails loudly: `send` and `close` raise what Kafka said of any message before."""

    def __init__(self, address: str, topic: str, partitioner: str | None) -> None:
        self._topic = topic
        self._failures: list[str] = []
        self._producer = Producer(_configuration(address, partitioner) | {"on_delivery": self._delivered})

    def send(self, values: list[bytes], keys: list[bytes | None], times: list[int], headers: list[Headers]) -> None:
        produce, topic = self._producer.produce, self._topic
        for value, key, at, given in zip(values, keys, times, headers, strict=True):
            while True:
                try:
                    produce(topic, value, key, timestamp=at, headers=given)
                    break
                except BufferError:  # the queue is full: wait for Kafka to take some of it
                    self._poll(_WAIT_SECONDS)
                except KafkaException as error:
                    why = error.args[0].str()
                    raise DataError(f"topic {topic!r} cannot take the event {value[:80]!r}: {why}") from None
        self._poll(0)

    def close(self) -> None:
        if self._producer.flush(TIMEOUT_SECONDS) and not self._failures:
            self._failures.append(f"no answer within {TIMEOUT_SECONDS:.0f} s")
        self._poll(0)

    def _poll(self, seconds: float) -> None:
        self._producer.poll(seconds)
        if self._failures:
            left = max(len(self._producer), len(self._failures))
            raise UnavailableError(f"Kafka did not take {left} messages for {self._topic!r}: {self._failures[0]}")

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failures.append(error.str())


def _produce(
    outbox: _Outbox,
    frames: Iterable[pl.DataFrame],
    key: Sequence[str],
    timestamps: str | None,
    progress: Progress | None,
    headers: Mapping[str, str],
) -> int:
    sent = 0
    for frame in frames:
        for rows in frame.iter_slices(_CHUNK):
            values = encode(rows.drop(headers.keys()))
            outbox.send(values, _keys(rows, key), _times(rows, timestamps), _headers(rows, headers))
            sent += len(rows)
            if progress is not None:
                progress(sent)
    outbox.close()
    return sent


def _configuration(address: str, partitioner: str | None) -> dict[str, Any]:
    return {
        "bootstrap.servers": address,
        "enable.idempotence": True,  # a retry neither repeats nor reorders a message
        "linger.ms": 20,
        "batch.size": 1_000_000,
        "compression.type": "lz4",
        "delivery.report.only.error": True,
        "message.timeout.ms": int(TIMEOUT_SECONDS * 1000),
        "partitioner": _PARTITIONERS[partitioner or "crc32"],
        "log_level": 0,
    }


def _keys(rows: pl.DataFrame, key: Sequence[str]) -> list[bytes | None]:
    _known(rows, key)
    if not key:
        return [None] * len(rows)
    text = pl.concat_str([pl.col(name).cast(pl.String) for name in key], separator="|")
    keys: list[bytes | None] = rows.select(text.cast(pl.Binary)).to_series().to_list()
    return keys


def _times(rows: pl.DataFrame, timestamps: str | None) -> list[int]:
    if timestamps is None:
        return [0] * len(rows)  # the client's clock
    _known(rows, [timestamps])
    column = rows[timestamps]
    if column.dtype.is_temporal():
        column = column.cast(pl.Datetime("ms")).dt.epoch("ms")
    if not column.dtype.is_integer() or column.has_nulls():
        raise ConfigError(f"column {timestamps!r} has no time in every row: record timestamps need ms since the epoch")
    times: list[int] = column.to_list()
    return times


def _headers(rows: pl.DataFrame, names: Mapping[str, str]) -> list[Headers]:
    """The columns that go to headers, as text; what JSON has null for is left out."""
    if not names:
        return [None] * len(rows)
    floats = pl.selectors.float()
    finite = rows.select(names.keys()).with_columns(pl.when(floats.is_finite()).then(floats))
    texts = finite.cast(pl.String).iter_rows()
    return [{name: text.encode() for name, text in zip(names.values(), row, strict=True) if text} for row in texts]


def _known(rows: pl.DataFrame, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in rows.columns:
            raise ConfigError(f"there is no column {name!r}; the columns are {', '.join(rows.columns)}")


def _typed(rows: pl.LazyFrame, types: Mapping[str, str], path: Path) -> pl.LazyFrame:
    there = rows.collect_schema()
    plain = {"str": pl.String, "int": pl.Int64, "float": pl.Float64, "bool": pl.Boolean}
    columns = []
    for name, kind in types.items():
        if name not in there:
            raise DataError(f"{path}: there is no column {name!r}; the columns are {', '.join(there)}")
        column = pl.col(name)
        if kind in plain:
            columns.append(column.cast(plain[kind]))
        elif there[name] == pl.String:
            columns.append(column.str.to_datetime(time_unit="ms", time_zone="UTC").dt.epoch("ms"))
        else:
            columns.append(column.cast(pl.Datetime("ms")).dt.epoch("ms"))
    return rows.select(columns)


def _led(admin: AdminClient, address: str) -> dict[str, int]:
    """By topic, how many partitions it has, where each has a leader."""
    try:
        topics = admin.list_topics(timeout=TIMEOUT_SECONDS / 3).topics
    except KafkaException:
        raise UnavailableError(
            f"Kafka at {address} cannot be reached: is it running? `onceflow up` starts one"
        ) from None
    return {
        name: len(topic.partitions)
        for name, topic in topics.items()
        if topic.partitions and all(partition.leader >= 0 for partition in topic.partitions.values())
    }
