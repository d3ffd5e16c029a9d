"""Who may use Redis, and over what: users with no more rights than they need, and TLS."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from featurestore.errors import ConfigError
from featurestore.keys import position_key
from featurestore.online import Commit, Position
from tests.featurestore import redis_server
from tests.featurestore.redis_cluster import SLOTS, RedisCluster
from tests.featurestore.redis_sentinel import Sentinel
from tests.featurestore.redis_server import SERVERS, RedisServer

VIEW = "activity@c0ffee"
ENTITIES = [b"i%d" % i for i in range(20)]
opened = partial(redis_server.opened, patience=0)
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


async def written(store):
    """Do all that a worker does, and take over from another definition."""
    await store.ping()
    for topic in ("t", "dropped"):
        await store.claim(VIEW, topic, 0, "me")
        blobs = [b"x"] * len(ENTITIES)
        commit = Commit(VIEW, topic, 0, "me", 0, 1, 1, ENTITIES, blobs, 60_000, first=True, erased=[b"sgone"])
        await store.commit([commit])
        await store.erase(VIEW, topic, 0, [b"sgone"])
    await store.drop(VIEW, "dropped", 0)
    await seen(store)


async def seen(store):
    """Do all that a reader does."""
    await store.ping()
    assert await store.positions(VIEW, "t", 1) == [Position(1, 1)]
    assert await store.read(VIEW, "t", 1, ENTITIES) == [[b"x"]] * len(ENTITIES)
    assert sorted([entity async for entity, _ in store.scan(VIEW, "t", 0)]) == sorted(ENTITIES)


def documented(user):
    """The rules of a user as `docs/operations.md` has them."""
    [rules] = re.findall(rf"^    ACL SETUSER {user} on (.*)$", OPERATIONS.read_text(), re.MULTILINE)
    return rules.split()


def with_users(server):
    with server.admin() as admin:
        for user in ("writer", "reader"):
            admin.execute_command("ACL", "SETUSER", user, "on", *documented(user))


def url_of(user, server, database):
    return f"redis://{user}:{user.upper()}@127.0.0.1:{server.port}/{database}"


@pytest.mark.parametrize("which", SERVERS)
@pytest.mark.parametrize("database", [0, 3])
def test_the_documented_users_can_do_their_work_and_the_reader_nothing_else(which, database, tmp_path):
    async def main(server):
        async with opened(url_of("writer", server, database)) as store:
            await written(store)
        async with opened(url_of("reader", server, database)) as store:
            await seen(store)
            with pytest.raises(ConfigError, match=r"refuses these credentials: .* Check user, password and ACL"):
                await store.claim(VIEW, "t", 0, "you")
            with pytest.raises(ConfigError, match="refuses these credentials"):
                await store.drop(VIEW, "t", 0)
            await seen(store)

    with RedisServer(which, tmp_path) as server:
        with_users(server)
        asyncio.run(main(server))


@pytest.mark.parametrize("which", SERVERS)
def test_a_user_who_may_not_touch_these_keys_is_told_so_at_once(which, tmp_path):
    async def main(server):
        async with opened(f"redis://other:OTHER@127.0.0.1:{server.port}/0", patience=None) as store:
            for call in (store.positions(VIEW, "t", 1), store.read(VIEW, "t", 1, ENTITIES)):
                with pytest.raises(ConfigError, match="refuses these credentials"):
                    await call

    with RedisServer(which, tmp_path) as server:
        with server.admin() as admin:
            admin.execute_command("ACL", "SETUSER", "other", "on", ">OTHER", "~else:*", "+@all")
        asyncio.run(main(server))


def test_the_documented_users_can_work_in_a_cluster(tmp_path):
    async def main(cluster):
        for user, work in (("writer", written), ("reader", seen)):
            async with opened(cluster.url.replace("://", f"://{user}:{user.upper()}@"), patience=10) as store:
                await work(store)
                with cluster.moving(moved, (cluster.owner(moved) + 1) % 3):
                    assert await store.positions(VIEW, "moved", 1) == [None]  # ASK

    moved = position_key("moved", 0, VIEW)
    with RedisCluster("bundled", tmp_path) as cluster:
        for server in cluster.servers:
            with_users(server)
        asyncio.run(main(cluster))


def test_the_documented_users_can_work_with_sentinels_that_know_users_too(tmp_path):
    async def main(address):
        for user, work in (("writer", written), ("reader", seen)):
            url = address.replace("://", f"://{user}:{user.upper()}@")
            async with opened(f"{url}?sentinel_username=watcher&sentinel_password=WATCHER", patience=10) as store:
                await work(store)
            for options in ("", "?sentinel_username=watcher&sentinel_password=no"):
                async with opened(url + options) as store:
                    with pytest.raises(ConfigError, match="refuses these credentials") as raised:
                        await store.ping()
                    assert "password=no" not in str(raised.value)

    users = ("user default on nopass nocommands +ping", f"user watcher on {' '.join(documented('watcher'))}")
    with RedisServer("bundled", tmp_path) as server, Sentinel("bundled", tmp_path, server.port, *users) as sentinel:
        with_users(server)
        asyncio.run(main(sentinel.url))


@pytest.fixture
def certificate(tmp_path):
    """Files of a certificate for 127.0.0.1, which signs itself, and of its key."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl on this machine to make a certificate with")
    made, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=here -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", made], check=True, capture_output=True)
    return made, key


def encrypted(certificate, directory):
    """Options by which the redis-server on PATH speaks TLS at a port, and that port."""
    with RedisServer("system", directory) as plain, plain.admin() as admin:
        if not admin.config_get("tls-port"):
            pytest.skip("the redis-server on PATH was built without TLS")
    made, key = certificate
    port = str(RedisServer("system", directory, highest=55_535).port)
    files = f"--tls-cert-file {made} --tls-key-file {key} --tls-ca-cert-file {made}"
    return [*files.split(), "--tls-auth-clients", "no", "--tls-port", port], port


def test_tls_is_spoken_and_the_certificate_of_a_stranger_is_refused_at_once(certificate, tmp_path):
    async def main(port):
        async with opened(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate[0]}") as store:
            await written(store)
        async with opened(f"rediss://127.0.0.1:{port}/0", patience=None) as store:
            with pytest.raises(ConfigError, match=r"certificate of Redis at .* not to be trusted: .*\?ssl_ca_certs="):
                await store.ping()

    options, port = encrypted(certificate, tmp_path)
    with RedisServer("system", tmp_path, *options):
        asyncio.run(main(port))


def test_tls_is_spoken_with_sentinels_and_what_they_name_and_with_the_nodes_of_a_cluster(certificate, tmp_path):
    async def main(*urls):
        for url in urls:
            async with opened(f"{url}?ssl_ca_certs={certificate[0]}", patience=20) as store:
                await written(store)

    folders = [tmp_path / name for name in ("master", "sentinel", "node")]
    for folder in folders:
        folder.mkdir()
    (master, port), (watcher, place), (node, spot) = (encrypted(certificate, folder) for folder in folders)
    lines = " ".join(watcher).replace(" --", "\n").removeprefix("--")
    with (
        RedisServer("system", folders[0], *master),
        Sentinel("system", folders[1], port, lines, "tls-replication yes"),
        RedisServer("system", folders[2], *node, "--cluster-enabled", "yes", "--tls-cluster", "yes") as alone,
    ):
        with alone.admin() as admin:
            admin.execute_command("CLUSTER", "ADDSLOTS", *range(SLOTS))
        asyncio.run(main(f"rediss+sentinel://127.0.0.1:{place}/shop", f"rediss+cluster://127.0.0.1:{spot}"))
