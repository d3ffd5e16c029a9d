"""Features from history equal the oracle's, however the log is torn, cut or partitioned."""

from __future__ import annotations

import copy
import dataclasses

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch import backfill, sweeps
from batch.backfill import after_event_parts, after_events, at_rows
from batch.compare import differing
from featurestore import (
    Count,
    CountBy,
    DataError,
    Entity,
    Last,
    LastN,
    Max,
    Mean,
    Source,
    Std,
    Sum,
    SumBy,
    TopK,
    col,
    derived,
    last,
    oracle,
    session,
    view,
)
from featurestore import window as window_of
from featurestore.expressions import TYPES
from tests.featurestore.helpers import PARTITIONS, SOURCE, event, frame_of, numbered

KEY = Entity("key", key="k")
GROUP = Entity("group", key=("g", "b"))


@view(entity=KEY, source=SOURCE, windows=[window_of("20s", hop="5s")])
class Lately:
    n = Count()
    of_x = Count("x")
    spent = Sum("x", windows=["30s", "lifetime"])
    whole = Sum("i")
    mean = Mean("x")
    spread = Std("x")
    top = Max("i", windows=["7s"])
    last = Last("i")
    big = Count(where=col("i") > 0)
    share = derived(col("big_20s") / col("n_20s"))


@view(entity=GROUP, source=SOURCE, windows=["1m"])
class Grouped:
    n = Count()
    mean = Mean("x", windows=[window_of("1m", hop="10s"), "lifetime"])


@view(entity=KEY, source=SOURCE, windows=[window_of("20s", exact=True), last(3), window_of("20s", delay="7s")])
class Varied:
    n = Count()
    spent = Sum("x")
    spread = Std("x", windows=[window_of("9s", exact=True, delay="5s")])


@view(entity=KEY, source=SOURCE, windows=[session("5s"), "1m"])
class Visits:
    n = Count()
    spent = Sum("x")


@view(entity=KEY, source=SOURCE, windows=["20s", last(3)])
class Listed:
    by = CountBy("s")
    sums = SumBy("x", by="s", windows=["20s"])
    top = TopK("s", k=2)
    recent = LastN("x", n=2)
    text = Last("s")
    mean = derived(col("recent_20s").list.mean())
    of_p = derived(col("by_20s").map.get("p"))


VIEWS = [Lately, Grouped, Varied]

events_of = st.lists(
    st.builds(
        event,
        st.integers(0, 60_000),
        partition=st.integers(0, PARTITIONS - 1),
        k=st.sampled_from("ab"),
        g=st.sampled_from([1, 2, None]),
        b=st.sampled_from([True, False]),
        i=st.sampled_from([None, -3, 0, 5]),
        x=st.sampled_from([None, float("nan"), 0.1, -2.5, 3.0]),
        s=st.sampled_from([None, "p", "q"]),
    ),
    max_size=25,
).map(numbered)
arrivals_of = st.lists(st.integers(0, 60_000), min_size=25, max_size=25)
rows_of = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(-1_000, 90_000)), max_size=12)
groups_of = st.lists(
    st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([True, False]), st.integers(-1_000, 90_000)), max_size=12
)


def log_order(events):
    return sorted(events, key=lambda each: (each["_partition"], each["_offset"]))


def asked(made, rows):
    kinds = {key: TYPES[SOURCE.types[key]] for key in made.entity.keys}
    return pl.DataFrame(rows, schema={**kinds, "_time": pl.Int64}, orient="row")


def expected(made, events, row, moment):
    """The oracle's answer: of what the stream folds of the log, the events that count at the row's time."""
    *entity, time = row
    folded = [e for e, s in zip(events, oracle.statuses(made, events), strict=True) if s == oracle.FOLDED]
    counted = [e for e in folded if e[moment] <= time]
    patient = copy.copy(made)
    patient.source = dataclasses.replace(made.source, lateness="365000d")
    return oracle.features(patient, counted, tuple(entity), time)


def same(found, wanted):
    for name, value in wanted.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name
        else:
            assert found[name] == value, name


@pytest.mark.parametrize("made", VIEWS, ids=lambda made: made.name)
@pytest.mark.parametrize("mode", ["event_time", "arrival"])
@settings(max_examples=25, deadline=None)
@given(data=st.data(), events=events_of, arrivals=arrivals_of)
def test_rows_of_any_log_are_the_oracles(made, mode, data, events, arrivals):
    events = [{**each, "_timestamp": at} for each, at in zip(events, arrivals, strict=False)]
    rows = data.draw(groups_of if made is Grouped else rows_of)
    found = at_rows(made, frame_of(SOURCE, log_order(events)), asked(made, rows), mode).rows(named=True)
    moment = "_time" if mode == "event_time" else "_timestamp"
    assert len(found) == len(rows)
    for row, answer in zip(rows, found, strict=True):
        effective, wanted = expected(made, log_order(events), row, moment)
        assert answer["_effective"] == effective
        same(answer, wanted)


@settings(max_examples=25, deadline=None)
@given(events=events_of, size=st.integers(1, 30), made=st.sampled_from(VIEWS))
def test_features_after_events_do_not_depend_on_where_the_log_is_cut(events, size, made):
    frame = frame_of(SOURCE, log_order(events))
    whole = after_events(made, frame)
    parts = [part for part in after_event_parts(made, frame, size) if part is not None]
    assert (pl.concat(parts) if parts else whole).equals(whole)


@settings(max_examples=25, deadline=None)
@given(events=events_of, made=st.sampled_from(VIEWS), step=st.integers(2, 4))
def test_parts_that_are_not_wanted_change_no_other(events, made, step):
    frame = frame_of(SOURCE, log_order(events))
    every = list(after_event_parts(made, frame, 3))
    some = list(after_event_parts(made, frame, 3, lambda i: i % step == 1))
    assert [part is not None for part in some] == [i % step == 1 for i in range(len(every))]
    assert all(part is None or part.equals(whole) for part, whole in zip(some, every, strict=True))


@settings(max_examples=20, deadline=None)
@given(events=events_of, made=st.sampled_from([*VIEWS, Visits]))
def test_rows_at_in_order_events_have_the_bits_of_the_stream(events, made):
    """Of one partition in time order, the last of the events of one instant saw just what a row there sees."""
    ordered = numbered(sorted(({**e, "_partition": 0} for e in events), key=lambda e: e["_time"]))
    frame = frame_of(SOURCE, ordered)
    after = after_events(made, frame).unique([*made.entity.keys, "_time"], keep="last", maintain_order=True)
    found = at_rows(made, frame, after.select(*made.entity.keys, "_time"))
    assert not any(differing(found[name], after[name]).any() for name in made.outputs)


@settings(max_examples=20, deadline=None)
@given(events=events_of, rows=rows_of, made=st.sampled_from([Lately, Listed]))
def test_small_steps_and_few_copies_at_a_time_give_the_same(events, rows, made):
    frame = frame_of(SOURCE, log_order(events))
    whole = at_rows(made, frame, asked(made, rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backfill, "STEPS", 3)
        patch.setattr(sweeps, "_SWEPT", 3)
        patch.setattr(sweeps, "_COPIES", 2)
        assert at_rows(made, frame, asked(made, rows)).to_dicts() == whole.to_dicts()


def test_sessions_of_events_out_of_order_are_refused_but_as_they_arrived():
    events = numbered([event(0), event(10_000), event(4_000)])
    rows = asked(Visits, [("a", 10_000)])
    with pytest.raises(DataError, match=r'depend on the order .*use mode "arrival"'):
        at_rows(Visits, frame_of(SOURCE, events), rows)
    arrived = [{**each, "_timestamp": 10_000 + each["_offset"]} for each in events]
    rows = asked(Visits, [("a", 10_002)])
    (row,) = at_rows(Visits, frame_of(SOURCE, arrived), rows, "arrival").rows(named=True)
    after = after_events(Visits, frame_of(SOURCE, arrived)).rows(named=True)[-1]
    assert row["n_session_5s"] == after["n_session_5s"] == 1


def test_a_record_that_came_after_newer_ones_counts_at_its_own_time():
    events = frame_of(SOURCE, numbered([event(1_000, x=1.0), event(9_000, x=2.0), event(5_000, x=4.0)]))
    found = at_rows(Lately, events, asked(Lately, [("a", 4_999), ("a", 5_000), ("a", 9_000)]))
    assert found["n_20s"].to_list() == [1, 2, 3]
    assert found["spent_30s"].to_list() == [1.0, 5.0, 7.0]


def test_what_had_arrived_is_read_as_online_served_it():
    late_record = {**event(5_000, x=4.0), "_timestamp": 20_000}
    events = frame_of(SOURCE, numbered([event(1_000, x=1.0), event(9_000, x=2.0), late_record]))
    found = at_rows(Lately, events, asked(Lately, [("a", 9_500), ("a", 19_999), ("a", 20_000)]), "arrival")
    assert found["spent_30s"].to_list() == [3.0, 3.0, 7.0]


def test_a_record_from_ahead_moves_the_effective_time_of_what_had_arrived():
    ahead = {**event(9_000), "_timestamp": 8_000}
    found = at_rows(Lately, frame_of(SOURCE, numbered([ahead])), asked(Lately, [("a", 8_500)]), "arrival")
    assert found["_effective"].item() == 9_000
    assert found["n_20s"].item() == 1


def test_what_the_stream_calls_late_counts_for_no_row():
    made = view(entity=KEY, source=SOURCE, windows=["20s"])(type("Short", (), {"n": Count()}))
    events = frame_of(SOURCE, numbered([event(1_000), event(100_000, k="b"), event(2_000)]))
    assert at_rows(made, events, asked(made, [("a", 3_000)]))["n_20s"].item() == 1


def test_unknown_entities_and_missing_keys():
    events = frame_of(SOURCE, numbered([event(1_000, x=1.0)]))
    unknown, keyless = at_rows(Lately, events, asked(Lately, [("z", 2_000), (None, 2_000)])).rows(named=True)
    assert (unknown["n_20s"], unknown["spent_30s"], unknown["mean_20s"], unknown["last_20s"]) == (0, 0.0, None, None)
    assert {keyless[name] for name in Lately.outputs} == {None}


def test_rows_without_a_key_see_no_events_without_one_however_these_came():
    events = numbered([event(5_000, g=None, b=True), event(1_000, g=None, b=True), event(3_000, b=True)])
    rows = asked(Grouped, [(None, True, 2_000), (None, True, 9_000), (1, True, 9_000)])
    found = at_rows(Grouped, frame_of(SOURCE, events), rows)
    assert found["_effective"].to_list() == [2_000, 9_000, 9_000]
    assert found["n_1m"].to_list() == [None, None, 1]


def test_rows_keep_their_order_and_their_other_columns():
    events = frame_of(SOURCE, numbered([event(1_000), event(2_000)]))
    rows = pl.DataFrame({"note": ["z", "y", "x"], "k": ["a", "a", "a"], "at": [2_000, 500, 2_000]})
    found = at_rows(Lately, events, rows)
    assert found["note"].to_list() == ["z", "y", "x"]
    assert found["n_20s"].to_list() == [2, 0, 2]


def test_the_time_may_be_a_datetime_under_any_name():
    events = frame_of(SOURCE, numbered([event(86_400_000)]))
    rows = pl.DataFrame({"k": ["a"], "when": ["1970-01-02T00:00:00"]}).with_columns(pl.col("when").str.to_datetime())
    assert at_rows(Lately, events, rows)["n_20s"].item() == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"k": ["a"], "_time": [None]}, "'_time' has nulls"),
        ({"k": ["a"], "x": [1], "y": [2]}, "which column of the rows is the time"),
        ({"_time": [1], "at": [2]}, "no column 'k'"),
        ({"k": ["a"], "_time": ["soon"]}, "do not have the types"),
        ({"k": ["a"], "_time": [1], "n_20s": [1]}, "already have columns that are features of lately: n_20s"),
    ],
)
def test_rows_that_cannot_be_used_say_why(rows, message):
    with pytest.raises(DataError, match=message):
        at_rows(Lately, frame_of(SOURCE, []), pl.DataFrame(rows))


def test_no_events_give_no_rows_but_every_column():
    found = after_events(Lately, frame_of(SOURCE, []))
    assert found.columns == ["_partition", "_offset", "_time", "k", *Lately.outputs]
    assert len(found) == 0


def test_events_that_the_stream_refuses_have_no_row():
    source = Source("sums", schema={"k": str, "i": int, "at": int}, event_time="at", key="k")
    made = view(entity=KEY, source=source, windows=["1m"])(type("Sums", (), {"s": Sum("i")}))
    meta = {"_partition": 0, "k": "a"}
    rows = [
        {**meta, "i": i, "at": 1, "_time": 1, "_timestamp": 1, "_offset": o} for o, i in enumerate([2**62, 2**62, 1])
    ]
    events = frame_of(source, rows)
    assert after_events(made, events)["_offset"].to_list() == [0, 2]
    assert at_rows(made, events, pl.DataFrame({"k": ["a"], "at": [5]}))["s_1m"].item() == 2**62 + 1


LISTED = {
    "by_20s": pl.Map(pl.String(), pl.Int64()),
    "by_last_3": pl.Map(pl.String(), pl.Int64()),
    "sums_20s": pl.Map(pl.String(), pl.Float64()),
    "top_20s": pl.List(pl.Struct({"value": pl.String(), "count": pl.Int64()})),
    "top_last_3": pl.List(pl.Struct({"value": pl.String(), "count": pl.Int64()})),
    "recent_20s": pl.List(pl.Float64()),
    "recent_last_3": pl.List(pl.Float64()),
    "text_20s": pl.String(),
    "text_last_3": pl.String(),
    "mean": pl.Float64(),
    "of_p": pl.Int64(),
}


def test_lists_and_maps_have_their_types_and_are_the_oracles_in_both_kinds_of_history():
    texts = ["p", "q", None, "p", "r", "p"]
    events = numbered(event(1_000 * n, partition=n % 2, s=s, x=n / 4) for n, s in enumerate(texts))
    frame = frame_of(SOURCE, log_order(events))
    after = after_events(Listed, frame).sort("_time")
    rows = at_rows(Listed, frame, after.select("k", "_time"))
    for found in (after, rows, after_events(Listed, frame[:0])):
        assert dict(found.select(*Listed.outputs).schema) == LISTED
    assert [name for name in LISTED if differing(after[name], rows[name]).any()] == []
    for row in after.iter_rows(named=True):
        seen = [each for each in events if each["_time"] <= row["_time"]]
        _, want = oracle.features(Listed, seen, ("a",), row["_time"])
        same({name: row[name] for name in want}, want)
        assert row["mean"] == sum(row["recent_20s"]) / len(row["recent_20s"])
        assert row["of_p"] == want["by_20s"].get("p")
