"""The Redis store under faults: kills, cut connections, refusals, and what another program left there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from functools import partial

import pytest
import redis

from featurestore import CountBy, Distinct, Last, LastN, SumBy, TopK
from featurestore.errors import ConfigError, FormatError, GapError, StateError, UnavailableError
from featurestore.keys import key_prefix, position_key
from featurestore.online import Commit, Position, connect
from featurestore.stores import DROPPING
from tests.featurestore import redis_server
from tests.featurestore.helpers import NOON, do, event, made, numbered, read, state_of
from tests.featurestore.redis_server import SERVERS, CuttingProxy, RedisServer

VIEW = "activity@c0ffee"
ENTITIES = [b"i%d" % i for i in range(40)]
opened = partial(redis_server.opened, patience=5.0)


@pytest.fixture(params=SERVERS)
def server(request, tmp_path):
    with RedisServer(request.param, tmp_path) as running:
        yield running


@pytest.fixture
def durable(request, tmp_path):
    with RedisServer(request.param, tmp_path, "--appendonly", "yes", "--appendfsync", "no") as running:
        yield running


def step(start, upto, ttl=None):
    """The batch `start`..`upto`, after which every state says `upto`."""
    return Commit(VIEW, "t", 0, "me", start, upto, upto, ENTITIES, [b"%d" % upto] * len(ENTITIES), ttl, start == 0)


async def stored(store):
    """The stored next offset and the set of what the states say."""
    [position] = await store.positions(VIEW, "t", 1)
    rows = await store.read(VIEW, "t", 1, ENTITIES)
    return position and position.next, {blob for [blob] in rows}


def aof_tail(directory):
    """The file that Redis 6 or 7 appends its log to."""
    [tail] = [*directory.glob("appendonly.aof"), *directory.glob("appendonlydir/*.incr.aof")]
    return tail


@pytest.mark.parametrize("durable", SERVERS, indirect=True)
def test_states_and_offset_roll_back_together_when_redis_dies_and_loses_its_tail(durable):
    cuts = random.Random(6)

    async def main():
        lost = 0
        async with opened(durable.url) as store:
            for _ in range(12):
                await store.claim(VIEW, "t", 0, "me")
                at = (await stored(store))[0] or 0
                for start in range(at, at + 5):
                    await store.commit([step(start, start + 1, ttl=60_000)])
                durable.kill()
                tail = aof_tail(durable.directory)
                size = tail.stat().st_size
                with tail.open("r+b") as log:
                    log.truncate(size - cuts.randrange(min(size, 8000)))
                durable.start()
                upto, states = await stored(store)
                assert states == {b"%d" % upto if upto else None}
                lost += at + 5 - (upto or 0)
        return lost

    assert asyncio.run(main()) > 5


@pytest.mark.parametrize("durable", ["bundled"], indirect=True)
def test_a_redis_killed_at_any_moment_of_a_commit_is_waited_for_and_nothing_is_lost_or_repeated(durable):
    kills = random.Random(7)
    done = threading.Event()

    def kill_now_and_then():
        for _ in range(6):
            time.sleep(kills.uniform(0.05, 0.25))
            durable.kill()
            durable.start()
        done.set()

    async def main():
        async with opened(durable.url, patience=None) as store:
            await store.claim(VIEW, "t", 0, "me")
            offset = 0
            while not done.is_set():
                await store.commit([step(offset, offset + 1)])
                offset += 1
            assert await stored(store) == (offset, {b"%d" % offset})
        return offset

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        assert asyncio.run(main()) > 20
    finally:
        killer.join()


@pytest.mark.parametrize(("way", "scripts"), [("request", 1), ("reply", 2)])
def test_a_connection_cut_around_the_script_is_retried_exactly_once(server, way, scripts):
    async def main():
        async with CuttingProxy(server.port) as proxy, opened(proxy.url) as store:
            await store.claim(VIEW, "t", 0, "me")
            await store.commit([step(0, 1)])
            before = executed(server)
            proxy.cut(way)
            await store.commit([step(1, 2)])
            assert proxy.cuts == 1
            assert executed(server) - before == scripts
            assert await stored(store) == (2, {b"2"})

    asyncio.run(main())


def executed(server):
    with server.admin() as admin:
        return admin.info("commandstats")["cmdstat_evalsha"]["calls"]


def test_cuts_after_any_number_of_bytes_neither_lose_nor_repeat_a_batch(server):
    places = random.Random(8)

    async def main():
        async with CuttingProxy(server.port) as proxy, opened(proxy.url) as store:
            await store.claim(VIEW, "t", 0, "me")
            for offset in range(60):
                way = places.choice(["request", "reply"])
                proxy.cut(way, places.randrange(2500 if way == "request" else 40))
                await store.commit([step(offset, offset + 1)])
                assert await stored(store) == (offset + 1, {b"%d" % (offset + 1)})
            assert proxy.cuts > 20

    asyncio.run(main())


def test_an_outage_is_logged_once_without_a_traceback_and_ends_in_one_clear_line(tmp_path, caplog):
    caplog.set_level(logging.INFO, "featurestore")
    with RedisServer("bundled", tmp_path) as server:

        async def main():
            url = server.url.replace("redis://", "redis://:secret@")
            async with opened(server.url) as store, opened(url, patience=0.3) as impatient:
                await store.ping()
                server.kill()
                with pytest.raises(UnavailableError) as caught:
                    await impatient.ping()
                patient = asyncio.ensure_future(store.ping())
                while len(caplog.records) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                server.start(wait=False)
                await patient
            return str(caught.value)

        message = asyncio.run(main())
    where = f"127.0.0.1:{server.port}"
    assert message.startswith(f"cannot reach Redis at {where}: ")
    assert "\n" not in message
    told = [(record.getMessage(), record.redis) for record in caplog.records]
    assert told == [("Redis does not serve, trying again", where)] * 2 + [("Redis serves again", where)]
    errors = [str(record.error) for record in caplog.records[:2]]
    assert all(error.startswith(f"cannot reach Redis at {where}: ") for error in errors)
    assert "secret" not in "".join([message, *errors])
    assert not any(record.exc_info for record in caplog.records)


def test_no_patience_means_an_error_at_once(tmp_path, caplog):
    with RedisServer("bundled", tmp_path) as server:
        pass

    async def main():
        async with opened(server.url, patience=0) as store:
            with pytest.raises(UnavailableError, match=r"cannot reach Redis at 127\.0\.0\.1"):
                await store.read(VIEW, "t", 1, [b"sa"])

    asyncio.run(main())
    assert not caplog.records


def test_scripts_that_redis_forgot_are_sent_again(server):
    async def main():
        async with opened(server.url, patience=0) as store:
            await store.claim(VIEW, "t", 0, "me")
            for offset in range(3):
                with server.admin() as admin:
                    admin.script_flush()
                await store.commit([step(offset, offset + 1)])
            assert await stored(store) == (3, {b"3"})

    asyncio.run(main())


REFUSALS = {
    "OOM": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
    "READONLY": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    "NOREPLICAS": ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_redis_that_cannot_write_has_no_partial_effect_and_is_waited_for(server, kind):
    begin, end = REFUSALS[kind]

    def tell(command):
        with server.admin() as admin:
            admin.execute_command(*command.split())

    async def main():
        async with opened(server.url, patience=0) as hasty, opened(server.url, patience=None) as patient:
            await hasty.claim(VIEW, "t", 0, "me")
            await hasty.commit([step(0, 1)])
            tell(begin)
            with pytest.raises(UnavailableError, match=f"127.0.0.1:{server.port} cannot serve"):
                await hasty.commit([step(1, 2)])
            assert await stored(hasty) == (1, {b"1"})
            waiting = asyncio.create_task(patient.commit([step(1, 2)]))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            tell(end)
            await waiting
            assert await stored(hasty) == (2, {b"2"})

    asyncio.run(main())


def test_a_redis_busy_with_a_script_is_waited_for(server):
    def hog():
        with server.admin() as admin, contextlib.suppress(redis.ResponseError):
            admin.eval("while true do end", 0)

    async def main():
        async with opened(server.url, patience=0) as hasty, opened(server.url, patience=None) as patient:
            await hasty.claim(VIEW, "t", 0, "me")
            with server.admin() as admin:
                admin.config_set("lua-time-limit", 20)
                hogging = asyncio.create_task(asyncio.to_thread(hog))
                await asyncio.sleep(0.2)
                with pytest.raises(UnavailableError, match="BUSY"):
                    await hasty.commit([step(0, 1)])
                waiting = asyncio.create_task(patient.commit([step(0, 1)]))
                await asyncio.sleep(0.1)
                admin.script_kill()
                await waiting
                await hogging
            assert await stored(hasty) == (1, {b"1"})

    asyncio.run(main())


@pytest.mark.parametrize("durable", SERVERS, indirect=True)
def test_a_redis_that_is_loading_is_waited_for(durable):
    async def main():
        async with opened(durable.url, patience=None) as store:
            await store.claim(VIEW, "t", 0, "me")
            for offset in range(100):
                await store.commit([step(offset, offset + 1)])
            durable.kill()
            durable.start("--key-load-delay", "200", wait=False)  # it answers once in a thousand commands of its log
            assert "loading" in await until_it_answers(durable.url)
            assert await stored(store) == (100, {b"100"})

    asyncio.run(main())


async def until_it_answers(url):
    """The first refusal that comes from the server itself."""
    async with opened(url, patience=0) as hasty:
        while True:
            try:
                await hasty.ping()
            except UnavailableError as error:
                if "loading" in str(error):
                    return str(error)
                await asyncio.sleep(0.005)
            else:
                return "it serves"


def test_a_value_of_another_type_is_an_error_and_not_a_missing_state(server):
    async def main():
        async with opened(server.url) as store:
            await store.claim(VIEW, "t", 0, "me")
            with server.admin() as admin:
                admin.hset(key_prefix("t", 0, VIEW) + b"sa", "field", "value")
                with pytest.raises(StateError, match="another type"):
                    await store.read(VIEW, "t", 1, [b"sb", b"sa"])
                admin.delete(position_key("t", 0, VIEW))
                admin.set(position_key("t", 0, VIEW), "7")
                for call in (
                    store.claim(VIEW, "t", 0, "me"),
                    store.commit([step(0, 1)]),
                    store.positions(VIEW, "t", 1),
                ):
                    with pytest.raises(StateError, match="another type"):
                        await call
                assert admin.get(position_key("t", 0, VIEW)) == b"7"

    asyncio.run(main())


def test_a_drop_cut_short_is_never_taken_for_a_whole_state(server):
    async def main():
        async with opened(server.url) as store:
            await store.claim(VIEW, "t", 0, "me")
            await store.commit([step(0, 5)])
            with server.admin() as admin:
                admin.hset(position_key("t", 0, VIEW), "format", DROPPING)
            with pytest.raises(FormatError, match="drop it again"):
                await store.claim(VIEW, "t", 0, "you")
            await store.drop(VIEW, "t", 0)
            assert await store.claim(VIEW, "t", 0, "you") is None

    asyncio.run(main())


def test_a_worker_whose_redis_was_rolled_back_learns_where_to_go_on(server):
    async def main():
        async with opened(server.url) as store:
            await store.claim(VIEW, "t", 0, "me")
            await store.commit([step(0, 5)])
            with server.admin() as admin:
                admin.hset(position_key("t", 0, VIEW), "next", "3")
            with pytest.raises(GapError, match="fold again from offset 3"):
                await store.commit([step(5, 8)])
            assert await store.claim(VIEW, "t", 0, "me") == Position(3, 5)

    asyncio.run(main())


def test_states_carry_the_ttl_and_the_position_does_not(server):
    async def main():
        async with opened(server.url) as store:
            await store.claim(VIEW, "t", 0, "me")
            await store.commit([step(0, 1, ttl=90_000)])

    asyncio.run(main())
    with server.admin() as admin:
        assert 80_000 < admin.pttl(key_prefix("t", 0, VIEW) + ENTITIES[0]) <= 90_000
        assert admin.ttl(position_key("t", 0, VIEW)) == -1


def test_a_thousand_reads_at_once_share_the_connections(server):
    async def main():
        async with opened(server.url) as store:
            await store.claim(VIEW, "t", 0, "me")
            await store.commit([step(0, 1)])
            answers = await asyncio.gather(*(store.read(VIEW, "t", 1, [entity]) for entity in ENTITIES * 25))
            assert answers == [[[b"1"]]] * 1000
        with server.admin() as admin:
            assert admin.info("clients")["connected_clients"] <= 65

    asyncio.run(main())


def test_a_cancelled_call_leaves_no_reply_to_the_next(server):
    async def main():
        async with opened(server.url) as store:
            await store.claim(VIEW, "t", 0, "me")
            await store.commit([step(0, 1)])
            for delay in [0, 0.0001, 0.0005, 0.001, 0.002]:
                call = asyncio.create_task(store.read(VIEW, "t", 4, ENTITIES))
                await asyncio.sleep(delay)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
                assert await stored(store) == (1, {b"1"})

    asyncio.run(main())


@pytest.mark.parametrize("url", ["http://h:1", "localhost:6379", "redis://h:seven:secret/0", "redis://h:99999999"])
def test_an_address_that_cannot_be_read_is_refused_without_repeating_it(url):
    with pytest.raises(ConfigError, match="not a Redis address") as caught:
        connect(url)
    assert "secret" not in str(caught.value)


def test_wrong_credentials_are_refused_at_once(tmp_path):
    async def main(port):
        async with opened(f"redis://:wrong@127.0.0.1:{port}/0", patience=None) as store:
            with pytest.raises(ConfigError, match="credentials") as caught:
                await store.ping()
            assert "wrong@" not in str(caught.value)
        async with opened(f"redis://127.0.0.1:{port}/0", patience=None) as store:
            with pytest.raises(ConfigError, match="credentials"):
                await store.ping()

    with RedisServer("bundled", tmp_path) as server:
        with server.admin() as admin:
            admin.config_set("requirepass", "right")
        asyncio.run(main(server.port))


def test_what_is_not_redis_is_named_so():
    async def main():
        async def page(reader, writer):
            await reader.read(10)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(page, "127.0.0.1", 0) as http:
            port = http.sockets[0].getsockname()[1]
            async with opened(f"redis://127.0.0.1:{port}", patience=None) as store:
                with pytest.raises(ConfigError, match="is not Redis"):
                    await store.ping()

    asyncio.run(main())


def test_lists_maps_and_texts_come_back_from_redis_in_another_process(server):
    features = {"by": CountBy("s"), "sums": SumBy("x", by="s"), "top": TopK("s", k=2), "all": LastN("s", n=3)}
    made_of = made(features | {"n": Distinct("s", bound=2), "text": Last("s")}, windows=["5s", "lifetime"])
    mine, other = state_of(made_of), state_of(made_of)
    texts = ["grocery", "", "a\0b", "\u20ac" * 300, None, "grocery"]
    do(mine, numbered(event(NOON + 900 * n, s=s, x=n / 3) for n, s in enumerate(texts)))

    async def main():
        async with opened(server.url) as store:
            place = (made_of.key, "events", 0)
            await store.claim(*place, "me")
            [change] = mine.take_changes()
            await store.commit([Commit(*place, "me", 0, 6, mine.clock(0), change.entities, change.blobs, first=True)])
            [[blob]] = await store.read(made_of.key, "events", 1, [b"sa"])
            return blob

    other.number([b"sa"])
    other.load(0, 0, asyncio.run(main()))
    assert read(other, as_of=NOON) == read(mine, as_of=NOON)
    assert read(other)["all_lifetime"] == ["a\0b", "\u20ac" * 256, "grocery"]
    assert other.blobs(0) == mine.blobs(0)
