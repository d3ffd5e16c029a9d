from __future__ import annotations

import csv
import io
import json
import math

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import DefinitionError, Source
from featurestore.decoding import MAX_KEY, MAX_TIME
from featurestore.formats import decode
from featurestore.sources import FORMATS

SCHEMA = {"id": str, "at": "timestamp[ms]", "n": int, "x": float, "ok": bool, "note": str}
GOOD = {"id": "a", "at": 1_700_000_000_000, "n": 1, "x": 1.5, "ok": True, "note": "hi"}
LONE = {"id": "b", "at": 5, "n": None, "x": None, "ok": None, "note": None}


def source(kind, **options):
    return Source("payments", schema=SCHEMA, event_time="at", key="id", format=kind, **options)


def line(event):
    out = io.StringIO()
    texts = ["" if v is None else str(v).lower() if isinstance(v, bool) else v for v in event.values()]
    csv.writer(out, lineterminator="").writerow(texts)
    return out.getvalue().encode()


def arrow(*events, **types):
    known = {"at": pa.int64(), "n": pa.int64(), "x": pa.float64(), "ok": pa.bool_(), "note": pa.string()} | types
    names = dict.fromkeys(name for event in events for name in event)
    table = pa.table({n: pa.array([e.get(n) for e in events], known.get(n)) for n in names})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


ENCODERS = {
    "json": lambda event: json.dumps(event).encode(),
    "msgpack": msgspec.msgpack.encode,
    "csv": line,
    "arrow": arrow,
}
NAMED = ["json", "msgpack", "arrow"]

text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=9)
events = st.fixed_dictionaries(
    {
        "id": text,
        "at": st.integers(0, MAX_TIME),
        "n": st.none() | st.integers(-(2**63), 2**63 - 1),
        "x": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "ok": st.none() | st.booleans(),
        "note": st.none() | text,
    }
)


@pytest.mark.parametrize("kind", ENCODERS)
@given(st.lists(events, max_size=9))
def test_the_same_events_give_the_same_columns_in_every_format(kind, rows):
    rows = [{name: row[name] for name in SCHEMA} for row in rows]
    decoded = decode(source(kind), [ENCODERS[kind](row) for row in rows])
    assert decoded.rejects == []
    assert decoded.rows.tolist() == list(range(len(rows)))
    assert decoded.frame.schema == decode(source("json"), []).frame.schema
    assert repr(decoded.frame.to_dicts()) == repr(rows)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"id": None}, "null"),
        ({"at": None}, "null"),
        ({"id": "k" * (MAX_KEY + 1)}, "oversized"),
        ({"at": -1}, "range"),
        ({"at": MAX_TIME + 1}, "range"),
    ],
)
def test_a_bad_event_is_set_apart_and_its_neighbours_are_not_touched(kind, change, error):
    values = [ENCODERS[kind](each) for each in (GOOD, GOOD | change, LONE)]
    decoded = decode(source(kind), values)
    assert [(reject.row, reject.place) for reject in decoded.rejects] == [(1, 0)]
    assert decoded.rejects[0].error in {error, "missing"}  # of CSV, where nothing is null
    assert decoded.rejects[0].error == error or kind == "csv"
    assert decoded.frame.to_dicts() == [GOOD, LONE]
    assert decoded.rows.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("kind", "value", "error"),
    [
        ("msgpack", b"", "malformed"),
        ("msgpack", b"\xc1", "malformed"),
        ("msgpack", msgspec.msgpack.encode([1]), "type"),
        ("msgpack", msgspec.msgpack.encode(GOOD | {"n": 2**63}), "range"),
        ("msgpack", msgspec.msgpack.encode(GOOD | {"n": 1.0}), "type"),
        ("msgpack", msgspec.msgpack.encode(GOOD | {"x": "1"}), "type"),
        ("msgpack", msgspec.msgpack.encode(GOOD | {"x": math.inf}), "range"),
        ("msgpack", msgspec.msgpack.encode(GOOD) + b"\0", "malformed"),
        ("msgpack", b"\x91" * 5_000 + b"\0", "depth"),
        ("msgpack", msgspec.msgpack.encode(GOOD | {"note": "n" * 70_000}), "oversized"),
        ("csv", b"", "malformed"),
        ("csv", b"a,5", "malformed"),
        ("csv", b"a,5,1,1.5,true,hi,more", "malformed"),
        ("csv", b'a,5,1,1.5,true,"hi', "malformed"),
        ("csv", b"a,5,1,1.5,true,\xff", "encoding"),
        ("csv", b"a,5,1.0,1.5,true,hi", "type"),
        ("csv", b"a,5,1,nan,true,hi", "type"),
        ("csv", b"a,5,1,1e999,true,hi", "range"),
        ("csv", b"a,5,9223372036854775808,1,true,hi", "range"),
        ("csv", b"a,5,1,1.5,True,hi", "type"),
        ("csv", b"a,5,1,1.5,true,hi\nb,5,1,1.5,true,hi", "malformed"),
        ("arrow", b"", "malformed"),
        ("arrow", b"nonsense" * 9, "malformed"),
        ("arrow", arrow(GOOD)[:-60], "malformed"),
        ("arrow", arrow({"id": "a"}), "missing"),
        ("arrow", arrow(GOOD | {"x": "1"}, x=pa.string()), "type"),
        ("arrow", arrow(GOOD | {"n": 2**63}, n=pa.uint64()), "type"),
        ("arrow", arrow(GOOD | {"n": 1.0}, n=pa.float64()), "type"),
        ("arrow", arrow(GOOD | {"x": -math.inf}), "range"),
    ],
)
def test_what_no_format_allows_is_refused_with_its_reason(kind, value, error):
    decoded = decode(source(kind), [ENCODERS[kind](GOOD), value, None, ENCODERS[kind](GOOD)])
    assert [(reject.row, reject.error) for reject in decoded.rejects] == [(1, error), (2, "tombstone")]
    assert all(0 < len(reject.detail) <= 200 for reject in decoded.rejects)
    assert decoded.frame.to_dicts() == [GOOD, GOOD]


@pytest.mark.parametrize("kind", ["msgpack", "arrow"])
def test_nan_is_null_where_a_format_can_write_it(kind):
    decoded = decode(source(kind), [ENCODERS[kind](GOOD | {"x": math.nan})])
    found = decoded.frame.with_columns(pl.col("x").fill_nan(None)).to_dicts()
    assert found == [GOOD | {"x": None}]


@pytest.mark.parametrize("kind", NAMED)
def test_fields_are_found_by_their_paths_and_the_first_that_is_there_counts(kind):
    made = source(kind, fields={"x": ["payment.amount", "amount", "payment.value"], "note": "payment.info.text"})
    base = {"id": "a", "at": 5, "n": 1, "ok": True}
    rows = [
        base | {"payment": {"amount": 1.5, "info": {"text": "hi"}}, "amount": 3.0},
        base | {"amount": 2.5, "payment": {"value": 7.0, "info": None}},
        base | {"payment": None},
        base | {"more": {"deep": [1, 2]}},
    ]
    decoded = decode(made, [ENCODERS[kind](row) if kind != "arrow" else arrow_of(row) for row in rows])
    assert decoded.rejects == []
    assert decoded.frame["x"].to_list() == [1.5, 2.5, None, None]
    assert decoded.frame["note"].to_list() == ["hi", None, None, None]


def arrow_of(row):
    table = pa.Table.from_pylist([row])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_a_path_does_not_hide_what_is_wrong_with_a_json_record():
    made = source("json", fields={"x": "payment.amount"})
    values = [
        json.dumps(GOOD | {"payment": {"amount": "1"}}).encode(),
        b'{"id":"a","at":5,"payment":{"amount":NaN}}',
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b'{"id":"\xff","at":5}',
    ]
    assert [reject.error for reject in decode(made, values).rejects] == ["type", "malformed", "depth", "encoding"]


def test_a_record_of_arrow_holds_many_events_each_with_its_place():
    values = [arrow(GOOD, LONE), arrow(), arrow(LONE, GOOD | {"id": None}, GOOD), None]
    decoded = decode(source("arrow"), values[:1] + values[2:])
    assert decoded.rows.tolist() == [0, 0, 1, 1]
    assert decoded.places.tolist() == [0, 1, 0, 2]
    assert decoded.frame.to_dicts() == [GOOD, LONE, LONE, GOOD]
    assert [(*reject[:2], reject.place) for reject in decoded.rejects] == [(1, "null", 1), (2, "tombstone", 0)]


def test_arrow_s_other_types_of_the_same_things_are_taken():
    table = pa.table(
        {
            "id": pa.array(["a"]).dictionary_encode(),
            "at": pa.array([np.datetime64("2024-01-01T00:00:00.001", "us")]),
            "n": pa.array([7], pa.int16()),
            "x": pa.array([3], pa.int8()),
            "note": pa.array(["s"], pa.string_view()),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    decoded = decode(source("arrow"), [sink.getvalue().to_pybytes()])
    assert decoded.frame.row(0) == ("a", 1_704_067_200_001, 7, 3.0, None, "s")


@given(st.binary(max_size=80), st.integers(0, 10**6))
def test_damaged_arrow_is_refused_or_read_and_never_crashes(noise, at):
    value = bytearray(arrow(GOOD, LONE, GOOD))
    at %= len(value)
    value[at : at + len(noise)] = noise
    decoded = decode(source("arrow"), [bytes(value), arrow(LONE)])
    assert decoded.frame.row(-1, named=True) == LONE


def test_definitions_of_formats_and_fields_are_checked():
    with pytest.raises(DefinitionError, match=f"format must be one of {', '.join(FORMATS)}, not 'xml'"):
        source("xml")
    with pytest.raises(DefinitionError, match="there is no column 'y'"):
        source("json", fields={"y": "a.b"})
    with pytest.raises(DefinitionError, match="lines of CSV have no names"):
        source("csv", fields={"x": "a.b"})
