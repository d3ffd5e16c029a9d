"""What the processes of a project are called."""

from __future__ import annotations

import os
import socket


def worker_name() -> str:
    """This process as a worker: what the lines of its log say, and what Kafka shows as its client."""
    return f"onceflow-{socket.gethostname()}-{os.getpid()}"
