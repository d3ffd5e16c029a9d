"""Frames into arrays and back: nothing is guessed, nulls and NaN are told from values."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import Count, DataError, Entity, Last, Max, Source, Sum, col, derived, view
from featurestore.frames import (
    META,
    checked_events,
    empty_frame,
    entity_codes,
    event_frame,
    feature_frame,
    lane_inputs,
)
from featurestore.keys import encode_entity
from featurestore.plan import compiled
from featurestore.texts import Texts
from tests.featurestore.helpers import SOURCE, do, event, frame_of, numbered, state_of

TRIPS = Source(
    "trips",
    schema={"car": str, "km": int, "fee": float, "paid": bool, "at": "timestamp[ms]"},
    event_time="at",
    key="car",
    derive={"cents": col("fee") * 100},
)
NEW_YEAR = 1_577_836_800_000  # 2020-01-01


def made(**features):
    return view(entity=Entity("key", key="k"), source=SOURCE, windows=["5m"])(type("Made", (), features))


def trips(**columns):
    rows = {"car": ["a", "b"], "km": [1, None], "fee": [0.5, None], "paid": [True, None], "at": [5, 6], **columns}
    return pl.DataFrame(rows)


def test_an_event_frame_has_the_sources_columns_derived_ones_and_its_own():
    frame = event_frame(TRIPS, trips(), 3, np.array([7, 9]), np.array([70, 90]))
    assert frame.columns == [*TRIPS.schema, *META, "cents"]
    assert frame.select(*META, "cents").rows() == [(3, 7, 70, 5, 50.0), (3, 9, 90, 6, None)]
    assert set(empty_frame(TRIPS).schema.items()) == set(frame.schema.items())


def test_null_and_nan_inputs_are_invalid_and_so_is_what_where_does_not_pass():
    plan = compiled(made(x=Sum("x"), i=Max("i"), s=Count("s"), big=Count(where=col("x") > 1), all=Count()))
    events = [event(0, x=2.0, i=3, s="p"), event(0, x=float("nan")), event(0), event(0, x=0.5, i=-1, s="")]
    inputs = lane_inputs(plan, frame_of(SOURCE, numbered(events)), Texts())
    valid = {lane.column or str(lane.where): row.tolist() for lane, row in zip(plan.lanes, inputs.valid, strict=True)}
    assert valid["x"] == valid["i"] == valid["s"] == [True, False, False, True]
    assert valid["None"] == [True] * 4
    assert inputs.valid[3].tolist() == [True, True, False, False]  # to Polars, as to SQL, NaN is above every number
    assert inputs.words[1].tolist() == [3, 0, 0, -1]


def test_no_events_give_no_inputs():
    plan = compiled(made(x=Sum("x", where=pl.lit(value=True)), all=Count()))
    assert lane_inputs(plan, frame_of(SOURCE, []), Texts()).valid.shape == (2, 0)


KEYS = st.lists(st.tuples(st.none() | st.sampled_from(["a", "b", "é,"]), st.none() | st.integers(-2, 2), st.booleans()))


@settings(deadline=None)
@given(KEYS)
def test_entity_codes_point_to_the_encoded_keys_of_their_rows(rows):
    frame = pl.DataFrame(rows, schema={"s": pl.String, "i": pl.Int64, "b": pl.Boolean}, orient="row")
    codes, keys = entity_codes(frame, ["s", "i", "b"])
    assert [None if code < 0 else keys[code] for code in codes.tolist()] == [
        None if None in row else encode_entity(row) for row in rows
    ]
    assert len(set(keys)) == len(keys)


@given(st.lists(st.integers(-5, 5) | st.sampled_from([-(2**63), 2**63 - 1, 2**62]), max_size=40))
def test_one_column_of_integers_is_numbered_by_value_however_far_apart_they_lie(values):
    codes, keys = entity_codes(pl.DataFrame({"i": values}, schema={"i": pl.Int64}), ["i"])
    assert [keys[code] for code in codes.tolist()] == [encode_entity((value,)) for value in values]
    assert len(set(keys)) == len(keys) == len(set(values))


def test_entities_of_many_wide_columns_are_told_apart():
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({f"k{i}": rng.permutation(3_000) for i in range(6)})
    codes, keys = entity_codes(frame, frame.columns)
    assert [keys[code] for code in codes.tolist()] == [encode_entity(row) for row in frame.rows()]


def test_features_come_out_as_columns_with_derived_ones_last():
    chosen = made(
        b=Last("b"), share=derived(col("x_5m") / col("n_5m")), x=Sum("x"), n=Count(), i=Max("i"), at=Max("at")
    )
    state = state_of(chosen)
    results = do(state, numbered([event(0, b=True, x=3.0, i=-1), event(1, b=False, i=2), event(2, k="b")]))
    frame = feature_frame(state.plan, results, np.array([2, 1]), state.texts)
    assert frame.columns == [*chosen.outputs] == ["b_5m", "x_5m", "n_5m", "i_5m", "at_5m", "share"]
    assert frame.dtypes == [pl.Boolean, pl.Float64, pl.Int64, pl.Int64, pl.Int64, pl.Float64]
    assert frame.rows() == [(None, 0.0, 1, None, 2, 0.0), (False, 3.0, 2, 2, 1, 1.5)]
    assert feature_frame(state.plan, results, np.array([], np.int64), state.texts).schema == frame.schema


def test_events_of_a_file_are_one_partition_in_their_order():
    frame = checked_events(TRIPS, trips())
    assert frame.columns == [*TRIPS.schema, *META, "cents"]
    assert frame.select(*META).rows() == [(0, 0, 5, 5), (0, 1, 6, 6)]


def test_events_with_partitions_and_offsets_are_brought_into_their_order():
    frame = checked_events(TRIPS, trips(_partition=[1, 0], _offset=[3, 8], _timestamp=[9, 9], extra=[0, 0]))
    assert frame.select("car", *META).rows() == [("b", 0, 8, 9, 6), ("a", 1, 3, 9, 5)]
    assert checked_events(TRIPS, trips(_offset=[3, 1]))["_offset"].to_list() == [1, 3]
    assert checked_events(TRIPS, trips(_partition=[3, 1]))["_partition"].to_list() == [1, 3]


@pytest.mark.parametrize(
    "dtype", [pl.Datetime("us"), pl.Datetime("ns"), pl.Datetime("ms", "America/New_York"), pl.Date], ids=str
)
def test_dates_and_times_of_any_unit_become_milliseconds(dtype):
    at = pl.Series([dt.datetime(2020, 1, 1, tzinfo=dt.UTC)] * 2).cast(dtype)
    frame = checked_events(TRIPS, trips(at=at, _timestamp=at))
    assert frame["_time"].to_list() == frame["at"].to_list() == frame["_timestamp"].to_list() == [NEW_YEAR] * 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"km": ["many", "1"]}, r"column 'km' of 'trips' should be int"),
        ({"km": [1.5, 2.0]}, r"column 'km' of 'trips' should be int: a number is not whole"),
        ({"km": [1e300, 2.0]}, r"column 'km' of 'trips' should be int"),
        ({"at": [1, None]}, r"column 'at' of 'trips' has nulls, and no event may lack it; drop those rows"),
        ({"car": ["a", None]}, r"column 'car' of 'trips' has nulls"),
    ],
)
def test_events_that_do_not_fit_are_refused_with_the_column_and_the_reason(columns, message):
    with pytest.raises(DataError, match=message):
        checked_events(TRIPS, trips(**columns))


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match="the events of 'trips' have no column 'km'; they have car, fee, paid, at"):
        checked_events(TRIPS, trips().drop("km"))


def test_whole_floats_are_integers():
    assert checked_events(TRIPS, trips(km=[2.0, None]))["km"].to_list() == [2, None]
