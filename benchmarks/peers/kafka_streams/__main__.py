"""Kafka Streams: hopping windows in memory, without changelog topics, which favours it; needs Java 17 and Maven."""

from __future__ import annotations

from benchmarks.peers.jvm import main

if __name__ == "__main__":
    main("kafka_streams", "org.apache.kafka:kafka-streams:4.1.0", lambda _, folder: str(folder))
