"""Putting a reader of online features together from settings and definitions."""

from __future__ import annotations

import time

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from featurestore import UnavailableError
from featurestore.stores import OnlineStore
from onceflow.modules import Definitions
from onceflow.settings import Settings
from serving.reader import FeatureReader

SLICE_SECONDS = 1.0
"""How long a client of Kafka is waited for at a time: signals are heard in between."""


def now_ms() -> int:
    """Wall-clock time, ms since the epoch."""
    return time.time_ns() // 1_000_000


def admin_client(kafka: str) -> AdminClient:
    """A client that connects to Kafka when it is asked something, and again soon when Kafka was away."""
    return AdminClient({"bootstrap.servers": kafka, "reconnect.backoff.max.ms": 500, "log_level": 0})


def topic_partitions(kafka: str, admin: AdminClient | None = None, seconds: float = 10.0) -> dict[str, int]:
    """The number of partitions of every topic there is; UnavailableError when Kafka does not answer in time."""
    admin, deadline = admin or admin_client(kafka), time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        try:
            topics = admin.list_topics(timeout=max(0.0, min(left, SLICE_SECONDS))).topics
        except KafkaException as error:
            if left <= SLICE_SECONDS:
                raise UnavailableError(f"cannot reach Kafka at {kafka}: {error.args[0].str()}") from error
        else:
            return {name: len(topic.partitions) for name, topic in topics.items()}


def build_reader(definitions: Definitions, settings: Settings, store: OnlineStore) -> FeatureReader:
    """A reader of every view. A topic that is not there yet is taken to get the partitions of the settings."""
    there = topic_partitions(settings.kafka)
    views = list(definitions.views.values())
    partitions = {view.source.name: there.get(view.source.name, settings.partitions) for view in views}
    return FeatureReader(views, store, partitions, now_ms, stream_time=settings.mode == "replay")
