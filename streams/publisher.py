"""Producing to Kafka: many messages at once, known to have arrived before anything depends on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as Delivered

from featurestore.errors import UnavailableError
from streams.messages import Message


class Publisher:
    """A producer whose `flush` returns when everything sent before has been acknowledged, in order."""

    def __init__(self, kafka: str) -> None:
        self._kafka = kafka
        self._failure: KafkaError | None = None
        self.ends: dict[tuple[str, int], int] = {}  # by topic and partition: the offset after the last one delivered
        self._producer = Producer(
            {
                "bootstrap.servers": kafka,
                "enable.idempotence": True,  # a retry must not reorder: readers tell gaps by the order
                "linger.ms": 5,
                "batch.size": 1 << 20,
                "queue.buffering.max.messages": 1_000_000,
                "queue.buffering.max.kbytes": 1 << 20,
                "message.max.bytes": 1_000_000,
                "log_level": 0,
            }
        )

    def send(self, messages: Iterable[Message]) -> int:
        """Queue messages; returns how many. Waits where the queue is full."""
        count = 0
        for message in messages:
            self._send(message)
            count += 1
        self._producer.poll(0)
        return count

    async def flush(self) -> None:
        """Wait until all is acknowledged; UnavailableError when something could not be delivered."""
        if len(self._producer):
            await asyncio.to_thread(self._producer.flush)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise UnavailableError(f"Kafka at {self._kafka} did not take what was sent: {failure.str()}")

    def _send(self, message: Message) -> None:
        while True:
            try:
                self._producer.produce(
                    message.topic,
                    value=message.value,
                    key=message.key,
                    partition=message.partition,
                    headers=None if message.headers is None else dict(message.headers),
                    on_delivery=self._delivered,
                )
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                raise UnavailableError(f"{message.topic}: {error.args[0].str()}") from error
            else:
                return

    def _delivered(self, error: KafkaError | None, message: Delivered) -> None:
        if error is not None:
            self._failure = error
            return
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if topic is not None and partition is not None and offset is not None:
            self.ends[topic, partition] = offset + 1
