"""Workers of one group that come and go while events flow, over a Redis Cluster."""

from __future__ import annotations

import random
import secrets
import signal
import time

import pytest

from tests.faults.group import PARTITIONS, Group, differences, reached, until, wanted
from tests.featurestore.redis_cluster import RedisCluster
from tests.streams.shop import history, produce, shop, with_repeats


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with RedisCluster("bundled", tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_three_workers_that_come_and_go_over_a_cluster_leave_what_one_replay_gives(pair, cluster, tmp_path):
    tag, rng = secrets.token_hex(4), random.Random(3)
    definitions, records = shop(tag), with_repeats(history(tag, 1_500, partitions=PARTITIONS))
    views, group = list(definitions.views.values()), Group(pair.kafka, cluster.url, tag, tmp_path)
    produce(pair.kafka, tag, records[:100], partitions=PARTITIONS)
    for _ in range(3):
        group.join()
    third = len(records) // 3
    produce(pair.kafka, tag, records[100:third], partitions=PARTITIONS)
    ends = wanted(definitions, records[:third])
    until(lambda: all(reached(cluster.url, views)[at] >= end for at, end in ends.items()), group)
    group.join()
    produce(pair.kafka, tag, records[third : 2 * third], partitions=PARTITIONS)
    time.sleep(rng.random())
    assert group.leave(0, signal.SIGTERM) == 0, group.said()
    group.leave(1, signal.SIGKILL)
    group.join()
    produce(pair.kafka, tag, records[2 * third :], partitions=PARTITIONS)
    ends = wanted(definitions, records)
    until(lambda: all(reached(cluster.url, views)[at] >= end for at, end in ends.items()), group)
    assert group.stop() == [0, 0, 0], group.said()
    wrong, compared = differences(definitions, records, cluster.url)
    assert wrong == 0
    assert compared > 500
