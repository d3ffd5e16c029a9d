"""Where the partitions of topics begin and end, as Kafka tells it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from featurestore import UnavailableError

TIMEOUT_SECONDS = 10.0
_WAIT_SECONDS = 0.1


class Span(NamedTuple):
    """The offsets [begin, end) that a partition holds for readers: an open transaction ends it."""

    begin: int
    end: int


def asking(kafka: str) -> Consumer:
    """A consumer that joins no group and commits nothing, and is told where a partition ends."""
    return Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": "onceflow-looking",  # the client wants one, and uses it to subscribe or to commit only
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "log_level": 0,
        }
    )


def spans(kafka: str, topics: Mapping[str, int]) -> dict[str, list[Span]]:
    """What every partition of `topics` (name: their number) holds; UnavailableError when Kafka does not tell."""
    consumer = asking(kafka)
    places = [(name, number) for name, count in topics.items() for number in range(count)]
    try:
        listed = {place: _listed(consumer, *place) for place in places}
        ends = _fetched(consumer, {place: span.end for place, span in listed.items()})
    except KafkaException as error:
        raise UnavailableError(f"Kafka at {kafka} does not say where its topics end: {error.args[0].str()}") from error
    finally:
        consumer.close()
    return {
        name: [Span(listed[name, number].begin, ends[name, number]) for number in range(count)]
        for name, count in topics.items()
    }


def _listed(consumer: Consumer, topic: str, partition: int) -> Span:
    return Span(*consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=TIMEOUT_SECONDS))


def _fetched(consumer: Consumer, listed: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
    """The ends as a fetch sees them: Tansu lists the start of the last batch instead.

    A partition that does not answer in time keeps the end that was listed.
    """
    ends = dict(listed)
    waiting = set(listed)
    consumer.assign([TopicPartition(*place, offset) for place, offset in listed.items()])
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while waiting and time.monotonic() < deadline:
        for message in consumer.consume(1_000, _WAIT_SECONDS):
            error, offset = message.error(), message.offset()
            if error is None or offset is None:
                continue
            if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - how the client names it
                place = str(message.topic()), int(message.partition() or 0)
                ends[place] = max(ends[place], offset)
                waiting.discard(place)
    return ends
