"""Where commands go: clusters whose slots move and whose nodes die, sentinels whose master changes, addresses."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

import pytest

from featurestore.errors import ConfigError, UnavailableError
from featurestore.keys import position_key
from featurestore.online import Commit, Position
from featurestore.redis_nodes import ClusterNodes, nodes_of
from tests.featurestore import redis_server
from tests.featurestore.redis_cluster import RedisCluster
from tests.featurestore.redis_sentinel import Watched
from tests.featurestore.redis_server import RedisServer

VIEW = "activity@c0ffee"
ENTITIES = [b"i%d" % i for i in range(20)]
opened = partial(redis_server.opened, patience=10.0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with RedisCluster("bundled", tmp_path_factory.mktemp("cluster")) as running:
        yield running


def step(topic, partition, start, upto):
    blobs = [b"%d" % upto] * len(ENTITIES)
    return Commit(VIEW, topic, partition, "me", start, upto, upto, ENTITIES, blobs, first=start == 0)


async def begun(store, topic, partitions):
    for partition in range(partitions):
        await store.claim(VIEW, topic, partition, "me")
    await store.commit([step(topic, partition, 0, 1) for partition in range(partitions)])


async def found(store, topic, partitions):
    positions = await store.positions(VIEW, topic, partitions)
    rows = await store.read(VIEW, topic, partitions, ENTITIES)
    return [position and position.next for position in positions], {blob for row in rows for blob in row}


def test_partitions_spread_over_the_nodes_and_are_written_and_read_together(cluster):
    async def main():
        async with opened(cluster.url) as store:
            await begun(store, "spread", 12)
            return await found(store, "spread", 12)

    assert asyncio.run(main()) == ([1] * 12, {b"1"})
    assert {cluster.owner(position_key("spread", p, VIEW)) for p in range(12)} == {0, 1, 2}


def test_a_slot_that_moves_between_commits_is_found_again(cluster):
    key = position_key("moved", 0, VIEW)

    async def main():
        async with opened(cluster.url) as store:
            await begun(store, "moved", 1)
            target = (cluster.owner(key) + 1) % 3
            with cluster.moving(key, target):
                await store.commit([step("moved", 0, 1, 2)])  # all its keys are where they were
                assert await store.claim(VIEW, "moved", 0, "me") == Position(2, 2)
            assert cluster.owner(key) == target
            await store.commit([step("moved", 0, 2, 3)])  # MOVED
            return await found(store, "moved", 1)

    assert asyncio.run(main()) == ([3], {b"3"})


def test_what_is_written_first_while_its_slot_moves_goes_where_it_is_asked_for(cluster):
    key = position_key("asked", 0, VIEW)

    async def main():
        async with opened(cluster.url) as store:
            target = (cluster.owner(key) + 1) % 3
            with cluster.moving(key, target):
                assert await store.claim(VIEW, "asked", 0, "me") is None  # ASK
                with cluster.servers[target].admin() as admin:
                    admin.execute_command("ASKING")
                    assert admin.hget(key, "owner") == b"me"
                commit = asyncio.create_task(store.commit([step("asked", 0, 0, 1)]))  # TRYAGAIN until it has moved
                await asyncio.sleep(0.2)
                assert not commit.done()
            await commit
            return await found(store, "asked", 1)

    assert asyncio.run(main()) == ([1], {b"1"})


def test_a_node_that_is_away_is_waited_for_and_the_others_are_not_asked_for_its_share(cluster):
    [near, far] = [next(p for p in range(99) if cluster.owner(position_key("away", p, VIEW)) == n) for n in (0, 1)]

    async def main():
        async with opened(cluster.url, patience=0) as store, opened(cluster.url, patience=30) as patient:
            for partition in (near, far):
                await store.claim(VIEW, "away", partition, "me")
            cluster.servers[1].kill()
            with pytest.raises(UnavailableError):
                await store.commit([step("away", far, 0, 1)])
            waiting = asyncio.create_task(patient.commit([step("away", far, 0, 1)]))
            await asyncio.sleep(0.3)
            cluster.servers[1].start()
            cluster.until_it_serves()
            with contextlib.suppress(Exception):
                await waiting  # its owner is forgotten: this node keeps nothing on disk
            await patient.claim(VIEW, "away", far, "me")
            await patient.commit([step("away", far, 0, 1)])
            return await patient.positions(VIEW, "away", far + 1)

    assert asyncio.run(main())[far] == Position(1, 1)


def test_every_state_of_a_partition_is_scanned_and_dropped_on_its_node(cluster):
    async def main():
        async with opened(cluster.url) as store:
            await begun(store, "scanned", 3)
            before = [[entity async for entity, _ in store.scan(VIEW, "scanned", p)] for p in range(3)]
            await store.drop(VIEW, "scanned", 1)
            after = [[entity async for entity, _ in store.scan(VIEW, "scanned", p)] for p in range(3)]
            return before, after

    before, after = asyncio.run(main())
    assert [sorted(each) for each in before] == [sorted(ENTITIES)] * 3
    assert [sorted(each) for each in after] == [sorted(ENTITIES), [], sorted(ENTITIES)]


def test_a_scan_finds_every_state_while_its_slot_moves(cluster):
    key = position_key("walked", 0, VIEW)

    async def main():
        async with opened(cluster.url) as store:
            await begun(store, "walked", 1)
            source = cluster.owner(key)
            with cluster.moving(key, (source + 1) % 3) as slot:
                with cluster.servers[source].admin() as admin:
                    keys = admin.execute_command("CLUSTER", "GETKEYSINSLOT", slot, len(ENTITIES) // 2)
                    goal = cluster.servers[(source + 1) % 3].port
                    admin.execute_command("MIGRATE", "127.0.0.1", goal, "", 0, 5_000, "KEYS", *keys)
                return [pair async for pair in store.scan(VIEW, "walked", 0)]

    assert sorted(asyncio.run(main())) == sorted((entity, b"1") for entity in ENTITIES)


def test_an_address_of_the_wrong_kind_says_which_one_to_write(cluster, tmp_path):
    async def claimed(url):
        async with opened(url, patience=0) as store:
            await store.claim(VIEW, "t", 0, "me")
            await store.positions(VIEW, "t", 9)

    with RedisServer("bundled", tmp_path) as single, pytest.raises(ConfigError, match="is no cluster: write redis://"):
        asyncio.run(claimed(f"redis+cluster://127.0.0.1:{single.port}"))
    with pytest.raises(ConfigError, match=r"belongs to a cluster: write redis\+cluster://"):
        asyncio.run(claimed(f"redis://127.0.0.1:{cluster.servers[0].port}/0"))


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://",
        "redis+cluster://h",
        "redis+cluster://h:x",
        "redis+cluster://h:1/3",
        "redis+sentinel://h:1",
        "redis+sentinel://h:1/m/x",
        "redis+elsewhere://h:1",
    ],
)
def test_an_address_that_cannot_be_is_refused_without_being_quoted(url):
    with pytest.raises(ConfigError, match="not a Redis address: write redis://") as raised:
        nodes_of(url.replace("://", "://user:secret@"))
    assert "secret" not in str(raised.value)


def test_an_address_of_a_cluster_may_have_credentials_and_tls():
    nodes = nodes_of("rediss+cluster://user:secret@h1:1,h2:2?ssl_ca_certs=/ca.pem")
    assert isinstance(nodes, ClusterNodes)
    assert nodes.address == "h1:1,h2:2"
    options = nodes._node(("h1", 1)).pool.connection_kwargs
    assert (options["username"], options["password"], options["ssl_ca_certs"]) == ("user", "secret", "/ca.pem")


def test_after_a_failover_the_store_goes_on_with_the_new_master(tmp_path):
    with Watched(tmp_path) as servers:

        async def main():
            async with opened(servers.url, patience=30) as store:
                await begun(store, "t", 1)
                with servers.replica.admin() as admin:
                    servers.until(lambda: admin.hget(position_key("t", 0, VIEW), "next") == b"1")
                servers.master.kill()
                await store.commit([step("t", 0, 1, 2)])
                servers.master.start()  # comes back as what it is not any more, and is told so
                await store.commit([step("t", 0, 2, 3)])
                return await found(store, "t", 1)

        assert asyncio.run(main()) == ([3], {b"3"})
        assert servers.asked()["port"] == servers.replica.port


def test_a_master_that_was_demoted_serves_no_old_states_while_sentinels_name_it_still(tmp_path):
    with Watched(tmp_path) as servers:

        async def main():
            async with opened(servers.url) as store:
                await begun(store, "t", 1)
            with servers.master.admin() as admin:
                admin.replicaof("127.0.0.1", servers.replica.port)
                async with opened(servers.url, patience=0) as store:
                    with pytest.raises(UnavailableError, match=f":{servers.master.port}, which .* is a replica"):
                        await store.positions(VIEW, "t", 1)
                async with opened(servers.url, patience=30) as store:
                    waiting = asyncio.create_task(found(store, "t", 1))
                    await asyncio.sleep(0.2)
                    admin.replicaof("NO", "ONE")
                    return await waiting

        assert asyncio.run(main()) == ([1], {b"1"})


def test_a_thousand_reads_at_once_share_the_connections_to_the_master(tmp_path):
    with Watched(tmp_path) as servers:

        async def main():
            async with opened(servers.url, patience=0) as store:
                await begun(store, "t", 1)
                return await asyncio.gather(*(found(store, "t", 1) for _ in range(1_000)))

        assert asyncio.run(main()) == [([1], {b"1"})] * 1_000
