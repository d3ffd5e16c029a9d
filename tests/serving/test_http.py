"""The server itself, on a socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import socket

import httpx
import pytest

from featurestore import ConfigError
from featurestore.memory import MemoryStore
from serving.http import MAX_BODY, serve
from tests.featurestore.helpers import read
from tests.serving.helpers import NOW, Cards, application_of, filled, first_of, folded


@contextlib.asynccontextmanager
async def running():
    """A client of a server over the history, on a free port; it stops as an operator would stop it."""
    application = application_of(await filled(MemoryStore(lambda: NOW)))
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(serve(application, "127.0.0.1", 0, address.set_result))
    try:
        async with httpx.AsyncClient(base_url=await address, timeout=20) as client:
            yield client
    finally:
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(server, 10)
        gc.unfreeze()


def test_values_come_over_the_wire_to_the_last_bit():
    async def main():
        async with running() as client:
            body = {"features": [f"cards:{feature.name}" for feature in Cards.stored], "entities": {"k": ["a"]}}
            asked = [client.post("/get-online-features", content=json.dumps(body)) for _ in range(20)]
            replies = await asyncio.gather(*asked)
            return [(reply.status_code, reply.headers["content-type"], reply.json()) for reply in replies]

    answers = asyncio.run(main())
    for status, kind, answer in answers:
        assert (status, kind) == (200, "application/json")
        assert first_of(answer) == {"k": "a"} | read(folded(Cards), ("a",), NOW)


def test_pages_are_there():
    async def main():
        async with running() as client:
            paths = ["/healthz", "/readyz", "/metrics", "/catalog", "/openapi.json", "/", "/catalog?x=1"]
            return [(await client.get(path)).status_code for path in paths]

    assert asyncio.run(main()) == [200, 200, 200, 200, 200, 404, 200]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_413_and_the_server_goes_on(chunked):
    async def parts():
        for _ in range(3):
            yield b" " * MAX_BODY

    async def main():
        async with running() as client:
            body = parts() if chunked else b" " * (MAX_BODY + 1)
            large = await client.post("/get-online-features", content=body)
            return large, await client.get("/healthz")

    large, healthy = asyncio.run(main())
    assert large.status_code == 413
    assert "1,000,000 bytes" in large.json()["error"]
    assert healthy.status_code == 200


def test_far_too_large_a_body_is_cut_off():
    async def main():
        async with running() as client:
            with contextlib.suppress(httpx.TransportError):
                assert (await client.post("/predict/x", content=b" " * (20 * MAX_BODY))).status_code == 413
            return (await client.get("/healthz")).status_code

    assert asyncio.run(main()) == 200


def test_a_contradictory_length_is_refused():
    async def main():
        async with running() as client:
            reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
            head = b"POST /predict/x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!"
            writer.write(head)
            answer = await reader.read(200)
            writer.close()
            return answer, (await client.get("/healthz")).status_code

    answer, status = asyncio.run(main())
    assert not answer.startswith(b"HTTP/1.1 2")
    assert status == 200


def test_a_port_in_use_is_one_clear_line():
    async def main(port):
        await serve(application_of(MemoryStore()), "127.0.0.1", port, print)

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            asyncio.run(main(port))


def test_an_unknown_host_is_one_clear_line():
    with pytest.raises(ConfigError, match=r"cannot listen on host\.invalid:80"):
        asyncio.run(serve(application_of(MemoryStore()), "host.invalid", 80, print))
