"""A sentinel on loopback, and what it watches."""

from __future__ import annotations

import time

import redis

from tests.featurestore.redis_server import RedisServer


class Sentinel(RedisServer):
    """A sentinel that watches the master at a port under the name `shop`; `lines` go into its configuration."""

    def __init__(self, which, directory, master, *lines):
        super().__init__(which, directory)
        watched = (
            f"monitor shop 127.0.0.1 {master} 1",
            "down-after-milliseconds shop 300",
            "failover-timeout shop 2000",
        )
        config = directory / "sentinel.conf"
        config.write_text("\n".join([*(f"sentinel {line}" for line in watched), *lines]))
        path, *options = self._command
        self._command = [path, str(config), "--sentinel", *options[:4]]
        self.url = f"redis+sentinel://127.0.0.1:{self.port}/shop/0"


class Watched:
    """A master and a replica, and a sentinel that watches them."""

    def __init__(self, directory):
        folders = [directory / name for name in ("one", "two", "sentinel")]
        for folder in folders:
            folder.mkdir()
        self.master = RedisServer("bundled", folders[0])
        self.replica = RedisServer("bundled", folders[1], "--replicaof", "127.0.0.1", str(self.master.port))
        self.sentinel = Sentinel("bundled", folders[2], self.master.port)
        self.url = self.sentinel.url

    def __enter__(self):
        self.master.start()
        self.replica.start()
        self.sentinel.start()
        self.until(lambda: self.asked()["num-slaves"] == 1)
        return self

    def __exit__(self, *_):
        for server in (self.sentinel, self.replica, self.master):
            server.kill()

    def asked(self):
        with redis.Redis(port=self.sentinel.port) as client:
            return client.sentinel_master("shop")

    @staticmethod
    def until(condition):
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)
