"""Records that a worker refused, as `<topic>.dlq` holds them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from featurestore import ConfigError, UnavailableError
from onceflow.ends import asking, spans
from onceflow.escaping import text_of
from onceflow.reading import topic_partitions
from streams.messages import HEADER_PREFIX

_PATIENCE_SECONDS = 10.0
_WAIT_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Refused:
    """A refused record: why, where it lies in its source topic, and its bytes (None: a tombstone).

    `partition` and `offset` are texts, as the record's headers have them: whoever may write to the topic wrote them.
    `headers` are its own that were kept. `letter` is where it lies among the dead letters. Not `whole`: it had more
    bytes than were kept.
    """

    error: str
    detail: str
    partition: str
    offset: str
    value: bytes | None
    key: bytes | None = None
    headers: Mapping[str, bytes] = field(default_factory=dict)
    letter: tuple[int, int] = (0, 0)
    whole: bool = True


def refused_records(kafka: str, topic: str, starts: Mapping[int, int] = MappingProxyType({})) -> Iterator[Refused]:
    """What lies in the dead letters of `topic` now, partition by partition in offset order; from `starts` on.

    ConfigError: there is no such topic. UnavailableError: Kafka cannot be reached, or stops answering.
    """
    letters = f"{topic}.dlq"
    count = topic_partitions(kafka).get(letters)
    if count is None:
        raise ConfigError(f"there is no topic {letters!r}: a worker creates it when it starts on {topic!r}")
    consumer = asking(kafka)
    try:
        for partition, span in enumerate(spans(kafka, {letters: count})[letters]):
            begin = max(span.begin, starts.get(partition, 0))
            if begin < span.end:
                place = TopicPartition(letters, partition, begin)
                yield from map(_refused, _messages(consumer, place, span.end))
    except KafkaException as error:
        raise UnavailableError(f"cannot read {letters} from Kafka at {kafka}: {error.args[0].str()}") from error
    finally:
        consumer.close()


def _messages(consumer: Consumer, place: TopicPartition, end: int) -> Iterator[Message]:
    """The messages of a partition before `end`."""
    consumer.assign([place])
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        for message in consumer.consume(1_000, _WAIT_SECONDS):
            error, offset = message.error(), message.offset()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 - how the client names it
                raise KafkaException(error)
            if offset is None:
                continue
            if error is None and offset < end:
                yield message
            if offset + (error is None) >= end:
                return
            deadline = time.monotonic() + _PATIENCE_SECONDS
    raise UnavailableError(f"Kafka stopped sending {place.topic}[{place.partition}] before its offset {end}: try again")


def _refused(message: Message) -> Refused:
    given = [(name, value or b"") for name, value in message.headers() or ()]
    headers = {name: text_of(value) for name, value in given}
    error, detail, partition, offset = (headers.get(name, "") for name in ("error", "detail", "partition", "offset"))
    key, value = (each.encode() if isinstance(each, str) else each for each in (message.key(), message.value()))
    letter = int(message.partition() or 0), int(message.offset() or 0)
    whole = headers.get("size", "") in ("", str(len(value or b"")))
    own = {name.removeprefix(HEADER_PREFIX): found for name, found in given if name.startswith(HEADER_PREFIX)}
    return Refused(error, detail, partition, offset, value, key, own, letter, whole)
