"""Protobuf in compiled code gives what the reader that makes objects gives, or leaves the message to it."""

from __future__ import annotations

import struct

import pytest
from google.protobuf import message_factory
from hypothesis import given
from hypothesis import strategies as st

from featurestore import Source, formats
from featurestore.confluent import loader_of, numbers_of
from featurestore.formats import decode
from featurestore.messages import read
from featurestore.parsing import names_of
from featurestore.protobuf import compiled, type_at
from featurestore.values import Values

INTS = ["int32", "int64", "uint32", "uint64", "sint32", "sint64", "fixed32", "fixed64", "sfixed32", "sfixed64"]
COLUMNS = {
    "key": str,
    "at": "timestamp[ms]",
    **dict.fromkeys(INTS, int),
    **{f"o_{name}": int for name in INTS},
    "single": float,
    "many": float,
    "o_many": float,
    "ok": bool,
    "o_ok": bool,
    "note": str,
    "state": str,
    "o_state": str,
    "wrapped": float,
    "named": str,
    "took": "timestamp[ms]",
    "inner_n": int,
    "inner_note": str,
    "inner_deep": float,
    "one_text": str,
    "one_n": int,
    "gone": int,
}
PATHS = {
    "inner_n": "inner.n",
    "inner_note": "inner.note",
    "inner_deep": "inner.deep.x",
    "gone": ["not.there", "neither", "took.seconds"],
}
FIELDS = "".join(
    f"  {name} {name} = {20 + i};\n  optional {name} o_{name} = {40 + i};\n" for i, name in enumerate(INTS)
)
SCHEMA = f"""
syntax = "proto3";
import "google/protobuf/timestamp.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/wrappers.proto";
message Event {{
  enum State {{ option allow_alias = true; NONE = 0; PAID = 5; SETTLED = 5; LONG_ENOUGH_FOR_A_BUFFER = -1; }}
  message Deep {{ double x = 1; Deep deep = 2; repeated fixed32 fours = 3; repeated double eights = 4; }}
  message Inner {{ int64 n = 1; optional string note = 2; Deep deep = 3; Event event = 4; }}
  string key = 1;
  google.protobuf.Timestamp at = 2;
  float single = 3;
  double many = 4;
  optional double o_many = 5;
  bool ok = 6;
  optional bool o_ok = 7;
  string note = 8;
  State state = 9;
  optional State o_state = 10;
  google.protobuf.DoubleValue wrapped = 11;
  google.protobuf.StringValue named = 12;
  google.protobuf.Duration took = 13;
  Inner inner = 14;
  oneof one {{ string one_text = 15; int32 one_n = 16; Deep one_deep = 17; }}
{FIELDS}
  string unread = 60;
  bytes raw = 61;
  repeated string texts = 62;
  repeated sint32 numbers = 63;
  repeated State states = 64;
  map<string, Deep> by_name = 65;
  Deep deep = 66;
  repeated int32 loose = 67 [packed = false];
}}
"""
EVENT = message_factory.GetMessageClass(type_at(*compiled(SCHEMA, {}), [0]))
SOURCE = Source("events", schema=COLUMNS, event_time="at", key="key", format="protobuf", fields=PATHS)
LOADS = {7: loader_of("PROTOBUF", SCHEMA)}
HEAD = b"\0\0\0\0\7\0"


def bounds(name):
    bits = 32 if "32" in name else 64
    return (0, 2**bits - 1) if name.startswith(("uint", "fixed")) else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def ints(name):
    low, high = bounds(name)
    return st.integers(low, high) | st.sampled_from([low, high, 0, 1])


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
states = st.sampled_from([0, 5, -1, 7, -(2**31)])
moments = st.fixed_dictionaries(
    {}, optional={"seconds": st.integers(-9, 3 * 10**11) | ints("int64"), "nanos": ints("int32")}
)
deep = st.deferred(
    lambda: st.fixed_dictionaries(
        {},
        optional={
            "x": st.floats(),
            "deep": deep,
            "fours": st.lists(ints("fixed32"), max_size=3),
            "eights": st.lists(st.floats(), max_size=3),
        },
    )
)
inner = st.fixed_dictionaries(
    {},
    optional={
        "n": ints("int64"),
        "note": texts,
        "deep": deep,
        "event": st.fixed_dictionaries({}, optional={"key": texts, "unread": texts, "numbers": st.just([1, -9])}),
    },
)
ones = st.one_of(
    st.just({}),
    st.builds(lambda text: {"one_text": text}, texts),
    st.builds(lambda n: {"one_n": n}, ints("int32")),
    st.builds(lambda each: {"one_deep": each}, deep),
)
others = st.fixed_dictionaries(
    {},
    optional={
        "key": texts | st.just("k" * 300),
        "at": moments | st.fixed_dictionaries({"seconds": st.integers(0, 10**9)}),
        "single": st.floats(width=32),
        "many": st.floats(),
        "o_many": st.floats(),
        "ok": st.booleans(),
        "o_ok": st.booleans(),
        "note": texts,
        "state": states,
        "o_state": states,
        "wrapped": st.fixed_dictionaries({}, optional={"value": st.floats()}),
        "named": st.fixed_dictionaries({}, optional={"value": texts}),
        "took": moments,
        "inner": inner,
        "unread": texts,
        "raw": st.binary(max_size=9),
        "texts": st.lists(texts, max_size=3),
        "numbers": st.lists(ints("sint32"), max_size=5),
        "states": st.lists(states, max_size=3),
        "by_name": st.dictionaries(texts, deep, max_size=2),
        "deep": deep,
        "loose": st.lists(ints("int32"), max_size=3),
    },
)
numbers = st.fixed_dictionaries(
    {}, optional={each: ints(each.removeprefix("o_")) for each in COLUMNS if each.removeprefix("o_") in INTS}
)
messages = st.builds(lambda *parts: EVENT(**{k: v for part in parts for k, v in part.items()}), others, numbers, ones)


def strictly(values):
    return formats._finite(SOURCE.schema, formats._by_record(SOURCE, values, formats._loader(SOURCE, LOADS)))


def taken(values):
    values = Values.of(values)
    names = names_of(
        tuple(SOURCE.schema.items()),
        frozenset(SOURCE.required),
        "at",
        (formats.MAX_TIME, formats.MAX_BYTES, formats.MAX_KEY),
    )
    shape = LOADS[7].shape(HEAD[:5], HEAD[5:], SOURCE.schema, SOURCE.paths)
    return read(values, names, shape).taken.tolist()


def same(values):
    mine, wanted = decode(SOURCE, values, LOADS), strictly(values)
    assert repr(mine.frame.to_dicts()) == repr(wanted.frame.to_dicts())
    assert mine.rows.tolist() == wanted.rows.tolist()
    assert mine.rejects == wanted.rejects
    return mine


def good(**fields):
    return EVENT(**{"key": "k", "at": {"seconds": 5}} | fields)


@given(st.lists(messages, max_size=4))
def test_messages_become_the_columns_that_the_reader_of_objects_gives(some):
    same([HEAD + each.SerializeToString() for each in some])


@given(messages, messages, st.data())
def test_damaged_and_doubled_messages_fare_as_with_the_reader_of_objects(one, other, data):
    whole = one.SerializeToString()
    both = whole + other.SerializeToString()
    at = data.draw(st.integers(0, len(both)))
    noise = data.draw(st.binary(max_size=12))
    damaged = [both, both[:at], both[:at] + noise + both[at:], both[:at] + noise + both[at + len(noise) :], noise]
    same([HEAD + each for each in damaged])


def wired(number, more=0):
    """A number of variable length, in more bytes than it needs."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number | 0x80, *[0x80] * (more - 1), 0]) if more else bytes([*out, number])


bodies = (
    st.builds(wired, st.integers(0, 2**64 - 1), st.integers(0, 3))
    | st.binary(min_size=8, max_size=8)
    | st.binary(min_size=4, max_size=4)
)
bodies |= st.builds(lambda content: wired(len(content)) + content, st.binary(max_size=9))


@given(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 7), st.integers(0, 2), bodies), max_size=4))
def test_any_fields_in_any_form_fare_as_with_the_reader_of_objects(fields):
    content = b"".join(wired(number << 3 | wire, more) + body for number, wire, more, body in fields)
    same([HEAD + content, HEAD + good().SerializeToString() + content])


def test_what_is_usual_is_read_in_compiled_code():
    everything = good(
        **{each: bounds(each.removeprefix("o_"))[0] for each in COLUMNS if each.removeprefix("o_") in INTS},
        at={"seconds": 5, "nanos": 9_999_999},
        single=0.1,
        many=-0.0,
        note="n" * 50,
        state=5,
        o_state=-1,
        wrapped={"value": 2.5},
        named={},
        took={"seconds": -1, "nanos": -1},
        inner={"n": 1, "deep": {"x": 2.0, "deep": {"deep": {}}, "fours": [1, 2]}, "event": {"numbers": [1]}},
        one_n=3,
        unread="é",
        texts=["a", "b"],
        numbers=[-1, 1],
        by_name={"a": {"x": 1.0}},
        loose=[1, 2],
    )
    values = [HEAD + each.SerializeToString() for each in (everything, good(), good(one_deep={}))]
    assert taken(values) == [True] * 3
    [one, two, _] = same(values).frame.to_dicts()
    assert (one["at"], one["took"], one["state"], one["o_state"]) == (5_009, -1_001, "PAID", "LONG_ENOUGH_FOR_A_BUFFER")
    assert (two["state"], two["o_state"], two["wrapped"], two["inner_n"]) == ("NONE", None, None, None)


@pytest.mark.parametrize(
    "bits", [1, 2, 0x7F_FFFF, 0x80_0000, 0x7F7F_FFFF, 0x7F80_0000, 0x7FC0_0000, 0x8000_0000, 0x8000_0001]
)
def test_reals_of_32_bits_are_widened_to_the_same_number(bits):
    [value] = struct.unpack("<f", struct.pack("<I", bits))
    values = [HEAD + good().SerializeToString() + b"\x1d" + struct.pack("<I", bits)]
    assert taken(values) == [True]
    assert same(values).frame["single"].to_list() in ([value], [None], [])


def test_several_schemas_and_types_in_one_batch_keep_their_order():
    other = """
    syntax = "proto3";
    message Other { int32 n = 1; }
    message Event { string key = 1; Moment at = 2; }
    message Moment { int64 seconds = 1; }
    """
    older = SCHEMA.replace("float single = 3;", "")
    loads = LOADS | {8: loader_of("PROTOBUF", older), 9: loader_of("PROTOBUF", other)}
    content = good(single=1.5, state=5).SerializeToString()
    heads = [
        HEAD,
        b"\0\0\0\0\x08\0",
        HEAD,
        b"\0\0\0\0\x09\2\2",
        b"\0\0\0\0\x0a\0",
        b"\0\0\0\0\7\2\0",
        b"\1",
        b"\0\0\0\0\x08\0",
    ]
    decoded = decode(SOURCE, [None, *(head + content for head in heads)], loads)
    assert decoded.rows.tolist() == [1, 2, 3, 6, 8]
    assert decoded.frame["single"].to_list() == [1.5, None, 1.5, 1.5, None]
    assert decoded.frame["state"].to_list() == ["PAID"] * 5
    assert [(reject.row, reject.error) for reject in decoded.rejects] == [
        (0, "tombstone"),
        (4, "type"),
        (5, "malformed"),
        (7, "malformed"),
    ]


@pytest.mark.parametrize(
    ("column", "path", "text"),
    [
        (float, "n", "int32 n = 3;"),
        (int, "n", "bool n = 3;"),
        (str, "n", "bytes n = 3;"),
        (int, "n", "repeated int32 n = 3;"),
        (int, "n.a", "map<string, int32> n = 3;"),
        (int, "n", "Event n = 3;"),
        (int, ["n", "m"], "int32 n = 3; int32 m = 4;"),
        (int, "key", ""),
    ],
)
def test_what_is_not_for_compiled_code_is_read_all_the_same(column, path, text):
    schema = f'syntax = "proto3"; message Event {{ string key = 1; int64 at = 2; {text} }}'
    source = Source(
        "events",
        schema={"key": str, "at": int, "n": column},
        event_time="at",
        key="key",
        format="protobuf",
        fields={"n": path},
    )
    loads = loader_of("PROTOBUF", schema)
    assert loads.shape(HEAD[:5], HEAD[5:], source.schema, source.paths) is None
    decoded = decode(source, [HEAD + b"\x0a\1a\x10\5"], {7: loads})
    assert len(decoded.rows) + len(decoded.rejects) == 1


def test_the_schemas_of_records_are_found():
    values = [HEAD, b"\0\xff\xff\xff\xff", b"\1\0\0\0\7", b"\0\0\0\7", None, b""]
    assert numbers_of(Values.of(values)).tolist() == [7, 2**32 - 1, -1, -1, -1, -1]
