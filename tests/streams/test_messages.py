from __future__ import annotations

import json
from itertools import pairwise

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import Count, Entity, Source, view
from featurestore.errors import DataError
from featurestore.predictions import TIMEOUT, decode_prediction
from streams.messages import (
    MESSAGE_BYTES,
    Record,
    feature_messages,
    feature_table,
    late,
    prediction_messages,
    prediction_table,
    rejected,
)

SOURCE = Source("visits", schema={"who": str, "at": "timestamp[ms]"}, event_time="at", key="who")


@view(entity=Entity("who", "who"), source=SOURCE, windows=["1m"])
class Visits:
    """Counts visits."""

    n = Count()


def features(places, who="w"):
    """A view's output at (partition, offset)s."""
    columns = {"_partition": [p for p, _ in places], "_offset": [o for _, o in places]}
    frame = pl.DataFrame(columns, schema={"_partition": pl.Int32, "_offset": pl.Int64})
    time = (pl.col("_offset") * 10).alias("_time")
    return frame.with_columns(time, pl.lit(who).alias("who"), pl.col("_offset").alias("n_1m"))


def prediction(**changes):
    row = {"id": "a", "_effective": 7, "_partition": 1, "_offset": 5, "_time": 6, "visits:n_1m": 2.0, "amount": None}
    row |= {"probability": 0.25, "prediction": False, "model_version": 3, "variant": "champion", **changes}
    return pl.DataFrame([row], schema_overrides={"id": pl.String, "amount": pl.Float64})


def test_features_come_with_the_offsets_that_they_cover():
    frame = features([(1, 4), (0, 7), (1, 2), (0, 9)])
    spans = {("visits", 0): (5, 12), ("visits", 1): (0, 5), ("visits", 2): (3, 4)}
    messages = list(feature_messages(Visits, frame, spans))
    assert [(m.topic, m.partition, m.key) for m in messages] == [("features.visits", p, None) for p in range(3)]
    tables = [feature_table(message.value) for message in messages]
    assert [table["_offset"].to_pylist() for table, _, _ in tables] == [[7, 9], [2, 4], []]
    assert [(start, end) for _, start, end in tables] == [(5, 12), (0, 5), (3, 4)]
    assert tables[0][0].column_names == ["_partition", "_offset", "_time", "who", "n_1m"]
    assert pa.ipc.open_stream(messages[0].value).schema.metadata == {b"start": b"5", b"next": b"12"}


def test_spans_without_any_event_are_told_too():
    [message] = feature_messages(Visits, pl.DataFrame(), {("visits", 2): (3, 9)})
    table, start, end = feature_table(message.value)
    assert (table.num_rows, table.column_names, start, end) == (0, ["_partition", "_offset", "_time"], 3, 9)


@given(st.lists(st.integers(1, 3), max_size=30), st.sampled_from([1, 40, 250]))
def test_messages_tile_a_span_however_they_are_cut_and_stay_small(steps, length):
    offsets = [sum(steps[: i + 1]) for i in range(len(steps))]
    frame = features([(0, offset) for offset in offsets], "w" * length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streams.messages.MESSAGE_BYTES", 500)
        messages = list(feature_messages(Visits, frame, {("visits", 0): (0, sum(steps) + 5)}))
    tables = [feature_table(message.value) for message in messages]
    assert [offset for table, _, _ in tables for offset in table["_offset"].to_pylist()] == offsets
    assert all(one[2] == other[1] for one, other in pairwise(tables))
    assert (tables[0][1], tables[-1][2]) == (0, sum(steps) + 5)
    assert all(table.nbytes <= 500 or table.num_rows == 1 for table, _, _ in tables)


def test_a_chunk_of_long_keys_stays_below_what_brokers_take():
    frame = features([(0, offset) for offset in range(8_000)], "w" * 256)
    messages = list(feature_messages(Visits, frame, {("visits", 0): (0, 8_000)}))
    assert len(messages) > 1
    assert max(len(message.value) for message in messages) < 1.2 * MESSAGE_BYTES


def test_a_prediction_is_json_with_its_event_and_all_that_it_was_made_from():
    [message] = prediction_messages("risk", prediction())
    assert (message.topic, message.partition, message.key) == ("predictions.risk", 1, b"a")
    assert json.loads(message.value) == {
        "id": "a",
        "event_time": 6,
        "prediction": False,
        "probabilities": {"false": 0.75, "true": 0.25},
        "model_version": 3,
        "variant": "champion",
        "features": {"visits:n_1m": 2.0, "amount": None},
        "effective_time": 7,
        "offset": 5,
    }


def test_an_event_without_an_answer_is_told_with_its_features_and_why():
    none = {"probability": None, "prediction": None, "model_version": None, "_error": TIMEOUT}
    frame = pl.concat([prediction(**none), prediction(_error=None)], how="vertical_relaxed")
    told, made = prediction_messages("risk", frame)
    expected = json.loads(next(prediction_messages("risk", prediction())).value)
    assert json.loads(made.value) == {**expected, "error": None}
    assert json.loads(told.value) == expected | {
        "prediction": None,
        "probabilities": None,
        "model_version": None,
        "error": "timeout",
    }
    [first, second] = prediction_table([told.value, made.value], 1, ["visits:n_1m"]).to_pylist()
    assert (first["prediction"], first["probability"], first["model_version"], first["visits:n_1m"]) == (*[None] * 3, 2)
    assert second["probability"] == 0.25


def test_a_prediction_on_an_event_without_an_id_has_none():
    [message] = prediction_messages("risk", prediction(id=None))
    assert message.key is None
    assert decode_prediction(message.value).id is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_has_not_are_null(value):
    [message] = prediction_messages("risk", prediction(amount=value))
    assert decode_prediction(message.value).features["amount"] is None


def test_ids_of_any_text_survive():
    name = 'a"\\\n\u0000{}:é😀'
    [message] = prediction_messages("risk", prediction(id=name))
    assert decode_prediction(message.value).id == name
    assert message.key == name.encode()


def test_predictions_are_read_back_as_columns():
    frame = pl.concat([prediction(), prediction(_offset=6, id=None, amount=0.1)])
    values = [message.value for message in prediction_messages("risk", frame)]
    table = prediction_table(values, 1, ["visits:n_1m", "amount"])
    assert table.to_pylist()[1] == {
        "_partition": 1,
        "_offset": 6,
        "_time": 6,
        "_effective": 7,
        "id": None,
        "prediction": False,
        "probability": 0.25,
        "model_version": 3,
        "variant": "champion",
        "visits:n_1m": 2.0,
        "amount": 0.1,
    }
    with pytest.raises(DataError, match="partition 1"):
        prediction_table([b"{}"], 1, [])


def test_a_refused_record_keeps_its_first_four_kilobytes_and_a_late_one_all():
    record = Record("visits", 2, 77, b"x" * 5_000)
    message = rejected(record, "type", "no number")
    assert (message.topic, message.partition, len(message.value)) == ("visits.dlq", 2, 4_096)
    place = {"topic": b"visits", "partition": b"2", "offset": b"77"}
    assert message.headers == {"error": b"type", "detail": b"no number", "size": b"5000", **place}
    assert rejected(Record("visits", 0, 1, None), "tombstone", "").value is None
    assert rejected(Record("visits", 0, 1, b"{}", b"k" * 4_096), "type", "").key == b"k" * 4_096
    assert rejected(Record("visits", 0, 1, b"{}", b"k" * 4_097), "type", "").key is None
    headers = [("a", b"1"), ("error", b"x"), ("long", b"k" * 4_097)]
    message = rejected(Record("visits", 0, 1, b"{}", headers=headers), "type", "")
    assert {name: message.headers[name] for name in message.headers if "." in name} == {
        "header.a": b"1",
        "header.error": b"x",
    }
    assert (message.headers["error"], message.headers["size"]) == (b"type", b"4099")  # so that it is not sent back
    message = late(record, "older than every window of visits@1")
    assert (message.topic, message.partition, message.value) == ("visits.late", 2, record.value)
    assert message.headers == {"error": b"late", "detail": b"older than every window of visits@1", **place}
