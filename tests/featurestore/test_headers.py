"""Columns in headers are what the same text is in a line of CSV."""

from __future__ import annotations

import json

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import DefinitionError, Source, col
from featurestore.formats import decode

KINDS = {"s": "str", "n": "int", "x": "float", "b": "bool", "t": "timestamp[ms]"}
BODY = {"key": str, "at": "timestamp[ms]"}
NAMES = {name: f"x-{name}" for name in KINDS}


def source(kinds=KINDS, **options):
    options = {"headers": {name: f"x-{name}" for name in kinds}} | options
    return Source("clicks", schema={**kinds, **BODY}, event_time="at", key="key", **options)


def body(key="k"):
    return json.dumps({"key": key, "at": 5, "s": "of the record"}).encode()


def found(headers, made=None, values=None):
    decoded = decode(made or source(), values or [body()] * len(headers), headers=headers)
    return decoded.frame.rows(), [(reject.row, reject.error) for reject in decoded.rejects]


def test_a_column_is_the_text_of_the_last_header_of_its_name():
    told = [
        ("x-s", b"caf\xc3\xa9"),
        ("x-n", b"-7"),
        ("x-x", b"1.5"),
        ("x-b", b"true"),
        ("x-t", b"9"),
        ("other", b"\xff"),
    ]
    rows, rejects = found([told, [("x-n", b"1"), *told, ("x-s", b"b")], [], [("x-s", b""), ("x-n", None)]])
    assert rejects == []
    assert rows == [
        ("café", -7, 1.5, True, 9, "k", 5),
        ("b", -7, 1.5, True, 9, "k", 5),
        (None, None, None, None, None, "k", 5),
        (None, None, None, None, None, "k", 5),
    ]


def test_what_is_bad_in_a_header_or_in_the_record_sets_the_record_apart_and_no_other():
    bad = [("s", b"\xff"), ("n", b"1.0"), ("n", b"9" * 30), ("x", b"1e999"), ("b", b"yes"), ("s", b"a" * 70_000)]
    headers = [[(NAMES[name], value)] for name, value in bad]
    reasons = ["encoding", "type", "range", "range", "type", "oversized"]
    for (row, expected), each in zip(enumerate(reasons), headers, strict=True):
        rows, rejects = found([[], each, []])
        assert ([len(rows), *rejects]) == [2, (1, expected)], row
    rows, rejects = found([*headers, [], []], values=[*[body()] * 6, b"{", body("last")])
    assert rejects == [*enumerate(reasons), (6, "malformed")]
    assert rows == [(None, None, None, None, None, "last", 5)]
    decoded = decode(source(), [body()], headers=[[("x-n", b"many")]])
    assert decoded.rejects[0].detail == "Expected `int | null`, got `str` - at `$.n`"


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='",\r\n'), min_size=1, max_size=8)
NUMBERS = st.from_regex(r"\A-?[0-9]{1,21}(\.[0-9]{1,3})?([eE][-+]?[0-9]{1,3})?\Z") | st.sampled_from(["true", "false"])


@given(st.lists(st.tuples(*[st.just("") | TEXTS | NUMBERS] * len(KINDS)), max_size=8))
def test_headers_are_read_as_a_line_of_csv(rows):
    line = source(headers={}, format="csv")
    expected = decode(line, [",".join([*row, "k", "5"]).encode() for row in rows])
    headers = [list(zip(NAMES.values(), (text.encode() for text in row), strict=True)) for row in rows]
    got = decode(source(), [body()] * len(rows), headers=headers)
    assert got.frame.equals(expected.frame)
    assert got.rows.tolist() == expected.rows.tolist()
    assert [reject.row for reject in got.rejects] == [reject.row for reject in expected.rejects]


@pytest.mark.parametrize("kind", ["msgpack", "csv", "arrow", "json_schema"])
def test_the_record_itself_may_be_of_any_format(kind):
    table, sink = pa.table({"key": ["k", "l"], "at": [5, 6]}), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    values = {
        "msgpack": msgspec.msgpack.encode({"key": "k", "at": 5}),
        "csv": b"k,5",
        "arrow": sink.getvalue().to_pybytes(),
        "json_schema": b"\0\0\0\0\1" + body(),
    }
    made, value = source({"s": "str"}, format=kind), values[kind]
    schemas = {1: msgspec.json.decode}
    decoded = decode(made, [value, value, None, value], schemas, [[("x-s", b"a")], [("x-s", b"\xff")], [], []])
    assert set(decoded.frame["s"]) == {"a", None}
    assert decoded.frame.columns == ["s", "key", "at"]
    assert sorted(set(decoded.rows.tolist())) == [0, 3]
    assert [(reject.row, reject.error) for reject in decoded.rejects] == [(1, "encoding"), (2, "tombstone")]
    assert (decoded.places is None) == (kind != "arrow")


def test_derived_columns_and_ids_may_come_from_headers():
    made = source({"s": "str"}, derive={"loud": col("s") + "!"}, id="s")
    assert made.body.schema == {"key": "str", "at": "timestamp[ms]"}
    assert (made.body.id, made.body.derived, made.body.headers) == (None, {}, {})


@pytest.mark.parametrize(
    ("headers", "options", "message"),
    [
        ({"c": "x"}, {}, "headers: there is no column 'c'"),
        ({"key": "x"}, {}, "headers: 'key' is in the record itself"),
        ({"at": "x"}, {}, "headers: 'at' is in the record itself"),
        ({"s": "x"}, {"fields": {"s": "a.b"}}, "headers: 's' is in the record itself"),
    ],
)
def test_headers_that_cannot_hold_a_column_are_refused(headers, options, message):
    with pytest.raises(DefinitionError, match=message):
        source(headers=headers, **options)
