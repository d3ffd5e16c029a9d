from __future__ import annotations

import json
import math
import struct
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.decoding import MAX_KEY, MAX_TIME, Decoded, decode_json

SCHEMA = {"id": "str", "at": "timestamp[ms]", "n": "int", "x": "float", "ok": "bool", "note": "str"}
EVENT = b'{"id":"a","at":1700000000000,"n":1,"x":1.5,"ok":true,"note":"hi"}'


def decode(*values: bytes | None, **limits: int) -> Decoded:
    return decode_json(SCHEMA, ["id"], "at", values, **limits)


def event(**fields: bytes) -> bytes:
    """A good event with some values replaced by, or further fields added as, raw JSON text."""
    texts = {"id": b'"a"', "at": b"1700000000000", **fields}
    return b"{%s}" % b",".join(b'"%s":%s' % (name.encode(), text) for name, text in texts.items())


def error(value: bytes | None, **limits: int) -> str:
    """The error code of a record that is refused between two good ones, which it must not touch."""
    decoded = decode(EVENT, value, EVENT, **limits)
    assert decoded.rows.tolist() == [0, 2]
    assert decoded.frame["id"].to_list() == ["a", "a"]
    (reject,) = decoded.rejects
    assert reject.row == 1
    assert 0 < len(reject.detail) <= 200
    return reject.error


def value_of(column: str, text: bytes) -> object:
    """What an accepted record holds in `column` when its JSON text is `text`."""
    decoded = decode(EVENT, event(**{column: text}))
    assert decoded.rejects == []
    return decoded.frame[column][1]


# An oracle in plain Python: the rules once more, record by record, with the standard library's JSON.


class Pairs(list[tuple[str, Any]]):
    """A JSON object, repeated names included."""


def typed(kind: str, value: Any) -> Any:
    """`value` as the schema has it; ValueError when it breaks a rule. Numbers arrive as ("int" | "float", text)."""
    if value is None or (kind == "bool" and isinstance(value, bool)) or (kind == "str" and isinstance(value, str)):
        return value
    match kind, value:
        case "float", (str(), text):
            number = float(int(text)) if value[0] == "int" and len(text) < 400 else float(text)
            if math.isfinite(number):
                return number
        case (("int" | "timestamp[ms]"), ("int", text)) if len(text) < 30 and -(2**63) <= int(text) < 2**63:
            return int(text)
    raise ValueError(kind)


def check_tree(tree: Any, level: int) -> None:
    """ValueError on lone surrogates and on more than 32 levels."""
    if isinstance(tree, str):
        tree.encode()
    elif isinstance(tree, list):
        if level > 32:
            raise ValueError("depth")
        for item in tree:
            for part in item if isinstance(tree, Pairs) else [item]:
                check_tree(part, level + 1)


def oracle(value: bytes | None) -> dict[str, Any] | None:
    """The row that `value` stands for, or None when it must be refused."""
    try:
        tree = json.loads(
            (value or b"").decode(),
            object_pairs_hook=Pairs,
            parse_int=lambda text: ("int", text),
            parse_float=lambda text: ("float", text),
            parse_constant=int,  # which refuses them
        )
        if not isinstance(tree, Pairs):
            return None
        check_tree(tree, 1)
        fields = [(name, typed(SCHEMA[name], part)) for name, part in tree if name in SCHEMA]
    except (ValueError, OverflowError):
        return None
    row, named = dict.fromkeys(SCHEMA) | dict(fields), {name for name, _ in fields}
    return row if {"id", "at"} <= named and all(allowed(*each) for each in fields) else None


def allowed(name: str, value: Any) -> bool:
    """Whether a key or an event time may be so; of a repeated one, every one is asked."""
    if name == "id":
        return value is not None and len(value) <= MAX_KEY
    return name != "at" or (value is not None and 0 <= value <= MAX_TIME)


numbers = st.sampled_from(
    b"0 -0 -0.0 1 1.0 1e3 1E+2 01 1. .5 +1 - 1e NaN Infinity -Infinity 1e999 1e-999 5e-324 0.1 1.7976931348623159e308"
    b" 9007199254740993 9223372036854775807 9223372036854775808 -9223372036854775808 -9223372036854775809"
    b" 18446744073709551616 253402300799999 253402300800000".split()
)
numbers |= st.sampled_from([b"9" * 300, b"9" * 400, b"1" * 5000, b"0." + b"0" * 400 + b"1e401"])
numbers |= st.floats().map(lambda x: repr(x).encode()) | st.integers(-(2**65), 2**65).map(lambda n: str(n).encode())
strings = st.text(max_size=8).map(msgspec.json.encode) | st.sampled_from(
    rb'"\ud800" "\udc00" "\ud83d\ude00" "\u0000" "\u0061" "\x" "{[\"\\" "2024-01-01" "1" "'.split()
)
strings |= st.sampled_from(
    [b'"%s"' % text for text in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xc3\xa9", b"a\tb", b"a\x00b", b"a\nb")]
)
leaves = numbers | strings | st.sampled_from([b"null", b"true", b"false", b"tru", b"[]", b"{}", b"[1,]", b"'a'", b""])
leaves |= st.integers(28, 40).flatmap(lambda n: st.sampled_from([b"[" * n + b"]" * n, b'{"a":' * n + b"0" + b"}" * n]))
names = st.sampled_from([b'"%s"' % name.encode() for name in SCHEMA] + [b'"z"', rb'"\u0061t"', b'"\xff"', b"n"])
fields = st.lists(st.tuples(names, leaves), max_size=4).map(lambda pairs: [b"%s:%s" % pair for pair in pairs])
whole = fields.map(lambda parts: b'{"id":"b","at":7,%s}' % b",".join(parts) if parts else b'{"id":"b","at":7}')
loose = st.tuples(fields, st.sampled_from([b",", b" , ", b"\n,", b";"])).map(lambda t: b"{%s}" % t[1].join(t[0]))
spoilt = st.tuples(st.just(EVENT) | whole, st.integers(0, 80), st.integers(0, 3), st.binary(max_size=2)).map(
    lambda t: t[0][: t[1]] + t[3] + t[0][t[1] + t[2] :]
)
records = st.just(EVENT) | whole | loose | spoilt | leaves | st.none()
records |= st.tuples(whole, st.sampled_from([b"", b" ", b"\n", b"\x00", b"\xef\xbb\xbf"]), whole | st.just(b"")).map(
    b"".join
)


def bits(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its double as bytes: -0.0 is not 0.0."""
    return row | {"x": None if row["x"] is None else struct.pack("<d", row["x"])}


@given(st.lists(records, max_size=40))
def test_a_batch_gives_what_the_oracle_gives_record_by_record(values):
    expected = [oracle(value) for value in values]
    frame, rows, rejects, _ = decode(*values)
    assert rows.tolist() == [i for i, row in enumerate(expected) if row is not None]
    assert [reject.row for reject in rejects] == [i for i, row in enumerate(expected) if row is None]
    assert [bits(row) for row in frame.to_dicts()] == [bits(row) for row in expected if row is not None]


@given(st.lists(records, max_size=20), st.integers(0, 20))
def test_any_cut_into_batches_gives_the_same_rows_and_rejects(values, cut):
    parts = [decode(*values[:cut]), decode(*values[cut:])]
    together = decode(*values)
    shifted = [reject._replace(row=reject.row + len(values[:cut])) for reject in parts[1].rejects]
    assert together.rejects == parts[0].rejects + shifted
    assert pl.concat([parts[0].frame, parts[1].frame]).equals(together.frame)


@given(st.from_regex(rb"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][-+]?[0-9]{1,3})?", fullmatch=True))
def test_floats_are_the_nearest_double(text):
    expected = float(text)
    if text == b"-0":
        expected = 0.0  # an integer literal, and integers have one zero
    if math.isinf(expected):
        assert error(event(x=text)) == "range"
    else:
        assert struct.pack("<d", value_of("x", text)) == struct.pack("<d", expected)


def test_accepted_rows_have_the_columns_and_types_of_the_schema_in_its_order():
    frame, rows, rejects, _ = decode(EVENT, None, b'{"at":5,"id":"b"}')
    assert dict(frame.schema) == {
        "id": pl.String,
        "at": pl.Int64,
        "n": pl.Int64,
        "x": pl.Float64,
        "ok": pl.Boolean,
        "note": pl.String,
    }
    assert frame.rows() == [("a", 1700000000000, 1, 1.5, True, "hi"), ("b", 5, None, None, None, None)]
    assert rows.dtype == np.int64
    assert rows.tolist() == [0, 2]
    assert [reject.error for reject in rejects] == ["tombstone"]


@pytest.mark.parametrize("values", [[], [None], [b""], [b"{"]])
def test_without_any_good_record_the_frame_is_empty_but_has_its_columns(values):
    frame, rows, rejects, _ = decode(*values)
    assert frame.shape == (0, len(SCHEMA))
    assert frame.schema["x"] == pl.Float64
    assert rows.tolist() == []
    assert len(rejects) == len(values)


def test_any_text_may_be_a_column_name():
    schema = {"class": "int", "user-id": "str", "__dict__": "float", "at": "timestamp[ms]", "": "bool"}
    value = b'{"class":1,"user-id":"u","__dict__":2,"at":3,"":true}'
    assert decode_json(schema, ["user-id"], "at", [value]).frame.to_dicts() == [msgspec.json.decode(value)]


def test_details_are_short_whatever_the_columns_are_called():
    name = "n" * 1000
    (reject,) = decode_json({"at": "timestamp[ms]", name: "int"}, [name], "at", [b'{"at":1}']).rejects
    assert (reject.error, len(reject.detail)) == ("missing", 200)


def test_one_character_that_is_not_utf8_leaves_the_others_of_its_batch_alone():
    decoded = decode(event(note='"é"'.encode()), event(note=b'"\xe9"'), event(note='"ü"'.encode()))
    assert decoded.frame["note"].to_list() == ["é", "ü"]
    assert [(reject.row, reject.error) for reject in decoded.rejects] == [(1, "encoding")]


def test_keys_may_be_of_any_type():
    decoded = decode_json(SCHEMA, ["n", "ok"], "at", [EVENT, b'{"at":1,"n":2,"ok":null}', b'{"at":1,"ok":true}'])
    assert [(reject.row, reject.error) for reject in decoded.rejects] == [(1, "null"), (2, "missing")]


# Hostile inputs, one by one.


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"-Infinity", b"nan"])
def test_literals_that_json_does_not_have_are_refused(text):
    assert error(event(x=text)) == "malformed"
    assert error(event(unknown=text)) == "malformed"


@pytest.mark.parametrize("text", [b"1e999", b"-1e999", b"1.7976931348623159e308", b"9" * 400])
def test_numbers_that_would_be_infinite_are_refused(text):
    assert error(event(x=text)) == "range"


@pytest.mark.parametrize(
    "text", [b"9223372036854775808", b"-9223372036854775809", b"18446744073709551616", b"9" * 400, b"9" * 6000]
)
def test_integers_beyond_int64_are_refused(text):
    assert error(event(n=text)) == "range"


def test_the_ends_of_int64_are_kept_exactly():
    assert value_of("n", b"9223372036854775807") == 2**63 - 1
    assert value_of("n", b"-9223372036854775808") == -(2**63)


def test_a_value_of_more_than_64_kb_is_refused():
    head, tail = b'{"id":"a","at":1,"note":"', b'"}'
    fitting = head + b"x" * (65_536 - len(head) - len(tail)) + tail
    assert decode(fitting).rejects == []
    assert error(fitting + b" ") == "oversized"
    assert error(head + b"x" * 10_000_000 + tail) == "oversized"


def test_of_a_repeated_field_the_last_counts_and_every_one_must_be_allowed():
    assert decode(b'{"id":"a","at":1,"at":2,"n":5,"n":null}').frame.rows() == [("a", 2, None, None, None, None)]
    assert decode(rb'{"id":"a","at":1,"\u0061t":2}').frame["at"].to_list() == [2]
    assert error(b'{"id":"a","at":"x","at":2}') == "type"
    assert error(b'{"id":"a","at":-1,"at":2}') == "range"
    assert error(b'{"id":"a","at":null,"at":2}') == "null"
    assert error(b'{"id":"%s","id":"a","at":2}' % (b"k" * 257)) == "oversized"


@pytest.mark.parametrize(("left", "right"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"":', b"}]")])
def test_deep_nesting_is_refused_beyond_the_limit(left, right):
    assert error(event(unknown=left * 100_000), max_bytes=10**6) == "depth"
    assert error(event(unknown=left * 100_000 + b"0" + right * 100_000), max_bytes=10**6) == "depth"


def test_the_outermost_object_is_the_first_of_32_levels():
    assert decode(event(unknown=b"[" * 31 + b"]" * 31)).rejects == []
    assert error(event(unknown=b"[" * 32 + b"]" * 32)) == "depth"
    # Records without any bracket leave no room for those of another.
    assert [reject.error for reject in decode(*[b"0"] * 99, event(unknown=b"[" * 32 + b"]" * 32)).rejects][
        -1
    ] == "depth"


def test_brackets_side_by_side_or_in_strings_are_not_depth():
    wide = b"[%s]" % b",".join([b"{}"] * 500)
    text = rb'"\\\"%s"' % (b"[{" * 500)
    full = text + b',"z":' + b"[" * 31 + b"]" * 31
    assert decode(event(unknown=wide), event(unknown=text), event(note=text), event(unknown=full)).rejects == []
    assert error(event(unknown=text + b"," + b'"z":' + b"[" * 32)) == "depth"


def test_a_string_without_an_end_is_refused_without_backtracking():
    assert error(b'{"id":"' + b"[" * 40 + b'\\"' * 30_000) == "malformed"


def test_a_limit_beyond_what_the_decoder_can_do_is_no_crash():
    assert error(event(unknown=b"[" * 100_000), max_bytes=10**6, max_depth=10**6) == "depth"


@pytest.mark.parametrize(
    ("column", "text"),
    [
        *[("at", text) for text in (b'"2024-01-01"', b'"1"', b"1.0", b"1e3", b"true", b"[1]", b"{}")],
        *[("n", text) for text in (b"1.0", b"1e2", b"-0.0", b"true", b'"1"', b"[]")],
        *[("x", text) for text in (b'"1.5"', b'"NaN"', b"true", b"[1.5]")],
        *[("ok", text) for text in (b"0", b"1", b'"true"')],
        *[("note", text) for text in (b"1", b"1.5", b"true", b'{"a":1}', b'["a"]')],
    ],
)
def test_values_of_another_type_are_refused(column, text):
    assert error(event(**{column: text})) == "type"


def test_integers_are_good_floats_and_round_to_the_nearest():
    assert [value_of("x", text) for text in (b"3", b"9007199254740993")] == [3.0, 9007199254740992.0]


def test_strings_that_look_like_something_else_stay_strings():
    for text in (b'"2024-01-01T00:00:00Z"', b'"1"', b'"null"', b'"NaN"', b'""'):
        assert value_of("note", text) == json.loads(text)


@pytest.mark.parametrize("text", [b"null", b"[]", b"[1]", b"1", b'"a"', b"true", b"[%s]" % EVENT])
def test_a_value_that_is_no_object_is_refused(text):
    assert error(text) == "type"


@pytest.mark.parametrize("text", [b"", b" ", b"\n", b"{", EVENT[:-1], EVENT + b"x", EVENT + b"\x00", EVENT + EVENT])
def test_a_value_that_is_not_one_json_text_is_refused(text):
    assert error(text) == "malformed"


def test_a_record_without_a_value_is_a_tombstone():
    assert error(None) == "tombstone"


def test_an_object_split_over_two_values_is_two_bad_records():
    _, rows, rejects, _ = decode(EVENT, EVENT[:20], EVENT[20:], EVENT + b"\n" + EVENT, EVENT)
    assert rows.tolist() == [0, 4]
    assert [reject.error for reject in rejects] == ["malformed"] * 3


def test_white_space_and_line_breaks_between_tokens_are_json():
    assert decode(b' {"id":\t"a",\r\n"at": 1}\n', EVENT).rejects == []


@pytest.mark.parametrize("text", [b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b'"\xc3"'])
def test_bad_utf8_is_refused_in_every_field(text):
    assert error(event(note=text)) == "encoding"
    assert error(event(unknown=text)) == "encoding"
    assert error(event() + text) == "encoding"


def test_a_character_split_over_two_values_does_not_become_one():
    assert [reject.error for reject in decode(EVENT + b"\xc3", b"\xa9" + EVENT).rejects] == ["encoding", "encoding"]


@pytest.mark.parametrize("text", [rb'"\ud800"', rb'"\udc00"', rb'"\ud800\u0041"', b'"a\tb"', b'"a\x00b"', rb'"\x"'])
def test_lone_surrogates_and_raw_control_characters_are_refused(text):
    assert error(event(note=text)) == "malformed"
    assert error(event(unknown=text)) == "malformed"


def test_a_byte_order_mark_is_refused():
    assert error(b"\xef\xbb\xbf" + EVENT) == "malformed"


def test_escaped_nul_braces_colons_and_newlines_in_a_key_are_kept():
    assert value_of("id", rb'"a\u0000{b}:\n\"\\\ud83d\ude00\u00e9"') == 'a\0{b}:\n"\\\U0001f600é'


def test_a_key_longer_than_the_limit_is_refused_and_other_strings_are_not():
    assert value_of("id", b'"%s"' % (b"k" * MAX_KEY)) == "k" * MAX_KEY
    assert error(event(id=b'"%s"' % (b"k" * (MAX_KEY + 1)))) == "oversized"
    assert error(event(id=b'"%s"' % (b"k" * 10**6))) == "oversized"
    assert value_of("note", b'"%s"' % (b"k" * 1000)) == "k" * 1000


def test_ten_thousand_unknown_fields_of_any_type_are_ignored():
    drifting = [b"1", b'"a"', b"null", b"[]", b"{}"]
    many = {f"u{i}": drifting[i % 5] for i in range(5_000)}
    assert decode(event(**many), event(u0=b'"text"'), event(u0=b"[1]")).rejects == []
    assert decode(event(**many, **{f"v{i}": b"1" for i in range(5_000)}), max_bytes=10**6).rejects == []


def test_missing_and_null_are_refused_in_required_columns_only():
    assert error(b'{"id":"a"}') == "missing"
    assert error(b'{"at":1}') == "missing"
    assert error(event(id=b"null")) == "null"
    assert error(event(at=b"null")) == "null"
    assert value_of("note", b"null") is None


@pytest.mark.parametrize("text", [b"-1", b"253402300800000", b"9223372036854775807", b"9223372036854775808"])
def test_event_times_before_1970_or_after_9999_are_refused(text):
    assert error(event(at=text)) == "range"


def test_event_times_at_the_limits_are_accepted():
    assert value_of("at", b"0") == 0
    assert value_of("at", b"253402300799999") == MAX_TIME
