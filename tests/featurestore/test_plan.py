"""Plans share what can be shared: tiles between windows of one hop, primitives between features of one lane."""

from __future__ import annotations

import numpy as np

from featurestore import Count, Entity, Max, Mean, Std, Sum, col, view, window
from featurestore.plan import MOMENTS_FLOAT, SUM_FLOAT, SUM_INT, N, compiled
from tests.featurestore.helpers import SOURCE


def planned(windows=("5m",), **features):
    return compiled(view(entity=Entity("key", key="k"), source=SOURCE, windows=windows)(type("Made", (), features)))


def test_mean_and_sum_share_a_sum_and_all_share_the_count():
    plan = planned(mean=Mean("x"), total=Sum("x"), std=Std("x"), n=Count("x"))
    assert len(plan.lanes) == 1
    assert plan.tables.ops[:, 0].tolist() == [SUM_FLOAT, MOMENTS_FLOAT, N]
    assert plan.tables.tracks[0, 2] == 1 + 2 + 2 + 1


def test_windows_of_one_hop_share_tiles_and_others_do_not():
    plan = planned(windows=[window("5m", hop="1m"), window("1h", hop="1m"), "lifetime"], n=Count())
    assert plan.tables.tracks[:, 0].tolist() == [60_000, 1 << 62]
    assert plan.tables.tracks[:, 1].tolist() == [3_600_000, 1 << 62]
    assert plan.tables.tracks[:, 5].tolist() == [62, 3]
    assert plan.state_words == 3 + 2 + 62 * 2 + 3 * 2


def test_a_lane_is_a_column_and_a_condition():
    plan = planned(
        a=Sum("x"),
        b=Sum("x", where=col("x").round(1) > 1),
        c=Max("x", where=col("x").round(1) > 1),
        d=Sum("x", where=col("x").round(2) > 1),
    )
    assert len(plan.lanes) == 3


def test_outputs_are_the_stored_features_grouped_by_window():
    plan = planned(windows=["5m", "1h"], n=Count(), x=Sum("x"))
    assert [feature.name for feature in plan.outputs] == ["n_5m", "x_5m", "n_1h", "x_1h"]
    assert plan.tables.groups[:, 1:4].tolist() == [[300_000, 0, 2], [3_600_000, 2, 4]]


def test_only_integer_sums_are_checked_for_overflow():
    assert not planned(x=Sum("x"), i=Max("i")).checks_overflow
    plan = planned(i=Mean("i"))
    assert plan.checks_overflow
    assert SUM_INT in plan.tables.ops[:, 0]


def test_tables_are_whole_numbers_in_rows():
    assert all(table.dtype == np.int64 and table.ndim == 2 for table in planned(n=Count()).tables)
