"""An Apache Kafka that can be killed, and started again with what it has kept."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack

from benchmarks.kafka_server import apache_kafka


class Broker:
    """One broker and its folder; its address stays the same."""

    def __init__(self, folder):
        self._folder, self._running = folder, ExitStack()
        self._server = self._running.enter_context(apache_kafka(directory=folder))
        self.address = self._server.address

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._running.close()

    def kill(self):
        os.kill(self._server.pid, signal.SIGKILL)
        self._running.close()

    def start(self):
        """Start it again; returns when it answers."""
        port = self._server.port
        self._server = self._running.enter_context(apache_kafka(port, self._folder, again=True))
