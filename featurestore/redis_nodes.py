"""Connections to Redis: to one server, to whichever of several is the master, or to the nodes of a cluster.

`Nodes` says which node a command goes to, by the key that it touches. Connections are redis-py's, which knows how to
authenticate and encrypt; what goes over them is packed by `resp`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit, urlunsplit

from redis import exceptions as errors
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import ConnectionPool, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.crc import key_slot

from featurestore import resp
from featurestore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CONNECTIONS = 64
_TIMEOUT = 10.0
# Retries are made by the store, which knows that every command may safely be repeated.
_OPTIONS: Mapping[str, Any] = {
    "socket_timeout": _TIMEOUT,
    "socket_connect_timeout": _TIMEOUT,
    "protocol": 2,
    "retry": Retry(NoBackoff(), 0),
}
_SLOTS = resp.command("CLUSTER", "SLOTS")
_ASKING = resp.command("ASKING")
_FORMS = (
    "write redis://HOST:PORT/DB, rediss://... or unix://PATH; redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DB; or "
    "redis+cluster://HOST:PORT,HOST:PORT (with TLS: rediss+...)"
)


class Routed(NamedTuple):
    """A packed command, and the key that says which node has what it touches."""

    key: bytes
    packed: bytes


class Node:
    """One server. Errors that it answers with are values among the replies."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool

    async def exchange(self, payload: bytes, count: int) -> list[Any]:
        """Send what is packed and return as many replies."""
        connection = await self.pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command([payload])
            return [await _reply(connection) for _ in range(count)]
        finally:
            await self.pool.release(connection)


async def _reply(connection: Any) -> Any:  # noqa: ANN401 - a reply of Redis; an error is a value, as others follow it
    try:
        return await connection.read_response(disable_decoding=True)
    except errors.ResponseError as error:
        return error


class Nodes(Protocol):
    """Where commands go."""

    address: str

    async def places(self, keys: Sequence[bytes]) -> list[Node]:
        """The node of each key."""

    async def holders(self, key: bytes) -> list[Node]:
        """All nodes that may hold keys of this one's slot: its owner, then those that they may have moved to."""

    async def asked(self, error: errors.AskError, packed: bytes) -> Any:  # noqa: ANN401
        """The reply of the node that a key is being moved to."""

    async def look_again(self) -> None:
        """After a failure: another server may be the right one now."""

    async def close(self) -> None:
        """Close every connection."""


class OneNode:
    """A server, or the master among several that sentinels watch."""

    def __init__(self, pool: ConnectionPool, address: str) -> None:
        self._node, self.address = Node(pool), address

    async def places(self, keys: Sequence[bytes]) -> list[Node]:
        """The same for all keys."""
        return [self._node] * len(keys)

    async def holders(self, key: bytes) -> list[Node]:  # noqa: ARG002
        """This one."""
        return [self._node]

    async def asked(self, error: errors.AskError, packed: bytes) -> Any:  # noqa: ANN401, ARG002
        """A cluster's node answers as such to who takes it for a single server."""
        raise ConfigError(f"{self.address} belongs to a cluster: write redis+cluster://{self.address}") from error

    async def look_again(self) -> None:
        """Connect anew: the address may lead elsewhere after a failover, and sentinels be asked."""
        await self._node.pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        """Close every connection."""
        await self._node.pool.disconnect()


class _WatchedPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the master that sentinels name; who finds all of them in use waits for one."""


class WatchedNode(OneNode):
    """The master that sentinels name; a server that they name still, but that is a replica now, is not used."""

    def __init__(self, pool: ConnectionPool, address: str, sentinel: Sentinel) -> None:
        super().__init__(pool, address)
        self._sentinel = sentinel

    async def close(self) -> None:
        """Close every connection, also those to the sentinels."""
        await super().close()
        await asyncio.gather(*(each.aclose() for each in self._sentinel.sentinels))


async def _greet_master(connection: Any) -> None:  # noqa: ANN401 - a connection of redis-py
    """Begin a connection; ConnectionError from a replica, which would serve old states."""
    await connection.on_connect()
    await connection.send_command("ROLE", check_health=False)
    if (await connection.read_response(disable_decoding=True))[0] != b"master":
        raise errors.ConnectionError(f"{connection.host}:{connection.port}, which sentinels name, is a replica")


class ClusterNodes:
    """A cluster, known from any of its nodes."""

    def __init__(self, hosts: Sequence[tuple[str, int]], options: Mapping[str, Any]) -> None:
        self.address = ",".join(f"{host}:{port}" for host, port in hosts)
        self._hosts, self._options = hosts, options
        self._nodes: dict[tuple[str, int], Node] = {}
        self._slots: list[tuple[int, int, tuple[str, int]]] = []

    async def places(self, keys: Sequence[bytes]) -> list[Node]:
        """The masters of the keys' slots."""
        if not self._slots:
            self._slots = await self._known_slots()
        found = []
        for slot in map(key_slot, keys):
            place = next((place for first, last, place in self._slots if first <= slot <= last), None)
            if place is None:
                raise errors.ClusterDownError(f"CLUSTERDOWN no node of {self.address} serves slot {slot}")
            found.append(self._node(place))
        return found

    async def holders(self, key: bytes) -> list[Node]:
        """All masters, as they are now."""
        self._slots = await self._known_slots()
        [owner] = await self.places([key])
        return list(dict.fromkeys([owner, *(self._node(place) for _, _, place in self._slots)]))

    async def asked(self, error: errors.AskError, packed: bytes) -> Any:  # noqa: ANN401
        """Ask where the key is going."""
        return (await self._node((error.host, error.port)).exchange(_ASKING + packed, 2))[1]

    async def look_again(self) -> None:
        """Ask for the slots again, and connect anew."""
        self._slots = []
        await asyncio.gather(*(node.pool.disconnect(inuse_connections=False) for node in self._nodes.values()))

    async def close(self) -> None:
        """Close every connection."""
        await asyncio.gather(*(node.pool.disconnect() for node in self._nodes.values()))

    def _node(self, place: tuple[str, int]) -> Node:
        if place not in self._nodes:
            host, port = place
            options = {**_OPTIONS, **self._options, "host": host, "port": port}
            self._nodes[place] = Node(BlockingConnectionPool(max_connections=_CONNECTIONS, **options))
        return self._nodes[place]

    async def _known_slots(self) -> list[tuple[int, int, tuple[str, int]]]:
        """The slots as the first node that answers knows them: first, last, and where their master is."""
        failure: Exception = errors.ConnectionError("no node answers")
        for place in dict.fromkeys([*self._nodes, *self._hosts]):
            try:
                [reply] = await self._node(place).exchange(_SLOTS, 1)
            except (errors.ConnectionError, errors.TimeoutError, OSError) as error:
                failure = error
                continue
            if isinstance(reply, errors.ResponseError):
                if "cluster support disabled" in str(reply):
                    raise ConfigError(f"{self.address} is no cluster: write redis://{self.address}/0")
                failure = reply
                continue
            return [(first, last, (at[0].decode() or place[0], at[1])) for first, last, at, *_ in reply]
        raise failure


def nodes_of(url: str) -> Nodes:
    """The nodes of an address; ConfigError for one that cannot be."""
    try:
        scheme, _, kind = urlsplit(url).scheme.partition("+")
        if kind == "":
            pool = BlockingConnectionPool.from_url(url, max_connections=_CONNECTIONS, **_OPTIONS)
            where = pool.connection_kwargs
            return OneNode(pool, where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}")
        hosts, path, options = _parts(url, scheme)
        if kind == "cluster" and path in ([], ["0"]):
            return ClusterNodes(hosts, options)
        if kind == "sentinel" and 1 <= len(path) <= 2:
            return _watched(hosts, path[0], {**options, "db": int(path[1]) if len(path) > 1 else 0})
    except ValueError:
        pass  # the reason would quote the address, which may hold a password
    raise ConfigError(f"not a Redis address: {_FORMS}") from None


def _parts(url: str, scheme: str) -> tuple[list[tuple[str, int]], list[str], dict[str, Any]]:
    """Hosts, path and connection options of an address of several servers."""
    parts = urlsplit(url)
    user, at, places = parts.netloc.rpartition("@")
    hosts = []
    for place in places.split(","):
        host, colon, port = place.rpartition(":")
        if not host or not colon:
            raise ValueError(place)
        hosts.append((host.strip("[]"), int(port)))
    options = dict(parse_url(urlunsplit((scheme, user + at + "server:1", "", parts.query, ""))))
    for name in ("host", "port"):
        options.pop(name)
    return hosts, [step for step in parts.path.split("/") if step], options


def _watched(hosts: Sequence[tuple[str, int]], master: str, options: dict[str, Any]) -> WatchedNode:
    """The master that sentinels name; TLS is of both, user and password are each their own."""
    secure = {"ssl": True} if options.pop("connection_class", None) is SSLConnection else {}
    encrypted = {name: value for name, value in options.items() if name.startswith("ssl_")} | secure
    user = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    sentinel = Sentinel(hosts, sentinel_kwargs={**_OPTIONS, **encrypted, **user})  # type: ignore[no-untyped-call]
    ours = {**_OPTIONS, **options, **secure, "redis_connect_func": _greet_master, "max_connections": _CONNECTIONS}
    pool = _WatchedPool(master, sentinel, **ours)  # type: ignore[no-untyped-call]
    return WatchedNode(pool, f"{master} of {','.join(f'{host}:{port}' for host, port in hosts)}", sentinel)
