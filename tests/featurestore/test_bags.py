"""Aggregates over bags of values."""

from __future__ import annotations

from featurestore import CountBy, Distinct, Quantile, SumBy, TopK
from tests.featurestore.helpers import NOON, do, event, made, numbered, read, state_of


def test_features_of_one_bag_do_not_disturb_each_other():
    twice = {
        "by": CountBy("s", bound=2),
        "sums": SumBy("x", by="s", bound=1),
        "seen": Distinct("i", bound=3),
        "top": TopK("i", k=2),
        "middle": Quantile("x"),
    }
    state = state_of(made({**twice, **{f"{name}2": each for name, each in twice.items()}}, windows=["1h"]))
    do(state, numbered(event(NOON + n, s=f"s{n % 5}", x=0.1 * n, i=n % 7) for n in range(30)))
    found = read(state)
    assert {name: found[f"{name}_1h"] for name in twice} == {name: found[f"{name}2_1h"] for name in twice}
