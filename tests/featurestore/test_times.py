"""Durations, default tile widths and which tiles a window covers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import DefinitionError, Window, window
from featurestore.times import ENDLESS, HOPS, default_hop, first_tile, milliseconds

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


@pytest.mark.parametrize(
    ("text", "length"),
    [("250ms", 250), ("30s", 30_000), ("5m", 5 * MINUTE), ("6h", 6 * HOUR), ("7d", 7 * DAY), ("2w", 14 * DAY)],
)
def test_a_duration_is_a_number_and_a_unit(text, length):
    assert milliseconds(text) == length


@pytest.mark.parametrize(
    "bad", ["", "5", "m", "5 m", "5 minutes", "-5m", "1.5h", "0s", "5M", "5m\n", "lifetime", 5, None]
)
def test_anything_else_is_refused_with_examples(bad):
    with pytest.raises(DefinitionError, match=r'is no duration: write a number and a unit, such as "30s"'):
        milliseconds(bad)


def test_a_duration_beyond_a_thousand_years_is_refused_with_the_way_out():
    assert milliseconds("365250d") > 0
    with pytest.raises(DefinitionError, match=r"longer than 1000 years.*lifetime"):
        milliseconds("99999999999w")


def test_the_default_hops_are_the_documented_ones():
    seconds = [1, 2, 5, 10, 15, 30]
    expected = (
        [s * 1_000 for s in seconds] + [m * MINUTE for m in seconds] + [h * HOUR for h in (1, 2, 3, 6, 12)] + [DAY]
    )
    assert list(HOPS) == expected


@pytest.mark.parametrize(
    ("length", "hop"),
    [
        ("1s", 1_000),
        ("48s", 1_000),
        ("96s", 2_000),
        ("5m", 5_000),
        ("1h", MINUTE),
        ("1d", 30 * MINUTE),
        ("48d", DAY),
        ("900d", DAY),
    ],
)
def test_a_window_gets_the_largest_hop_not_above_a_48th(length, hop):
    assert default_hop(milliseconds(length)) == hop
    assert window(length) == Window(length, "tiles", milliseconds(length), hop)


def test_a_window_may_name_its_hop():
    assert window("1h", hop="7m") == Window("1h", "tiles", HOUR, 7 * MINUTE)


def test_a_window_without_end_has_one_tile():
    assert window("lifetime") == Window("lifetime", "tiles", ENDLESS, ENDLESS)
    assert first_tile(0, ENDLESS, ENDLESS) == -1  # events before 1970 too


def test_a_hop_wider_than_the_window_is_refused():
    with pytest.raises(DefinitionError, match='window "5m": hop "10m" is wider than the window; choose a smaller one'):
        window("5m", hop="10m")


def test_a_window_shorter_than_every_default_hop_needs_one_of_its_own():
    with pytest.raises(DefinitionError, match=r'window "500ms": .* give it one, such as hop='):
        window("500ms")
    assert window("500ms", hop="100ms").hop == 100


def test_a_hop_for_a_window_without_end_is_refused():
    with pytest.raises(DefinitionError, match="takes no hop"):
        window("lifetime", hop="1h")


TIMES = st.integers(-(10**15), 10**15)


@given(TIMES, TIMES, st.integers(1, 10**9), st.sampled_from(HOPS))
def test_tiles_never_miss_an_event_and_over_cover_by_less_than_a_hop(as_of, time, length, hop):
    covered = first_tile(as_of, length, hop) <= time // hop <= as_of // hop
    if as_of - length < time <= as_of:
        assert covered
    if covered:
        assert as_of - length - hop < time
