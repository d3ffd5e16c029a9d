"""`onceflow up`: embedded servers until interrupted."""

from __future__ import annotations

import json as codec
import os
import sys
import time

import typer

from featurestore.errors import UnavailableError
from onceflow import embedded

_POLL_SECONDS = 0.5


def run(*, kafka_port: int, redis_port: int, json: bool) -> None:
    """Start both servers, print where they are, and wait for SIGINT or SIGTERM. UnavailableError: one has died."""
    with embedded.kafka(kafka_port) as broker, embedded.redis(redis_port) as store:
        url = f"redis://{store.address}/0"
        if json:
            typer.echo(codec.dumps({"kafka": broker.address, "redis": url}))
        else:
            typer.echo(f"export ONCEFLOW_KAFKA={broker.address}\nexport ONCEFLOW_REDIS={url}")
            typer.echo("Kafka and Redis are running, in memory. Ctrl-C stops them.", err=True)
        sys.stdout.flush()
        while True:
            time.sleep(_POLL_SECONDS)
            for server in (broker, store):
                _check(server)


def _check(server: embedded.Server) -> None:
    try:
        os.kill(server.pid, 0)
    except ProcessLookupError:
        raise UnavailableError(f"the embedded {server.name} has died: start again, and give it less to hold") from None
