"""Numbers that naive arithmetic gets wrong, in each kind of window."""

from __future__ import annotations

import pytest

from featurestore import Slope, last, session, window
from tests.featurestore.helpers import NOON, do, event, made, numbered, read, state_of

#: Windows that hold all that came within a few seconds, by what they keep.
KINDS = {
    "one tile": window("1h", hop="1h"),
    "tiles": window("10s", hop="1s"),
    "delayed tiles": window("1h", delay="1s"),
    "lifetime": window("lifetime"),
    "exact": window("10s", exact=True),
    "delayed exact": window("10s", exact=True, delay="1s"),
    "last": last(10_000),
    "session": session("5s"),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
NEAR = 5_000
"""As of so long after the first event all windows hold what came in the first 4 s."""


def features_of(kind, features, events, as_of=NOON + NEAR):
    """Features over one kind of window, by the names they were given."""
    state = state_of(made(features, windows=[KINDS[kind]]))
    do(state, numbered(events))
    return {name.removesuffix(f"_{KINDS[kind].label}"): value for name, value in read(state, as_of=as_of).items()}


@each_kind
def test_a_slope_over_milliseconds_is_as_good_as_one_over_hours(kind):
    events = [event(NOON + time, x=x) for time, x in [(0, 0.0), (0, 0.0), (1, 1.0)]]
    assert features_of(kind, {"slope": Slope("x")}, events) == {"slope": pytest.approx(1_000, rel=1e-12)}
