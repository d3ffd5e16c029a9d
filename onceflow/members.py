"""Who is in the consumer group of a project's workers, as Kafka tells it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from featurestore import UnavailableError
from onceflow.reading import admin_client

TIMEOUT_SECONDS = 10.0
#: What brokers answer of a group that nobody has ever joined.
_NO_GROUP = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.GROUP_ID_NOT_FOUND,
}


@dataclass(frozen=True, slots=True)
class Member:
    """A worker as its log names it, the host that it connects from, and the partitions that it owns, by topic."""

    worker: str
    host: str
    partitions: dict[str, list[int]]


def members(kafka: str, group: str) -> list[Member]:
    """The workers of a group, by name; UnavailableError when Kafka does not tell."""
    admin = admin_client(kafka)  # which the answer needs, as long as it is awaited
    try:
        described = admin.describe_consumer_groups([group], request_timeout=TIMEOUT_SECONDS)[group].result()
    except KafkaException as error:
        if error.args[0].code() in _NO_GROUP:
            return []
        raise UnavailableError(
            f"Kafka at {kafka} does not say who is in group {group}: {error.args[0].str()}"
        ) from error
    found = [
        Member(
            each.client_id,
            each.host.lstrip("/"),
            _by_topic(each.assignment.topic_partitions if each.assignment else []),
        )
        for each in described.members
    ]
    return sorted(found, key=lambda member: member.worker)


def _by_topic(places: Iterable[TopicPartition]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for topic, partition in sorted((place.topic, place.partition) for place in places):
        found.setdefault(topic, []).append(partition)
    return found
