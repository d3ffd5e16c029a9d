"""The laws of the algebra, for every primitive and every finish: one kit over the compiled functions.

An accumulator is what add, merge and finish make of events. The laws that floats keep only up to rounding keep the
bounds of `closeness`; all others hold to the bit.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import (
    All,
    Any,
    Corr,
    Count,
    CountBy,
    Distinct,
    ExpDecay,
    First,
    FirstN,
    Histogram,
    Kurtosis,
    Last,
    LastN,
    Max,
    Mean,
    Min,
    Mode,
    Quantile,
    Rate,
    Skew,
    Slope,
    Std,
    Sum,
    SumBy,
    TimeSince,
    TopK,
    Var,
    col,
    last,
    oracle,
    session,
    window,
)
from featurestore.frames import lane_inputs
from featurestore.kernel import Results, finishes, folding, layout, primitives
from featurestore.plan import compiled
from featurestore.texts import Texts
from tests.featurestore.closeness import REAL, WHOLE, assert_close
from tests.featurestore.helpers import (
    NOON,
    PARTITIONS,
    SOURCE,
    bits,
    callable_part,
    do,
    event,
    frame_of,
    made,
    numbered,
    restored,
    state_of,
    stored,
    values_of,
)

add_record, merge = callable_part(folding.add_record), callable_part(folding.merge)
finish_bundle, finish_out = callable_part(finishes.finish_bundle), callable_part(finishes.finish_out)

CASES = {
    "counts": {"n": Count(), "of": Count("x"), "where": Count(where=col("i") > 0)},
    "pace": {"n": Rate()},
    "float sums": {"sum": Sum("x"), "mean": Mean("x"), "rate": Rate("x")},
    "whole sums": {"sum": Sum("i"), "mean": Mean("i"), "rate": Rate("i")},
    "float extremes": {"low": Min("x"), "high": Max("x")},
    "whole extremes": {"low": Min("i"), "high": Max("i"), "any": Any("b"), "all": All("b")},
    "float moments": {"std": Std("x"), "var": Var("x")},
    "whole moments": {"std": Std("i"), "var": Var("i")},
    "float shapes": {"skew": Skew("x"), "tails": Kurtosis("x")},
    "whole shapes": {"skew": Skew("i"), "tails": Kurtosis("i")},
    "ends": {"first": First("x"), "last": Last("i"), "since": TimeSince("x"), "begun": TimeSince("i", of="first")},
    "decays": {"hour": ExpDecay("x"), "moment": ExpDecay("i", half_life="1s"), "ones": ExpDecay()},
    "float trend": {"slope": Slope("x")},
    "whole trend": {"slope": Slope("i")},
    "pairs": {"corr": Corr("x", other="i")},
    "all of a float": {"n": Count("x"), **{a.__name__: a("x") for a in (Sum, Mean, Min, Max, Std, Var)}},
    "all of a whole": {"n": Count("i"), **{a.__name__: a("i") for a in (Sum, Mean, Min, Max, Std, Var)}},
}
#: What is no accumulator: bags, lists and texts. Their merge has its own laws, in `test_bags`.
BAGS = {
    "distinct": {"few": Distinct("s", bound=2), "many": Distinct("x"), "times": Distinct("at", bound=5)},
    "quantiles": {"half": Quantile("x"), "most": Quantile("i", q=0.9), "edges": Histogram("x", edges=[-1, 0, 1e9])},
    "ranks": {"top": TopK("s", k=2, bound=2), "mode": Mode("x", bound=3), "all": TopK("i")},
    "categories": {"by": CountBy("s", bound=2), "flags": CountBy("b"), "rest": CountBy("i", bound=1, other="")},
    "sums by category": {"x": SumBy("x", by="s", bound=2), "i": SumBy("i", by="b"), "n": SumBy("b", by="s")},
    "lists": {"first": FirstN("s", n=2), "last": LastN("x", n=3), "times": LastN("at", n=9), "i": FirstN("i", n=1)},
    "texts": {"first": First("s"), "last": Last("s", where=col("i") > 0), "n": Count("s")},
}
#: What floats only come near to; the rest is exact.
ROUNDED = (Mean, Std, Var, Rate, Skew, Kurtosis, ExpDecay, Slope, Corr)
ALL = CASES | BAGS
TRACKS = {
    "tiles": ["5s", window("1m", hop="7s"), window("10s", delay="5s")],
    "a lifetime": ["lifetime"],
    "exact events": [window("5s", exact=True), window("20s", exact=True, delay="3s")],
    "last events": [last(1), last(5)],
    "sessions": [session("1s"), session("4s")],
}

TAME = st.floats(-1e3, 1e3).map(lambda value: round(value, 3)) | st.just(-0.0)


@st.composite
def histories(draw):
    """Events in order of time, some without a value."""
    numbers, whole = draw(st.sampled_from([(TAME, st.integers(-9, 9)), (REAL, WHOLE)]))
    steps = draw(st.lists(st.sampled_from([0, 1, 1_000, 3_600_000]), max_size=12))
    times = NOON + np.cumsum(steps, dtype=np.int64)
    values = st.fixed_dictionaries({"x": st.none() | numbers, "i": st.none() | whole, "b": st.none() | st.booleans()})
    return numbered(event(int(time), **draw(values)) for time in times)


class Algebra:
    """The accumulators of one exact window as values, which are folded, merged and finished by the kernel."""

    def __init__(self, features):
        self.plan = compiled(made(features, windows=[window("1h", exact=True)]))
        self.words = self.plan.memory(1, [1])
        self.reals = self.words.view(np.float64)
        self.track, self.group = self.words[layout.TRACKS], self.words[layout.GROUPS]
        self.size, self.free = int(self.words[self.track + layout.ACC]), int(self.words[layout.USED])

    def put(self, slot, words):
        """Lay words down where memory is free; their address."""
        at = self.free + slot * self.size
        self.words[at : at + len(words)] = words
        return at

    def got(self, at):
        return self.words[at : at + self.size].copy()

    @property
    def empty(self):
        return np.zeros(self.size, np.int64)

    def folded(self, events):
        """An empty accumulator with the events added one by one."""
        inputs, at = lane_inputs(self.plan, frame_of(SOURCE, events), Texts()), self.put(0, self.empty)
        lanes = list(self.plan.track_lanes[0])
        for row, each in enumerate(events):
            mask = sum(1 << place for place, lane in enumerate(lanes) if inputs.valid[lane, row])
            record = self.put(1, [each["_time"], mask, *inputs.words[lanes, row]])
            add_record(self.words, self.reals, self.track, at, record)
        return self.got(at)

    def merged(self, first, *others):
        to = self.put(0, first)
        for other in others:
            merge(self.words, self.reals, self.track, to, to, self.put(1, other))
        return self.got(to)

    def merged_elsewhere(self, first, second):
        """What is merged where nothing of either lies, and what is left of these."""
        to, a, b = self.put(2, np.full(self.size, 7, np.int64)), self.put(0, first), self.put(1, second)
        merge(self.words, self.reals, self.track, to, a, b)
        return self.got(to), self.got(a), self.got(b)

    def finished(self, accumulator, before=None):
        """Features by name, asked for a minute after the last event; with `before` by bundles of the two at once."""
        count = len(self.plan.outputs)
        words, valid = np.zeros((count, 1), np.int64), np.ones((count, 1), np.bool_)
        results = Results(
            words, words.view(np.float64), valid, np.zeros(1, np.int64), np.zeros(1, np.int8), np.zeros(1, np.int64)
        )
        at, closed = self.put(0, accumulator), np.int64(0 if before is None else self.put(1, before))
        ends = self.words[self.group + layout.FIRST_OUT], self.words[self.group + layout.END_OUT]
        for out in range(*ends, layout.OUT_WORDS):
            if closed:
                finish_bundle(self.words, self.reals, out, closed, at, results, 0)
            else:
                finish_out(self.words, self.reals, out, at, NOON + 60_000_000, results, 0)
        return values_of(self.plan, results, 0)

    def assert_near(self, one, other, events):
        """Both say the same: exactly, where nothing is rounded."""
        ones, others = self.finished(one), self.finished(other)
        for feature in self.plan.outputs:
            got, want = ones[feature.name], others[feature.name]
            floats = feature.view.source.types.get(feature.aggregate.column) == "float"
            if isinstance(feature.aggregate, ROUNDED) or (isinstance(feature.aggregate, Sum) and floats):
                values = [value for value in oracle.inputs(feature, events) if value is not None]
                assert_close(got, want, feature, values)
            else:
                assert repr(got) == repr(want), feature.name  # tells 0.0 from -0.0


algebra_of = cache(lambda name: Algebra(CASES[name]))
laws = pytest.mark.parametrize("name", CASES)


def test_the_kit_has_every_primitive_and_every_finish():
    plans = [algebra_of(name).plan for name in CASES]
    assert {row[layout.CODE] for plan in plans for row in plan.ops} == set(primitives.WORDS)
    codes = {row[layout.CODE] for plan in plans for row in plan.outs}
    assert codes == set(range(finishes.COUNT, finishes.BUNDLE_INT + 1))


@laws
@settings(max_examples=50)
@given(events=histories())
def test_merging_with_nothing_changes_no_bit(name, events):
    algebra = algebra_of(name)
    made_of = algebra.folded(events)
    assert algebra.merged(algebra.empty, made_of).tolist() == made_of.tolist()
    assert algebra.merged(made_of, algebra.empty).tolist() == made_of.tolist()


@laws
@settings(max_examples=100)
@given(events=histories(), end=st.integers(0, 12))
def test_merging_elsewhere_gives_the_same_bits_and_leaves_both_as_they_are(name, events, end):
    algebra = algebra_of(name)
    a, b = algebra.folded(events[:end]), algebra.folded(events[end:])
    merged, left, right = algebra.merged_elsewhere(a, b)
    assert (merged[1:].tolist(), left.tolist(), right.tolist()) == (
        algebra.merged(a, b)[1:].tolist(),
        a.tolist(),
        b.tolist(),
    )


@laws
@settings(max_examples=100)
@given(events=histories(), ends=st.tuples(st.integers(0, 12), st.integers(0, 12)))
def test_merging_is_associative(name, events, ends):
    algebra, (first, second) = algebra_of(name), sorted(ends)
    a, b, c = (algebra.folded(part) for part in (events[:first], events[first:second], events[second:]))
    left, right = algebra.merged(a, b, c), algebra.merged(a, algebra.merged(b, c))
    algebra.assert_near(left, right, events)
    algebra.assert_near(left, algebra.folded(events), events)


@laws
@settings(max_examples=100)
@given(events=histories())
def test_adding_an_event_is_merging_what_it_makes_alone(name, events):
    algebra = algebra_of(name)
    alone = [algebra.folded([each]) for each in events]
    algebra.assert_near(algebra.folded(events), algebra.merged(algebra.empty, *alone), events)


@settings(max_examples=200)
@given(events=histories(), end=st.integers(0, 12))
def test_two_that_are_finished_at_once_give_the_bits_of_their_merge(events, end):
    algebra = algebra_of("all of a float")
    a, b = algebra.folded(events[:end]), algebra.folded(events[end:])
    assert repr(algebra.finished(b, before=a)) == repr(algebra.finished(algebra.merged(a, b)))


def random_events(count, seed):
    """Events of one entity, mostly on one partition, some out of order, some without a value."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.choice([0, 1, 700, 3_000, 12_000], count)) - rng.choice([0, 0, 900, 9_000], count)
    return [
        event(
            NOON + int(time),
            partition=int(rng.choice(PARTITIONS, p=[0.9, 0.05, 0.05])),
            i=None if rng.random() < 0.2 else int(rng.choice([3, -7, 2**62, 10**16 + 1])),
            x=None if rng.random() < 0.2 else float(rng.choice([rng.normal(), 1e16, -1e16, -0.0])),
            b=None if rng.random() < 0.2 else bool(rng.random() < 0.5),
            s=None if rng.random() < 0.2 else str(rng.choice(["p", "", "\u20ac" * 300, "q\0", "a text of 20 letters"])),
        )
        for time in times
    ]


def lasting(track, name):
    """The features of a case that have a meaning in the track's windows: a rate needs a length."""
    timed = track in ("tiles", "exact events")
    return {key: each for key, each in ALL[name].items() if timed or not isinstance(each, Rate)}


@pytest.mark.parametrize(("track", "name"), [(t, name) for t in TRACKS for name in ALL if lasting(t, name)])
def test_a_state_that_was_stored_and_loaded_is_the_same_to_the_bit(track, name):
    events = numbered(random_events(120, 5))
    state = state_of(made(lasting(track, name), windows=TRACKS[track]))
    do(state, events[:80])
    copy = restored(state)
    assert stored(copy) == stored(state)
    reads = [(("a",), NOON + later) for later in (0, 10**6, 10**9)]
    assert bits(copy, [*reads, *events[80:], *reads]) == bits(state, [*reads, *events[80:], *reads])
