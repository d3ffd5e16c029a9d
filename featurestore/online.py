"""The online store in Redis: one script call stores the states of a batch and the offset they stand at.

A script call touches one view on one partition. All its keys share the hash tag `{topic:partition}`, so that one slot,
and one entry of Redis' log, holds them: states and offset are stored together, and are lost together. Needs Redis 6.2.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from typing import TYPE_CHECKING, Any, TypeVar

from redis import exceptions as errors

from featurestore import resp
from featurestore.errors import ConfigError, OnceflowError, StateError, UnavailableError
from featurestore.keys import key_prefix, position_key
from featurestore.redis_nodes import Node, Routed, nodes_of
from featurestore.stores import (
    DROPPING,
    FORMAT,
    Commit,
    OnlineStore,
    Position,
    Request,
    check_commits,
    refusal,
    wrong_format,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

__all__ = ["FORMAT", "Commit", "OnlineStore", "Position", "RedisStore", "Request", "connect"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

_MOVES = 3  # slots may move again while they are looked for
_FIRST_WAIT, _LONGEST_WAIT = 0.02, 1.0
_PAGE = 1000

# Inside a script Redis 6.2 wraps the code ("... user_script:1: -OOM command not allowed"), Redis 7 puts it first.
_PASSING = re.compile(r"(?:^|[ -])(?:LOADING|READONLY|BUSY|OOM|MISCONF|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS) ")
_PASSING_TYPES = (errors.ReadOnlyError, errors.OutOfMemoryError, errors.ClusterDownError, errors.TryAgainError)
_FORBIDDEN_TYPES = (errors.AuthenticationError, errors.AuthorizationError, errors.NoPermissionError)
# A script that may be called may hold a command or a key that may not be; Redis 6.2 and 7 say it in words of their own.
# What sentinels say comes within the error that none of them names a master.
_FORBIDDEN = re.compile(r"NOPERM|AuthenticationError|ACL failure in script|user executing the script can't")


class _Script:
    """A Lua script, called by its hash so that its text is sent once."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def call(self, keys: Sequence[bytes], *args: str | bytes | int) -> bytes:
        return resp.command("EVALSHA", self._sha, len(keys), *keys, *args)

    def call_of(self, keys: Sequence[resp.Group], *args: resp.Group) -> bytes:
        """A call of groups of keys and arguments."""
        head = resp.loose("EVALSHA", self._sha, sum(count for count, _ in keys))
        return resp.command_of(head, *keys, *args)


# KEYS: position. ARGV: owner, format.
_CLAIM = _Script("""
local stored = redis.call('HMGET', KEYS[1], 'format', 'next', 'clock')
if stored[1] ~= ARGV[2] and redis.call('EXISTS', KEYS[1]) == 1 then return {'FORMAT', stored[1] or ''} end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'format', ARGV[2])
return {'OK', stored[2], stored[3]}
""")

# KEYS: position, states, what is erased. ARGV: owner, start or '' for a first one, next, clock, format, ttl or '', and
# a blob for each state.
# Offsets are compared as text: Lua's numbers are doubles. Redis does not undo a script that fails half-way, so all
# checks come before the first write, and no write can fail once the first has passed.
_COMMIT = _Script("""
local call, keys, argv, ttl, last = redis.call, KEYS, ARGV, ARGV[6], #ARGV - 5
local stored = call('HMGET', keys[1], 'format', 'owner', 'next')
if stored[1] and stored[1] ~= argv[5] then return {'FORMAT', stored[1]} end
if stored[2] ~= argv[1] then return {'FENCED', stored[2] or ''} end
local from = stored[3] or ''
if from ~= argv[2] then
  if from == argv[3] then return {'OK', ''} end
  return {'GAP', from}
end
if ttl == '' then
  for i = 2, last do call('SET', keys[i], argv[i + 5]) end
else
  for i = 2, last do call('SET', keys[i], argv[i + 5], 'PX', ttl) end
end
for i = last + 1, #keys do call('UNLINK', keys[i]) end
call('HSET', keys[1], 'next', argv[3], 'clock', argv[4], 'format', argv[5])
return {'OK', ''}
""")

# KEYS: states. MGET would answer nil, "no such entity", for a key of another type; GET refuses it.
_READ = _Script("""
local call, keys, blobs = redis.call, KEYS, {}
for i = 1, #keys do blobs[i] = call('GET', keys[i]) end
return blobs
""")


def connect(url: str, patience: float | None = 5.0) -> RedisStore:
    """Return a store at an address; it connects when first used.

    `redis://USER:PASSWORD@HOST:PORT/DB`, `rediss://...` (TLS), `unix://PATH`; `redis+cluster://HOST:PORT,HOST:PORT`
    names nodes of a cluster, `redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DB` sentinels and the master that they watch.
    Options of TLS go behind it, as redis-py has them: `?ssl_ca_certs=PATH`.
    """
    return RedisStore(url, patience)


class RedisStore:
    """`OnlineStore` in Redis. It belongs to the event loop that first uses it.

    `patience`: for how many seconds a call goes on trying while Redis cannot be reached or cannot serve (loading, out
    of memory, a replica, busy) before it raises `UnavailableError`; 0 never waits, None waits for ever. Raises
    `ConfigError` for an address or credentials that cannot work.
    """

    def __init__(self, url: str, patience: float | None = 5.0) -> None:
        self._nodes = nodes_of(url)
        self.address = self._nodes.address
        self._patience = patience
        self._waiting = False

    async def claim(self, view_key: str, topic: str, partition: int, owner: str) -> Position | None:
        """Make `owner` the only one that may commit and return the stored position (see `OnlineStore`)."""
        key = position_key(topic, partition, view_key)
        [reply] = await self._run([Routed(key, _CLAIM.call([key], owner, FORMAT))])
        if reply[0] != b"OK":
            raise wrong_format(view_key, topic, partition, reply[1].decode())
        return _position(*reply[1:])

    async def commit(self, commits: Sequence[Commit]) -> None:
        """Store every commit, each by one script, in one round trip a node (see `OnlineStore`)."""
        check_commits(commits)
        replies = await self._run([_commit_command(commit) for commit in commits])
        refused = [
            refusal(commit, code.decode(), stored.decode())
            for commit, (code, stored) in zip(commits, replies, strict=True)
            if code != b"OK"
        ]
        if refused:
            raise refused[0]

    async def read(
        self, view_key: str, topic: str, partitions: int, entities: Sequence[bytes]
    ) -> list[list[bytes | None]]:
        """Read states: `[entity][partition]` (see `OnlineStore`)."""
        [answer] = await self.read_many([Request(view_key, topic, range(partitions), entities)])
        return answer

    async def read_many(self, requests: Sequence[Request]) -> list[list[list[bytes | None]]]:
        """Read many views, one script a slot, in one round trip a node: `[request][entity][partition]`."""
        slots: dict[tuple[str, int], list[resp.Group]] = {}
        begins: list[list[int]] = []
        for request in requests:
            begins.append([])
            for partition in request.partitions:
                prefix = key_prefix(request.topic, partition, request.view_key)
                keys = slots.setdefault((request.topic, partition), [])
                begins[-1].append(sum(count for count, _ in keys))
                keys.append(resp.strings(request.entities, prefix))
        places = [position_key(*slot, requests[0].view_key) for slot in slots]
        commands = [Routed(key, _READ.call_of(keys)) for key, keys in zip(places, slots.values(), strict=True)]
        replies = await self._run(commands) if slots else []
        blobs = dict(zip(slots, replies, strict=True))
        return [_rows(request, begin, blobs) for request, begin in zip(requests, begins, strict=True)]

    async def scan(self, view_key: str, topic: str, partition: int) -> AsyncIterator[tuple[bytes, bytes]]:
        """Yield every encoded entity once, with its state; walks the whole database (see `OnlineStore`)."""
        prefix = key_prefix(topic, partition, view_key)
        async for keys in self._state_keys(view_key, topic, partition):
            [blobs] = await self._run([Routed(prefix, _READ.call(keys))])
            for key, blob in zip(keys, blobs, strict=True):
                if blob is not None:
                    yield key[len(prefix) :], blob

    async def positions(self, view_key: str, topic: str, partitions: int) -> list[Position | None]:
        """Read the position on every partition, in one round trip (see `OnlineStore`)."""
        keys = [position_key(topic, partition, view_key) for partition in range(partitions)]
        commands = [Routed(key, resp.command("HMGET", key, "format", "next", "clock")) for key in keys]
        replies = await self._run(commands) if keys else []
        for partition, (written, upto, _) in enumerate(replies):
            if written != b"%d" % FORMAT and (written is not None or upto is not None):
                raise wrong_format(view_key, topic, partition, (written or b"").decode())
        return [_position(upto, clock) for _, upto, clock in replies]

    async def erase(self, view_key: str, topic: str, partition: int, entities: Sequence[bytes]) -> int:
        """Delete states, whoever owns them (see `OnlineStore`)."""
        keys = [key_prefix(topic, partition, view_key) + entity for entity in entities]
        replies = await self._run([Routed(key, resp.command("UNLINK", key)) for key in keys])
        return sum(map(int, replies))

    async def drop(self, view_key: str, topic: str, partition: int) -> None:
        """Delete every state and the position (see `OnlineStore`)."""
        position = position_key(topic, partition, view_key)
        await self._run([Routed(position, resp.command("HSET", position, "format", DROPPING, "owner", ""))])
        async for keys in self._state_keys(view_key, topic, partition):
            await self._run([Routed(position, resp.command("UNLINK", *keys))])
        await self._run([Routed(position, resp.command("UNLINK", position))])

    async def ping(self) -> None:
        """Return when Redis answers."""
        await self._run([Routed(b"", resp.command("PING"))])

    async def close(self) -> None:
        """Close every connection."""
        await self._nodes.close()

    async def _state_keys(self, view_key: str, topic: str, partition: int) -> AsyncIterator[list[bytes]]:
        prefix, position = key_prefix(topic, partition, view_key), position_key(topic, partition, view_key)
        # SCAN may name a key twice, when Redis resizes its table in between or the key moves to another node.
        seen = {position}
        for node in await self._patiently(lambda: self._nodes.holders(position)):
            cursor = b"0"
            while True:
                scan = resp.command("SCAN", cursor, "MATCH", prefix + b"*", "COUNT", _PAGE)
                [(cursor, keys)] = await self._run([Routed(position, scan)], node)
                fresh = list(dict.fromkeys(key for key in keys if key not in seen))
                seen.update(fresh)
                if fresh:
                    yield fresh
                if cursor == b"0":
                    break

    async def _run(self, commands: Sequence[Routed], node: Node | None = None) -> list[Any]:
        """Send commands in one round trip a node, or to this one; their replies. Each must be safe to repeat."""
        return await self._patiently(lambda: self._attempt(commands, node))

    async def _patiently(self, attempt: Callable[[], Awaitable[list[_T]]]) -> list[_T]:
        clock = asyncio.get_running_loop().time
        deadline = None if self._patience is None else clock() + self._patience
        wait = _FIRST_WAIT
        while True:
            try:
                done = await self._explained(attempt)
            except UnavailableError as error:
                if deadline is not None and clock() + wait > deadline:
                    raise
                self._say_once(error)
                await self._nodes.look_again()
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
            else:
                self._say_recovered()
                return done

    async def _explained(self, attempt: Callable[[], Awaitable[list[_T]]]) -> list[_T]:
        try:
            return await attempt()
        except (errors.RedisError, OSError) as error:
            raise _fault(error, self.address) from error

    async def _attempt(self, commands: Sequence[Routed], node: Node | None) -> list[Any]:
        """The replies of this node, or of those that have the keys; raises the first error among them."""
        if node is not None:
            replies = await self._exchange(node, [command.packed for command in commands])
        else:
            replies = await self._answers(commands)
            for _ in range(_MOVES):
                if not any(isinstance(reply, errors.MovedError) for reply in replies):
                    break
                await self._nodes.look_again()
                replies = await self._answers(commands)
        for reply in replies:
            if isinstance(reply, errors.RedisError):
                raise reply
        return replies

    async def _answers(self, commands: Sequence[Routed]) -> list[Any]:
        """The replies of all nodes, in the order of the commands."""
        places: dict[Node, list[int]] = {}
        for i, node in enumerate(await self._nodes.places([command.key for command in commands])):
            places.setdefault(node, []).append(i)
        shares = [self._exchange(node, [commands[i].packed for i in rows]) for node, rows in places.items()]
        replies: list[Any] = [None] * len(commands)
        # All end before one is raised, or a repetition could meet what is still on its way.
        done = await asyncio.gather(*shares, return_exceptions=True)
        for rows, found in zip(places.values(), done, strict=True):
            if isinstance(found, BaseException):
                raise found
            for i, reply in zip(rows, found, strict=True):
                moving = isinstance(reply, errors.AskError)
                replies[i] = await self._nodes.asked(reply, commands[i].packed) if moving else reply
        return replies

    @staticmethod
    async def _exchange(node: Node, packed: Sequence[bytes]) -> list[Any]:
        """A node's replies; it is told the scripts where it does not know them."""
        payload = b"".join(packed)
        replies = await node.exchange(payload, len(packed))
        if any(isinstance(reply, errors.NoScriptError) for reply in replies):
            await node.exchange(_LOAD_SCRIPTS, len(_SCRIPTS))
            replies = await node.exchange(payload, len(packed))
        return replies

    def _say_once(self, error: UnavailableError) -> None:
        if not self._waiting:
            self._waiting = True
            _log.warning("Redis does not serve, trying again", extra={"redis": self.address, "error": error})

    def _say_recovered(self) -> None:
        if self._waiting:
            self._waiting = False
            _log.warning("Redis serves again", extra={"redis": self.address})


_SCRIPTS = (_CLAIM, _COMMIT, _READ)
_LOAD_SCRIPTS = b"".join(resp.command("SCRIPT", "LOAD", script.source) for script in _SCRIPTS)


def _lost(error: Exception, address: str) -> OnceflowError:
    reason = str(error).rstrip(".") or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return ConfigError(
            f"the certificate of Redis at {address} is not to be trusted: {reason}. Check the host's name in it, and "
            "?ssl_ca_certs="
        )
    return UnavailableError(f"cannot reach Redis at {address}: {reason}")


def _fault(error: Exception, address: str) -> OnceflowError:
    if isinstance(error, _FORBIDDEN_TYPES) or _FORBIDDEN.search(str(error)):
        return ConfigError(f"Redis at {address} refuses these credentials: {error}. Check user, password and ACL")
    if isinstance(error, errors.InvalidResponse):
        return ConfigError(f"what answers at {address} is not Redis: check the address")
    if isinstance(error, (errors.ConnectionError, errors.TimeoutError, OSError)):
        return _lost(error, address)
    if isinstance(error, _PASSING_TYPES) or _PASSING.search(str(error)):
        return UnavailableError(f"Redis at {address} cannot serve: {error}")
    if "WRONGTYPE" in str(error):
        return StateError(
            f"Redis at {address} holds a value of another type under a key of this store: delete that key"
        )
    return StateError(f"Redis at {address} refuses a command: {error}")


def _position(upto: bytes | None, clock: bytes | None) -> Position | None:
    return None if upto is None else Position(int(upto), int(clock or 0))


def _commit_command(commit: Commit) -> Routed:
    prefix = key_prefix(commit.topic, commit.partition, commit.view_key)
    start = "" if commit.first else commit.start
    ttl = "" if commit.ttl is None else commit.ttl
    call = _COMMIT.call_of(
        [resp.loose(prefix + b"next"), resp.strings(commit.entities, prefix), resp.strings(commit.erased, prefix)],
        resp.loose(commit.owner, start, commit.next, commit.clock, FORMAT, ttl),
        resp.strings(commit.blobs),
    )
    return Routed(prefix, call)


def _rows(
    request: Request, begins: Sequence[int], blobs: dict[tuple[str, int], list[bytes | None]]
) -> list[list[bytes | None]]:
    """Turn one request's share of the replies, partition by partition, into rows of one entity."""
    size = len(request.entities)
    columns = [
        blobs[request.topic, partition][begin : begin + size]
        for partition, begin in zip(request.partitions, begins, strict=True)
    ]
    return [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in range(size)]
