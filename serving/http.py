"""The web's side of the server: requests to handlers, errors to status codes, limits, and the server itself."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from granian.constants import Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from featurestore.errors import ConfigError, DataError, StateError, UnavailableError
from serving.metrics import Metrics

#: Largest body of a request, in bytes.
MAX_BODY = 1_000_000
#: How long (seconds) a client may take to send its headers, and then its body.
PATIENCE = 10

_JSON = "application/json"
_log = logging.getLogger(__name__)
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler answers."""

    status: int
    body: bytes
    kind: str = _JSON


class Refusal(Exception):  # noqa: N818 - an answer, not a fault of ours
    """A request that is refused: the status, what is wrong and, in `hint`, what to do about it."""

    def __init__(self, status: int, error: str, hint: str = "") -> None:
        super().__init__(error)
        self.reply = reply({"error": error, "hint": hint} if hint else {"error": error}, status)


Handler = Callable[[str, bytes], Awaitable[Reply]]
"""Answers a request, given the last part of its path where the route leaves that open ("" elsewhere) and its body."""


def reply(value: object, status: int = 200) -> Reply:
    """A value as JSON; what is not a finite number becomes null."""
    return Reply(status, _encoder.encode(value))


class Application:
    """Handlers by route, such as "GET /healthz" or "POST /predict/{service}"."""

    def __init__(self, routes: Mapping[str, Handler], metrics: Metrics) -> None:
        self._routes = dict(routes)
        self._paths = {route.split()[1] for route in routes}
        self._open = {path.rpartition("/")[0]: path for path in self._paths if path.endswith("}")}
        self._metrics = metrics

    async def answer(self, method: str, path: str, body: bytes) -> Reply:
        """Answer a request. Everything that goes wrong is an answer too, of the form {"error": ..., "hint": ...}."""
        begun = time.perf_counter()
        template, name = self._matched(path)
        try:
            answered = await self._answer(method, template, name, body)
        except Refusal as refusal:
            answered = refusal.reply
        except DataError as error:
            answered = reply({"error": str(error)}, 400)
        except (UnavailableError, StateError, ConfigError) as error:
            answered = reply({"error": str(error)}, 503)
        except Exception:  # noqa: BLE001 - the one supervisor: a request's fault must not be another's
            _log.exception("a request failed", extra={"method": method, "route": template})
            answered = reply({"error": "the server failed; its log says why"}, 500)
        self._metrics.answered(template or "other", answered.status, time.perf_counter() - begun)
        return answered

    async def _answer(self, method: str, template: str, name: str, body: bytes) -> Reply:
        handler = self._routes.get(f"{method} {template}")
        if handler is not None:
            return await handler(name, body)
        if template:
            raise Refusal(405, f"{template} does not take {method}")
        raise Refusal(404, "there is nothing here", "GET /openapi.json tells what there is")

    def _matched(self, path: str) -> tuple[str, str]:
        """The path as its route has it ("" when there is none), and the part that the route leaves open."""
        if path in self._paths:
            return path, ""
        head, _, name = path.rpartition("/")
        return (self._open[head], name) if name and head in self._open else ("", "")

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:  # noqa: ANN401 - as the server calls it
        """Answer one request of the server."""
        try:
            async with asyncio.timeout(PATIENCE):
                body = await _body(scope, protocol)
            answered = await self.answer(scope.method, scope.path, body)
        except TimeoutError:
            answered = Refusal(408, f"the body did not arrive within {PATIENCE} s").reply
        except Refusal as refusal:
            answered = refusal.reply
        protocol.response_bytes(answered.status, [("content-type", answered.kind)], answered.body)


async def _body(scope: Any, protocol: Any) -> bytes:  # noqa: ANN401
    """The body, as far as it may be read. Raises Refusal when it is larger than that."""
    if scope.method == "GET":
        return b""
    parts, size = [], 0
    async for part in protocol:
        size += len(part)
        if size <= MAX_BODY:
            parts.append(part)
        elif size > 8 * MAX_BODY:
            break  # a client that sends a little too much gets to read why; one that sends far too much is cut off
    if size > MAX_BODY:
        raise Refusal(413, f"the body has more than {MAX_BODY:,} bytes", "ask for fewer entities at a time")
    return b"".join(parts)


async def serve(application: Application, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Answer requests until SIGINT or SIGTERM; `ready` is called with the address. Port 0 means a free one.

    Raises ConfigError when the address cannot be listened on.
    """
    port = _checked(host, port)
    server = Server(
        application,
        host,
        port,
        interface=Interfaces.RSGI,
        websockets=False,
        log_enabled=False,
        http1_settings=HTTP1Settings(header_read_timeout=PATIENCE * 1000),
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    # What start-up made stays: a collector that keeps looking through it would hold requests up.
    gc.collect()
    gc.freeze()
    running = loop.create_task(server.serve())
    await _listening(host, port, running)
    ready(f"http://{host}:{port}")
    await running


def _checked(host: str, port: int) -> int:
    """The port to use. Asked for beforehand: the server itself would share a port, or crash."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}. Stop what listens there, or give another --port"
        ) from None


async def _listening(host: str, port: int, running: asyncio.Task[None]) -> None:
    while not running.done():
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return
        await asyncio.sleep(0.02)
    await running
