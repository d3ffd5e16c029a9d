"""A Redis Cluster of three masters on loopback, whose slots a test may move."""

from __future__ import annotations

import contextlib
import time

import redis

from tests.featurestore.redis_server import RedisServer

SLOTS = 16_384


class RedisCluster:
    """Three masters with a third of the slots each."""

    def __init__(self, which, directory):
        self.servers = []
        for number in range(3):
            folder = directory / f"node{number}"
            folder.mkdir(parents=True)
            # Nodes talk to each other at their port and 10,000.
            options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--appendonly", "no")
            self.servers.append(RedisServer(which, folder, *options, highest=55_535))
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def __enter__(self):
        for server in self.servers:
            server.start()
        bounds = [SLOTS * number // 3 for number in range(4)]
        for number, (server, first, end) in enumerate(zip(self.servers, bounds, bounds[1:], strict=False)):
            with server.admin() as admin:
                admin.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                admin.execute_command("CLUSTER", "ADDSLOTS", *range(first, end))
        with self.servers[0].admin() as admin:
            for server in self.servers[1:]:
                admin.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)
        self.until_it_serves()
        return self

    def __exit__(self, *_):
        for server in self.servers:
            with contextlib.suppress(Exception):
                server.kill()

    def until_it_serves(self):
        deadline = time.monotonic() + 30
        while not all(self._is_whole(server) for server in self.servers):
            assert time.monotonic() < deadline, "the cluster does not come together"
            time.sleep(0.05)

    @staticmethod
    def _is_whole(server):
        with server.admin() as admin:
            try:
                info = admin.execute_command("CLUSTER INFO")
            except redis.ConnectionError:
                return False
            return info["cluster_state"] == "ok" and info["cluster_known_nodes"] == "3"

    def owner(self, key):
        """The number of the node that has the key's slot."""
        with self.servers[0].admin() as admin:
            slot = admin.execute_command("CLUSTER", "KEYSLOT", key)
        for number, server in enumerate(self.servers):
            with server.admin() as admin:
                if any(first <= slot <= last for first, last in self._own_slots(admin, server)):
                    return number
        raise AssertionError(key)

    @staticmethod
    def _own_slots(admin, server):
        for first, last, (_, port, *_), *_ in admin.execute_command("CLUSTER", "SLOTS"):
            if port == server.port:
                yield first, last

    @contextlib.contextmanager
    def moving(self, key, target):
        """Within the block the key's slot is on its way to another node; after it, it is there."""
        source = self.servers[self.owner(key)]
        goal = self.servers[target]
        with source.admin() as one, goal.admin() as other:
            slot = one.execute_command("CLUSTER", "KEYSLOT", key)
            ids = [each.execute_command("CLUSTER", "MYID") for each in (one, other)]
            other.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            one.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            yield slot
            while keys := one.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1_000):
                one.execute_command("MIGRATE", "127.0.0.1", goal.port, "", 0, 5_000, "KEYS", *keys)
            for each in (other, one):
                each.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])

    @contextlib.contextmanager
    def admin(self):
        client = redis.RedisCluster(port=self.servers[0].port, host="127.0.0.1")
        try:
            yield client
        finally:
            client.close()
