import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.metrics import Scores

scored = st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60)


def scores_of(pairs):
    scores = Scores()
    update(scores, pairs)
    return scores


def update(scores, pairs):
    scores.update(np.array([p for p, _ in pairs], float), np.array([y for _, y in pairs], float))


def values(scores):
    return scores.count, scores.accuracy, scores.log_loss, scores.brier, scores.auc


@settings(deadline=None)
@given(scored)
def test_metrics_equal_their_definitions(pairs):
    scores = scores_of(pairs)
    assert scores.count == len(pairs)
    if pairs:
        clipped = [(min(max(p, 1e-15), 1 - 1e-15), y) for p, y in pairs]
        assert scores.accuracy == sum((p >= 0.5) == y for p, y in pairs) / len(pairs)
        assert scores.log_loss == pytest.approx(
            math.fsum(-math.log(p if y else 1 - p) for p, y in clipped) / len(pairs), rel=1e-12
        )
        assert scores.brier == pytest.approx(math.fsum((p - y) ** 2 for p, y in pairs) / len(pairs), rel=1e-12)


@settings(deadline=None)
@given(scored)
def test_auc_is_within_its_stated_error_of_the_exact_one(pairs):
    scores = scores_of(pairs)
    positives, negatives = [p for p, y in pairs if y], [p for p, y in pairs if not y]
    if not positives or not negatives:
        assert scores.auc is scores.auc_error is None
        return
    wins = sum((p > n) + (p == n) / 2 for p in positives for n in negatives)
    exact = wins / (len(positives) * len(negatives))
    assert abs(scores.auc - exact) <= scores.auc_error + 1e-12


def test_auc_of_spread_out_probabilities_is_nearly_exact():
    rng = np.random.default_rng(1)
    p = rng.random(5000)
    y = (rng.random(5000) < p).astype(float)
    scores = Scores()
    scores.update(p, y)
    assert scores.auc_error < 1e-4
    assert scores.auc == pytest.approx(5 / 6, abs=0.02)


def test_ties_count_half():
    assert scores_of([(0.3, True), (0.3, False)]).auc == 0.5
    assert scores_of([(0.9, True), (0.1, False)]).auc == 1.0
    assert scores_of([(1.0, True), (0.0, False)]).auc == 1.0


@settings(deadline=None)
@given(scored, st.integers(0, 60), st.integers(0, 60))
def test_cutting_a_stream_changes_no_bit_and_neither_does_a_restart(pairs, one, two):
    whole, pieces = scores_of(pairs), Scores()
    low, high = sorted((one, two))
    for part in (pairs[:low], pairs[low:high], pairs[high:]):
        update(pieces, part)
        pieces = Scores.load(pieces.dump())
    assert values(pieces) == values(whole)
    assert pieces.dump()["sums"].tobytes() == whole.dump()["sums"].tobytes()


def test_nothing_scored_means_nothing_known():
    assert values(Scores()) == (0, None, None, None, None)


def test_certain_and_wrong_costs_a_finite_loss():
    assert scores_of([(0.0, True)]).log_loss == pytest.approx(-math.log(1e-15))
    assert scores_of([(1.0, False)]).log_loss == pytest.approx(-math.log(1e-15), rel=1e-2)
