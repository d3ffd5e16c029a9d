"""Refused records back to the topics that they came from, once what was wrong has been mended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from featurestore import UnavailableError
from onceflow.ends import TIMEOUT_SECONDS
from onceflow.quarantine import Refused, refused_records

HEADER = "replayed_from"
"""Names the dead letter that a record was sent back from: `<topic>.dlq:<partition>:<offset>`."""


def send_back(kafka: str, topic: str, errors: Sequence[str], *, again: bool) -> tuple[int, int]:
    """Send records that were refused for these reasons back to the partitions that they came from, with their keys.

    Those that an earlier call has sent are left out, unless `again`: the group `onceflow-dlq-<topic>-<error>` marks in
    Kafka how far it came, after all has arrived; who dies before that sends some twice. Returns how many were sent,
    and how many could not be, since not all of their bytes were kept or their partition is unknown.
    """
    sent = cut = 0
    for error in errors:
        group = {"group.id": f"onceflow-dlq-{topic}-{error}", "enable.auto.commit": False, "log_level": 0}
        with closing(Consumer({"bootstrap.servers": kafka, **group})) as marks:
            try:
                starts = {} if again else _marked(marks, topic)
                letters = list(refused_records(kafka, topic, starts))
                chosen = [letter for letter in letters if letter.error == error]
                good = [letter for letter in chosen if letter.whole and letter.partition.isdecimal()]
                _produce(kafka, topic, good)
                _mark(marks, topic, starts, letters)
            except KafkaException as fault:
                raise UnavailableError(f"Kafka at {kafka} did not do it: {fault.args[0].str()}") from fault
        sent, cut = sent + len(good), cut + len(chosen) - len(good)
    return sent, cut


def _produce(kafka: str, topic: str, letters: Sequence[Refused]) -> None:
    producer = Producer({"bootstrap.servers": kafka, "enable.idempotence": True, "log_level": 0})
    for letter in letters:
        place = f"{topic}.dlq:{letter.letter[0]}:{letter.letter[1]}".encode()
        headers = {**letter.headers, HEADER: place}
        producer.produce(topic, letter.value, letter.key, int(letter.partition), headers=headers)
        producer.poll(0)
    if producer.flush(TIMEOUT_SECONDS):
        raise UnavailableError(f"Kafka at {kafka} did not take all that was sent back: a new call sends it again")


def _marked(marks: Consumer, topic: str) -> dict[int, int]:
    """Up to where an earlier call came."""
    name = f"{topic}.dlq"
    partitions = marks.list_topics(name, timeout=TIMEOUT_SECONDS).topics[name].partitions
    found = marks.committed([TopicPartition(name, at) for at in partitions], timeout=TIMEOUT_SECONDS)
    return {place.partition: max(place.offset, 0) for place in found}


def _mark(marks: Consumer, topic: str, starts: Mapping[int, int], letters: Sequence[Refused]) -> None:
    ends = dict(starts) | {letter.letter[0]: letter.letter[1] + 1 for letter in letters}
    if letters:
        places = [TopicPartition(f"{topic}.dlq", partition, end) for partition, end in ends.items()]
        marks.commit(offsets=places, asynchronous=False)
