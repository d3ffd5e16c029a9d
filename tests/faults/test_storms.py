"""Groups of workers under faults: what is left is what one replay gives."""

from __future__ import annotations

import signal

import pytest

from benchmarks.kafka_server import why_no_kafka
from tests.faults.broker import Broker
from tests.faults.child import FAILING, STUCK
from tests.faults.proxy import CUTS
from tests.faults.storms import FAULTS, OF_THE_BROKER, Storm

CALM = ("trying again", "retrying", "asking the group again")
"""What workers may say while Kafka is away."""


def check(storm, least=500):
    wrong, compared = storm.differences()
    assert wrong == 0, storm.group.said()
    assert compared > least


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_storm_of_faults_of_every_kind_leaves_what_one_replay_gives(real_pair, tmp_path):
    with Storm(real_pair.kafka, tmp_path, seed=11) as storm:
        storm.run(faults=len(FAULTS))
        assert all(storm.done[kind] for kind in FAULTS), storm.done
        check(storm)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_storm_over_files_that_all_workers_share_leaves_those_of_one_replay(real_pair, tmp_path):
    kinds = ("killed", "restarted", "zombie", "joined", "cut")
    with Storm(real_pair.kafka, tmp_path, 12, kinds=kinds, files=True) as storm:
        storm.run(faults=2 * len(kinds))
        check(storm)
        assert storm.different_files() == []
        assert storm.done["ended"] == 0, storm.group.said()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_worker_ends_when_kafka_is_killed_or_away_and_all_go_on_once_it_is_back(tmp_path):
    if reason := why_no_kafka():
        pytest.skip(f"Apache Kafka {reason}")
    with Broker(tmp_path / "kafka") as broker, Storm(broker.address, tmp_path, 4, kinds=(), broker=broker) as storm:
        storm.run(faults=3)
        assert all(storm.done[kind] for kind in OF_THE_BROKER), storm.done
        assert [worker.exitcode for worker in storm.group.workers] == [0, 0, 0], storm.group.said()
        lines = "".join(path.read_text() for path in storm.group.folder.glob("worker*/log")).splitlines()
        notable = [line for line in lines if " info " not in line]
        assert notable, lines
        assert all(any(each in line for each in CALM) for line in notable), storm.group.said()
        check(storm)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_commits_of_which_the_worker_is_not_told_the_outcome_count_once(real_pair, tmp_path):
    with Storm(real_pair.kafka, tmp_path, seed=5, chunk=100) as storm:
        storm.proxy.share = 0.5
        storm.begin(workers=2)
        storm.produce(storm.records[100:])
        assert storm.settle() == [0, 0], storm.group.said()
        assert set(storm.proxy.cuts) == set(CUTS)
        assert storm.proxy.cuts.total() > 20
        check(storm)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_slow_redis_slows_workers_down_and_they_hold_no_more_and_keep_their_partitions(real_pair, tmp_path):
    with Storm(real_pair.kafka, tmp_path, seed=6, orders=2_400, chunk=100) as storm:
        storm.begin(workers=2)
        storm.produce(storm.records[100:2_000])
        storm.until_folded(storm.records[:2_000])
        before = storm.proxy.claims, [storm.group.memory(number) for number in range(2)]
        storm.proxy.delay = 0.05
        storm.produce(storm.records[2_000:])
        storm.until_folded(storm.records)
        after = storm.proxy.claims, [storm.group.memory(number) for number in range(2)]
        assert storm.group.stop() == [0, 0], storm.group.said()
        assert after[0] == before[0]
        assert all(late < early + 100 for early, late in zip(before[1], after[1], strict=True)), (before, after)
        check(storm)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_prediction_that_fails_ends_its_worker_and_is_made_by_the_next(real_pair, tmp_path):
    with Storm(real_pair.kafka, tmp_path, seed=7) as storm:
        storm.begin(workers=2)
        third = len(storm.records) // 3
        for number in range(2):
            (storm.group.place(number) / FAILING).touch()
            storm.produce(storm.records[100:][number * third :][:third])
            storm.group.workers[number].join(60)
            assert storm.group.workers[number].exitcode == 1, storm.group.said()
            assert "fails" in (storm.group.place(number) / "log").read_text()
            storm.group.replace(number, signal.SIGKILL)
        storm.produce(storm.records[100 + 2 * third :])
        assert storm.settle() == [0, 0], storm.group.said()
        check(storm)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_workers_with_stuck_models_go_on_are_killed_and_stop_in_order(real_pair, tmp_path):
    with Storm(real_pair.kafka, tmp_path, seed=8) as storm:
        storm.begin(workers=2)
        (storm.group.place(0) / STUCK).touch()
        (storm.group.place(1) / STUCK).touch()
        half = len(storm.records) // 2
        storm.produce(storm.records[100:half])
        storm.until_folded(storm.records[:half])
        storm.group.replace(0, signal.SIGKILL)
        storm.produce(storm.records[half:])
        assert storm.settle() == [0, 0], storm.group.said()
        check(storm)
