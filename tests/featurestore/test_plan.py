"""Plans share what can be shared: tiles between windows of one hop, primitives between features of one lane."""

from __future__ import annotations

from featurestore import Corr, Count, Entity, Max, Mean, Min, Std, Sum, col, last, session, view, window
from featurestore.kernel import layout as at
from featurestore.kernel.primitives import MOMENTS_FLOAT, STATS_FLOAT, STATS_INT, SUM_FLOAT, SUM_INT, N
from featurestore.plan import compiled
from tests.featurestore.helpers import SOURCE


def planned(windows=("5m",), **features):
    return compiled(view(entity=Entity("key", key="k"), source=SOURCE, windows=windows)(type("Made", (), features)))


def codes(plan):
    return [op[at.CODE] for op in plan.ops]


def test_mean_and_sum_share_a_sum_and_all_share_the_count():
    plan = planned(mean=Mean("x"), total=Sum("x"), std=Std("x"), n=Count("x"))
    assert len(plan.lanes) == 1
    assert codes(plan) == [SUM_FLOAT, MOMENTS_FLOAT, N]
    assert plan.tracks[0][at.STRIDE] == 1 + 2 + 2 + 1


def test_many_primitives_of_a_lane_with_a_sum_become_one():
    assert codes(planned(s=Sum("x"), lo=Min("x"), hi=Max("x"), n=Count("x"))) == [STATS_FLOAT]
    assert codes(planned(s=Mean("i"), lo=Min("i"), std=Std("i"))) == [STATS_INT]
    assert STATS_INT not in codes(planned(lo=Min("i"), hi=Max("i"), std=Std("i"))), (
        "a sum that nobody asked for may overflow"
    )


def test_windows_of_one_hop_share_tiles_and_others_do_not():
    plan = planned(windows=[window("5m", hop="1m"), window("1h", hop="1m"), "lifetime"], n=Count())
    assert [track[at.HOP] for track in plan.tracks] == [60_000, 1 << 62]
    assert [track[at.KEEP] for track in plan.tracks] == [3_600_000, 1 << 62]
    words = 3 + 2 + 62 * 2 + 3 * 2
    assert plan.state_words == words + words // 31 + 1


def test_a_delayed_window_keeps_its_tiles_for_longer():
    plan = planned(windows=["1h", window("1h", delay="2h")], n=Count())
    assert [track[at.KEEP] for track in plan.tracks] == [3 * 3_600_000]
    assert [group[at.DELAY] for group in plan.groups] == [0, 7_200_000]


def test_events_are_kept_once_for_all_exact_windows_and_once_for_the_last():
    windows = [window("5m", exact=True), window("1h", exact=True), last(3), last(9), session("5m")]
    plan = planned(windows=windows, x=Sum("x"), r=Corr("x", other="i"))
    assert [track[at.KIND] for track in plan.tracks] == [at.EVENTS, at.LATEST, at.SESSIONS]
    assert [track[at.LIMIT] for track in plan.tracks] == [0, 9, 0]
    assert [track[at.STRIDE] for track in plan.tracks[:2]] == [2 + 3, 2 + 3]
    assert plan.state_words is None


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
    assert [group[at.LENGTH] for group in plan.groups] == [300_000, 3_600_000]


def test_only_integer_sums_of_tiles_are_checked_for_overflow():
    assert not planned(x=Sum("x"), i=Max("i")).checks_overflow
    assert not planned(windows=[last(3), session("1m")], i=Sum("i")).checks_overflow
    plan = planned(i=Mean("i"))
    assert plan.checks_overflow
    assert SUM_INT in codes(plan)
