"""Kafka's records for the learner: every partition of its topics, from offsets that it knows better than Kafka.

There is one learner a project, so that it needs no consumer group; and nothing is ever committed, because what was read
and what was learnt from it lie in one snapshot.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from threading import Event

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from featurestore.align import Partition
from featurestore.errors import GapError, UnavailableError
from featurestore.headers import Headers

_log = logging.getLogger(__name__)

_ASK_SECONDS = 2.0
_PAUSE_SECONDS = 0.5
_SHORT_ASKED = 5  # a new leader may not know at once how far its log is good


@dataclass
class Records:
    """Some records of one partition, in order. `ended`: after them, for now, comes nothing."""

    partition: Partition
    offsets: list[int] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)  # where they are wanted
    ended: bool = False


class Reader:
    """Reads partitions from given offsets on (None: from the oldest record there is), committed transactions only."""

    def __init__(self, kafka: str, starts: Mapping[Partition, int | None], headers: Collection[str] = ()) -> None:
        """`headers`: the topics of which records' headers are wanted."""
        self._kafka, self._headers = kafka, headers
        self._away = False
        self._short = 0  # how many times in a row a partition was found to end before its start
        self._next = {place: start or 0 for place, start in starts.items()}
        self._consumer = Consumer(
            {
                "bootstrap.servers": kafka,
                "group.id": "onceflow-learner",  # the client wants one; it is not used
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",  # records that are gone are no reason to go on elsewhere
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 50,  # after which an end is told
                "queued.max.messages.kbytes": 16_384,
                "log_level": 0,
                "error_cb": self._failed,
            }
        )
        self._consumer.assign(
            [
                TopicPartition(topic, partition, OFFSET_BEGINNING if start is None else start)
                for (topic, partition), start in starts.items()
            ]
        )

    def poll(self, limit: int) -> list[Records]:
        """What has come since, at most `limit` records, without waiting.

        GapError: a partition no longer holds the offset to go on from. UnavailableError: Kafka refuses a partition.
        """
        found: dict[Partition, Records] = {}
        for message in self._consumer.consume(limit, 0):
            place = message.topic(), message.partition()
            error = message.error()
            if error is None:
                records = found.setdefault(place, Records(place))
                _append(records, message)
                if place[0] in self._headers:
                    records.headers.append(message.headers() or ())
                self._next[place] = message.offset() + 1
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - how the client names it
                found.setdefault(place, Records(place)).ended = True
            else:
                self._refused(error, message)
        if found and self._away:
            self._away = False
            _log.warning("Kafka answers again", extra={"kafka": self._kafka})
        return list(found.values())

    def lag(self) -> dict[str, int]:
        """By topic, how many records are still to come, as far as is known. To be asked every second or so.

        GapError: a partition has ended, for a while, before the offset to go on from; not every broker refuses that.
        """
        lags: dict[str, int] = {}
        short = None
        for (topic, partition), at in self._next.items():
            low, high = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)
            if 0 <= high < at:
                short = topic, partition, high
            lags[topic] = lags.get(topic, 0) + max(0, high - max(at, low))
        self._short = self._short + 1 if short else 0
        if short and self._short > _SHORT_ASKED:
            raise _gap(f"{short[0]}[{short[1]}]", f"it ends at {short[2]}")
        return lags

    def pause(self, partition: Partition) -> None:
        """Take no more of a partition for now."""
        self._consumer.pause([TopicPartition(*partition)])

    def resume(self, partition: Partition) -> None:
        """Go on with a paused partition."""
        self._consumer.resume([TopicPartition(*partition)])

    def close(self) -> None:
        """Leave Kafka."""
        self._consumer.close()

    def _failed(self, error: KafkaError) -> None:
        """Told by the client when it lost Kafka; it tries again by itself."""
        if not self._away:
            self._away = True
            _log.warning("lost Kafka, trying again", extra={"kafka": self._kafka, "error": error.str()})

    def _refused(self, error: KafkaError, message: Message) -> None:
        where = f"{message.topic()}[{message.partition()}]"
        if error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
            raise _gap(where, error.str())
        if not error.retriable():
            raise UnavailableError(f"Kafka at {self._kafka} does not give {where}: {error.str()}")


def _gap(where: str, why: str) -> GapError:
    return GapError(
        f"{where} does not hold the offset at which the learner's snapshot ends ({why}): the topic was made anew, or "
        "kept its records for too short a time; move the snapshot away to start from what is there"
    )


def wait_for_topics(kafka: str, topics: Collection[str], stop: Event) -> dict[str, int] | None:
    """The number of partitions of each topic, as soon as all are there; None when told to stop before.

    Says in a line what it waits for, once.
    """
    admin = AdminClient({"bootstrap.servers": kafka, "log_level": 0})
    said: tuple[str, object] | None = None
    while not stop.is_set():
        try:
            there = admin.list_topics(timeout=_ASK_SECONDS).topics
        except KafkaException as error:
            reason = "cannot reach Kafka, trying again; `onceflow up` starts one", {"error": error.args[0].str()}
        else:
            ready = {name: len(topic.partitions) for name, topic in there.items() if _is_led(topic.partitions.values())}
            missing = sorted(set(topics) - set(ready))
            if not missing:
                return {name: ready[name] for name in topics}
            reason = "waiting for topics, which a worker or a producer makes", {"topics": missing}
        if reason != said:
            _log.warning(reason[0], extra={"kafka": kafka, **reason[1]})
            said = reason
        stop.wait(_PAUSE_SECONDS)
    return None


def _append(records: Records, message: Message) -> None:
    records.ended = False
    records.offsets.append(message.offset())
    records.timestamps.append(message.timestamp()[1])
    records.values.append(message.value())


def _is_led(partitions: Iterable[object]) -> bool:
    leaders = [partition.leader for partition in partitions]  # type: ignore[attr-defined]
    return bool(leaders) and min(leaders) >= 0
