from __future__ import annotations

import secrets
from types import SimpleNamespace

import pytest

from tests.faults.kills import Case, Killer, RedisKiller, differences, outcome, produce, undisturbed
from tests.featurestore.redis_server import RedisServer
from tests.streams.working import own_servers


@pytest.fixture(scope="session")  # `pair` makes pytest come back to this module
def case():
    return Case(secrets.token_hex(4), orders=2_400)


@pytest.fixture(scope="session")
def expected(case, tmp_path_factory):
    return undisturbed(case, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_ten_killed_workers_leave_what_one_undisturbed_worker_leaves(pair, case, expected, tmp_path):
    produce(pair.kafka, case.tag, case.records)
    killer = Killer(case, pair, tmp_path)
    killer.run(kills=10, seed=7)
    found = outcome(case, pair, tmp_path)
    assert sum(killer.moments.values()) - killer.moments["failed"] >= 8, killer.moments
    assert differences(expected, found) == dict.fromkeys(expected, 0)
    assert len(expected["predictions"]) == 2 * case.orders
    assert expected["repeated predictions"] == {}  # orders that were sent again had another amount


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_workers_killed_around_erasures_leave_what_one_undisturbed_worker_leaves(pair, tmp_path):
    case = Case(secrets.token_hex(4), orders=600, chunk=100, grid=500, erasing=True)
    expected = undisturbed(case, tmp_path / "undisturbed")
    produce(pair.kafka, case.tag, case.records)
    killer = Killer(case, pair, tmp_path / "killed")
    killer.run(kills=10, seed=5)
    assert differences(expected, outcome(case, pair, tmp_path / "killed")) == dict.fromkeys(expected, 0)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_redis_that_is_killed_and_loses_its_last_writes_loses_nothing(case, expected, tmp_path):
    log = ("--appendonly", "yes", "--appendfsync", "everysec")
    with RedisServer("bundled", tmp_path, *log) as server, own_servers() as servers:
        pair = SimpleNamespace(kafka=servers.kafka, redis_url=server.url)
        produce(pair.kafka, case.tag, case.records)
        killer = RedisKiller(case, pair, tmp_path / "data", server=server)
        killer.run(kills=3, seed=3)
        found = outcome(case, pair, tmp_path / "data")
    assert killer.moments["rolled back"] == 3
    assert differences(expected, found) == dict.fromkeys(expected, 0)
