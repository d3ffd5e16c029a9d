"""States of an older definition and of a part folded anew are those of a full replay, to the last bit."""

from __future__ import annotations

from itertools import compress

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from batch.refolding import late_events, may_overflow, refolded
from featurestore import (
    Count,
    CountBy,
    First,
    Last,
    LastN,
    Max,
    Mean,
    Min,
    Mode,
    Rate,
    Std,
    Sum,
    TopK,
    Var,
    col,
    last,
    session,
    window,
)
from featurestore.errors import FormatError
from featurestore.grafting import grafting
from featurestore.kernel import layout
from featurestore.kernel import primitives as prim
from featurestore.plan import compiled
from tests.featurestore.helpers import (
    NOON,
    PARTITIONS,
    bits,
    do,
    event,
    frame_of,
    made,
    numbered,
    read,
    state_of,
    stored,
)
from tests.featurestore.test_engine import (
    AGGREGATES,
    BAGS,
    BOUNDED,
    CONDITIONS,
    ENTITIES,
    EVENTS,
    SOURCES,
    WINDOWS,
    some_of,
    with_length,
)


@st.composite
def changes(draw):
    """A view, a later definition of it, and events."""
    windows = draw(some_of(WINDOWS, 4))
    lengthy = with_length(windows)
    aggregate = st.tuples(st.sampled_from([*AGGREGATES, *BAGS, *BOUNDED]), st.sampled_from([None, None, *CONDITIONS]))
    pool = draw(st.lists(aggregate, min_size=2, max_size=7))
    source, entity = draw(st.sampled_from(SOURCES)), draw(st.sampled_from(ENTITIES))
    versions = []
    for _ in range(2):
        chosen = {}
        for i in draw(st.lists(st.integers(0, len(pool) - 1), min_size=1, max_size=6, unique=True)):
            (make, column), where = pool[i]
            its = draw(some_of(lengthy if make is Rate else windows, 2))
            chosen[f"f{i}"] = make(column, where=where, windows=its)
        versions.append(made(chosen, source=source, entity=entity))
    return *versions, numbered(draw(st.lists(EVENTS, max_size=25)))


def regrafted(old, new, events, *, whole=True):
    """What a store holds of the new view after a graft of the old one's states."""
    before, after = state_of(old), state_of(new)
    do(before, events)
    graft = grafting(compiled(old), compiled(new))
    made_of = refolded(graft, frame_of(new.source, events), PARTITIONS, whole=whole)
    out = {}
    for partition in range(PARTITIONS):
        if before.clock(partition) is not None:
            after.set_clock(partition, before.clock(partition))
        out[partition] = before.clock(partition), made_of.states(graft, partition, before.blobs(partition))
        for entity, blob in out[partition][1].items():
            (number,) = after.number([entity])
            after.load(int(number), partition, blob)
    return graft, after, out


@settings(max_examples=150)
@given(changes(), st.integers(0, 25))
def test_a_graft_is_a_full_replay(change, cut):
    old, new, events = change
    frame = frame_of(new.source, events)
    assume(not may_overflow(compiled(old), frame))
    assume(not may_overflow(compiled(new), frame))
    whole = state_of(new)
    do(whole, events[:cut])
    _, after, states = regrafted(old, new, events[:cut])
    assert states == stored(whole)
    assert bits(after, events[cut:]) == bits(whole, events[cut:])
    assert stored(after) == stored(whole)


@settings(max_examples=100)
@given(changes(), st.integers(0, 25), st.integers(0, 25))
def test_what_is_kept_is_right_though_history_lacks_its_beginning(change, begin, cut):
    old, new, events = change
    frames = frame_of(new.source, events[:cut]), frame_of(new.source, events[begin:cut])
    lates = [late_events(compiled(made), frames[0], PARTITIONS) for made in (old, new)]
    assume((lates[0] == lates[1]).all())
    assume((lates[1][begin:] == late_events(compiled(new), frames[1], PARTITIONS)).all())
    assume(not any(may_overflow(compiled(made), frame_of(new.source, events)) for made in (old, new)))
    whole, before, after = state_of(new), state_of(old), state_of(new)
    do(whole, events[:cut])
    do(before, events[:cut])
    graft = grafting(before.plan, after.plan)
    part = refolded(graft, frames[1], PARTITIONS, whole=False)
    for partition in range(PARTITIONS):
        if before.clock(partition) is not None:
            after.set_clock(partition, before.clock(partition))
        for entity, blob in part.states(graft, partition, before.blobs(partition)).items():
            after.load(int(after.number([entity])[0]), partition, blob)
    assert kept_bits(graft, after, events[cut:]) == kept_bits(graft, whole, events[cut:])


def kept_bits(graft, state, work):
    """All that comes of the features that are kept."""
    kept = [feature in graft.kept for feature in state.plan.outputs]
    return [
        (list(compress(words, kept)), list(compress(valid, kept)), *more) for words, valid, *more in bits(state, work)
    ]


def lacking(old, new):
    """What is folded anew: features, and by track of the part the columns and primitives that it folds."""
    graft = grafting(compiled(made(old)), compiled(made(new)))
    kept = {feature.name for feature in graft.kept}
    part = graft.part
    ops = [
        [
            (part.lanes[op[layout.LANE]].column, op[layout.CODE])
            for op in part.ops[row[layout.FIRST_OP] : row[layout.END_OP]]
        ]
        for row in (part.tracks if part else ())
    ]
    return [name for name in graft.new.view.outputs if name not in kept], ops


def test_an_aggregate_of_a_new_column_refolds_that_column_only():
    old = {"n": Count(windows=["1h", "5m"]), "t": Sum("x", windows=["1h"]), "f": First("s", windows=["1h"])}
    anew, ops = lacking(old, {**old, "top": Max("i", windows=["1h"])})
    assert anew == ["top_1h"]
    assert ops == [[("i", prim.MAX_INT), ("i", prim.N)]]


def test_an_aggregate_of_a_known_column_asks_for_its_count_and_no_more():
    old = {"t": Sum("x", windows=["1h"])}
    anew, ops = lacking(old, {**old, "first": First("x", windows=["1h"])})
    assert (anew, ops) == (["first_1h"], [[("x", prim.FIRST), ("x", prim.N)]])


def test_a_bundle_is_taken_apart_and_put_together():
    parts = {"t": Sum("x", windows=["1h"]), "low": Min("x", windows=["1h"]), "std": Std("x", windows=["1h"])}
    assert lacking(parts, {"mean": Mean("x", windows=["1h"]), "var": Var("x", windows=["1h"])}) == ([], [])
    assert lacking(parts, {**parts, "top": Max("x", windows=["1h"])}) == ([], [])  # a bundle has it anyway
    few = {"t": parts["t"], "low": parts["low"]}
    assert lacking(few, parts) == (["t_1h", "low_1h", "std_1h"], [[("x", prim.STATS_FLOAT)]])


def test_a_longer_window_of_the_same_hop_refolds_its_track_and_no_other():
    old = {"n": Count(windows=["1h"]), "t": Sum("x", windows=["5m"])}
    new = {"n": Count(windows=["1h", window("2h", hop="1m")]), "t": Sum("x", windows=["5m"])}
    assert lacking(old, new) == (["n_2h"], [[("", prim.N)]])  # the old tiles serve n_1h
    assert lacking(new, old) == ([], [])
    assert lacking(old, {**old, "long": Count(windows=["1d"])}) == (["long_1d"], [[("", prim.N)]])


@pytest.mark.parametrize("windows", [[window("1h", exact=True)], [last(9)]])
def test_events_are_taken_whole_or_not_at_all(windows):
    old = {"n": Count("x", windows=windows), "t": Sum("i", windows=windows)}
    assert lacking(old, {"mean": Mean("i", windows=windows)}) == ([], [])
    assert lacking(old, {**old, "f": Last("s", windows=windows)})[0] == [f"{name}_{windows[0].label}" for name in "ntf"]
    longer = [window("2h", exact=True)] if windows[0].kind == "exact" else [last(10)]
    assert lacking(old, {"t": Sum("i", windows=longer)})[0] == ["t_" + longer[0].label]
    assert lacking({"t": Sum("i", windows=longer)}, {"t": Sum("i", windows=windows)}) == ([], [])


def test_bags_and_lists_are_taken_whole_or_not_at_all():
    old = {"top": TopK("s", windows=["1h", session("5m")]), "l": LastN("x", n=3, windows=["1h"])}
    assert lacking(old, old) == ([], [])
    assert lacking(old, {**old, "mode": Mode("s", windows=["1h"])}) == ([], [])  # of the same bag
    assert lacking(old, {**old, "l": LastN("x", n=4, windows=["1h"])})[0] == ["l_1h"]
    anew, ops = lacking(old, {**old, "by": CountBy("s", windows=[session("5m")])})
    assert anew == ["by_session_5m"]
    assert ops == [[], []]  # the bag, and the sessions that tell it


def test_another_condition_is_another_input():
    old = {"n": Count(windows=["1h"], where=col("i") > 0)}
    assert lacking(old, {"n": Count(windows=["1h"], where=col("i") > 1)})[0] == ["n_1h"]
    assert lacking(old, {"m": Count(windows=["1h"], where=col("i") > 0)}) == ([], [])  # a name is no matter


def test_events_too_late_for_one_definition_only_make_their_entities_anew():
    old, new = made({"n": Count(windows=["5s"])}), made({"n": Count(windows=["5s", "lifetime"])})
    events = numbered(
        event(NOON + t, k=k) for t, k in [(0, "a"), (60_000, "b"), (1_000, "a"), (500, "c"), (60_000, "c")]
    )
    whole = state_of(new)
    do(whole, events)
    _, _, states = regrafted(old, new, events)
    assert states == stored(whole)
    _, after, states = regrafted(old, new, events, whole=False)  # the old state of a knows more than such history may
    assert read(after, ("a",)) == {"n_5s": 1, "n_lifetime": 2}
    assert states[0][1].keys() == stored(whole)[0][1].keys()


def test_what_is_kept_goes_on_where_history_lacks_its_beginning():
    old = made({"n": Count(windows=["lifetime", session("1m")]), "s": Last("s", windows=["lifetime"])})
    new = made({"n": Count(windows=["lifetime", session("1m")]), "t": Sum("x", windows=["lifetime", session("1m")])})
    events = numbered(event(NOON + 10_000 * i, k=k, x=1.0, s="p") for i, k in enumerate("aaabbaac"))
    before = state_of(old)
    do(before, events)
    graft = grafting(compiled(old), compiled(new))
    late = refolded(graft, frame_of(new.source, events[4:]), PARTITIONS, whole=False)
    states, after = late.states(graft, 0, before.blobs(0)), state_of(new)
    for entity, blob in states.items():
        after.load(int(after.number([entity])[0]), 0, blob)
    assert read(after, ("a",)) == {"n_lifetime": 5, "n_session_1m": 5, "t_lifetime": 2.0, "t_session_1m": 2.0}
    assert read(after, ("b",))["t_lifetime"] == 1.0
    assert read(after, ("c",))["n_lifetime"] == 1


def test_an_old_state_that_expired_leaves_what_is_new():
    old, new = (
        made({"n": Count(windows=["5s"])}),
        made({"n": Count(windows=["5s"]), "t": Sum("x", windows=["lifetime"])}),
    )
    graft = grafting(compiled(old), compiled(new))
    part = refolded(graft, frame_of(new.source, numbered([event(NOON, x=2.0)])), PARTITIONS, whole=True)
    state = state_of(new)
    state.load(int(state.number([b"sa"])[0]), 0, part.states(graft, 0, {})[b"sa"])
    assert read(state) == {"n_5s": 0, "t_lifetime": 2.0}


@pytest.mark.parametrize("damage", [lambda blob: blob[:8], lambda blob: b"\0" * 40, lambda blob: blob[:-8]])
def test_a_damaged_state_is_refused(damage):
    chosen = made({"n": Count(windows=["5s"])})
    state = state_of(chosen)
    do(state, [event(NOON)])
    graft = grafting(state.plan, compiled(made({"n": Count(windows=["5s"]), "t": Sum("x", windows=["5s"])})))
    with pytest.raises(FormatError, match="nothing can be taken from it: with the whole log"):
        graft.state(damage(state.blobs(0)[b"sa"]), None)
