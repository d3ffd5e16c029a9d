"""What the peers of the benchmark share; the peers themselves run in environments of their own."""

from __future__ import annotations

from functools import reduce
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import peers


@given(st.lists(st.integers(-(10**6), 10**6).map(lambda cents: cents / 100), min_size=2, max_size=30))
def test_peers_aggregate_as_numpy_does(amounts):
    n, total, low, high, mean, squares = reduce(peers.added, amounts, peers.NOTHING)
    assert (n, low, high) == (len(amounts), min(amounts), max(amounts))
    assert total == pytest.approx(sum(amounts), abs=1e-6)
    assert mean == pytest.approx(np.mean(amounts), abs=1e-6)
    assert np.sqrt(squares / (n - 1)) == pytest.approx(np.std(amounts, ddof=1), rel=1e-6, abs=1e-4)


def test_a_clock_counts_to_its_last_event_and_reports_all_of_them():
    clock = peers.Clock(3)
    assert [(clock.tick(), clock.ended) for _ in range(3)] == [(False, False), (False, False), (True, True)]
    report = clock.report()
    assert report["events"] == 3
    assert report["events_per_s"] > 0


def test_windows_that_lost_an_event_or_hold_it_too_often_are_no_result():
    peers.check(1_000, (5 + 12 + 24) * 1_000)
    for counted in (40_999, 41_001, 0):
        with pytest.raises(SystemExit, match="not 41,000"):
            peers.check(1_000, counted)


@pytest.mark.parametrize("name", peers.EVENTS)
def test_every_peer_has_a_program_of_its_name(name):
    assert find_spec(f"benchmarks.peers.{name}")


def test_a_peer_that_cannot_run_says_why():
    assert "No module named benchmarks.peers.nothing" in peers.measured("nothing", "127.0.0.1:1", 1)
