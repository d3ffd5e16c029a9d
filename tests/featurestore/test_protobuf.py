from __future__ import annotations

import math
import subprocess
import sys
from datetime import UTC, date, datetime
from functools import cache

import pytest
from google.protobuf import message_factory
from hypothesis import given
from hypothesis import strategies as st

from featurestore import Source
from featurestore.confluent import loader_of
from featurestore.errors import ConfigError
from featurestore.formats import decode
from featurestore.protobuf import compiled, compiler, type_at
from featurestore.schema_registry import SchemaRegistry
from tests import schema_registry
from tests.featurestore.payments import GOOD, SCHEMA, framed, payments

FIRST = """
syntax = "proto3";
message Payment {
  string id = 1; int64 at = 2;
  optional sint64 n = 3; optional double x = 4; optional bool ok = 5; optional string note = 6;
}
"""
BARE = FIRST.replace("optional ", "")
NESTED = """
syntax = "proto3";
package shop.v1;
import "google/protobuf/timestamp.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/wrappers.proto";
message Other { string id = 1; }
message Envelope {
  message Payment {
    enum State { UNKNOWN = 0; PAID = 1; }
    message Amount { float value = 1; Amount before = 2; }
    string id = 1;
    google.protobuf.Timestamp created = 2;
    google.protobuf.Duration took = 3;
    google.protobuf.DoubleValue fee = 4;
    State state = 5;
    Amount amount = 6;
    map<string, Amount> by_kind = 7;
    oneof how { string card = 8; int32 points = 9; }
    repeated int32 items = 10;
    uint64 large = 11;
    bytes raw = 12;
  }
  repeated Payment payments = 1;
}
"""
PAYMENT = (1, 0)


def source(**options):
    schema = options.pop("schema", SCHEMA)
    return Source("payments", schema=schema, event_time="at", key="id", format="protobuf", **options)


def message_class(text, path=(0,), imports=None):
    return message_factory.GetMessageClass(type_at(*compiled(text, imports or {}), path))


def place(path):
    """The place of a type of message, as the wire has it."""
    return b"\0" if path == (0,) else bytes(2 * number for number in (len(path), *path))


class Schema:
    """A schema, what reads records that it wrote, and how to write them."""

    def __init__(self, text, path=(0,), imports=None):
        self.loads = loader_of("PROTOBUF", text, imports or {})
        self.kind, self.path = message_class(text, path, imports), path

    def content(self, **fields):
        return place(self.path) + self.kind(**fields).SerializeToString()

    def record(self, **fields):
        return framed(1, self.content(**fields))


first, bare, nested = Schema(FIRST), Schema(BARE), Schema(NESTED, PAYMENT)


@given(st.lists(payments, max_size=9))
def test_protobuf_gives_the_columns_of_the_same_events_as_json(rows):
    decoded = decode(source(), [first.record(**row) for row in rows], {1: first.loads})
    assert decoded.rejects == []
    assert repr(decoded.frame.to_dicts()) == repr(rows)


def test_a_field_that_is_not_on_the_wire_has_its_default_or_is_null_where_the_two_can_be_told_apart():
    empty = {"id": "", "at": 0}
    decoded = decode(source(), [first.record(), bare.record()], {1: first.loads})
    assert decoded.frame.to_dicts() == [empty | dict.fromkeys(["n", "x", "ok", "note"])] * 2
    decoded = decode(source(), [first.record(), bare.record()], {1: bare.loads})
    assert decoded.frame.to_dicts() == [empty | {"n": 0, "x": 0.0, "ok": False, "note": ""}] * 2


def test_fields_that_a_schema_does_not_have_are_null_and_those_that_it_adds_are_ignored():
    older = Schema('syntax = "proto3"; message Payment { string id = 1; int64 at = 2; }')
    newer = Schema(FIRST.replace("= 6;", "= 6; string more = 7; map<string, int32> counts = 8;"))
    values = [older.record(id="a", at=5), framed(2, newer.content(**GOOD, more="m", counts={"c": 1}))]
    decoded = decode(source(), values, {1: older.loads, 2: newer.loads})
    assert decoded.frame.rows() == [("a", 5, None, None, None, None), tuple(GOOD.values())]


def test_types_become_what_columns_hold_and_are_found_by_their_paths():
    columns = SCHEMA | {"state": str, "took": "timestamp[ms]", "points": int, "kind": float, "deep": float}
    paths = {"at": "created", "x": ["amount.value", "fee"], "note": "card", "kind": "by_kind.b.value"}
    made = source(schema=columns, fields=paths | {"deep": "amount.before.value"})
    one = {
        "id": "a",
        "created": {"seconds": -1 + 5, "nanos": 999_999_999},
        "took": {"seconds": -1, "nanos": -500_000_000},
        "fee": {"value": 0.25},
        "state": 1,
        "by_kind": {"b": {"value": 2.5}},
        "card": "c",
        "items": [1, 2],
    }
    two = {"id": "b", "created": {}, "amount": {"value": 0.5, "before": {"value": 1}}, "points": 0}
    decoded = decode(made, [nested.record(**one), nested.record(**two)], {1: nested.loads})
    nothing = dict.fromkeys(columns)
    assert decoded.frame.to_dicts() == [
        nothing | {"id": "a", "at": 4_999, "took": -1_500, "x": 0.25, "state": "PAID", "kind": 2.5, "note": "c"},
        nothing | {"id": "b", "at": 0, "x": 0.5, "deep": 1.0, "state": "UNKNOWN", "points": 0},
    ]


@pytest.mark.parametrize(
    ("column", "path", "fields", "error"),
    [
        (str, "raw", {"raw": b"b"}, "type"),
        (int, "large", {"large": 2**63}, "range"),
        (str, "state", {"state": 7}, "type"),  # a number that its schema has no name for
        (float, "items", {"items": [1]}, "type"),
        (float, "amount", {"amount": {"value": 1}}, "type"),
        (float, "amount.value", {"amount": {"value": math.inf}}, "range"),
        (int, "card", {"card": "1"}, "type"),
    ],
)
def test_a_value_that_no_column_of_its_type_holds_is_refused(column, path, fields, error):
    made = source(schema={"id": str, "at": int, "it": column}, fields={"it": path, "at": "created"})
    decoded = decode(made, [nested.record(id="a", created={"seconds": 5}, **fields)], {1: nested.loads})
    assert [reject.error for reject in decoded.rejects] == [error]


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (b"", "malformed"),
        (b"\1\0\0\0\1\0", "malformed"),
        (framed(9, b"\0"), "malformed"),
        (framed(1, b""), "malformed"),
        (framed(1, b"\2"), "malformed"),  # a list of one, which does not come
        (framed(1, b"\2\2"), "malformed"),  # the second type of a schema with one
        (framed(1, b"\4\0\0"), "malformed"),  # the first type in the first one
        (framed(1, b"\1"), "malformed"),  # a list of less than nothing
        (framed(1, b"\xff" * 9), "malformed"),
        (framed(1, b"\0\x0a\x05a"), "malformed"),
        (framed(1, b"\0\x0a\x01\xff"), "malformed"),  # not UTF-8
        (first.record(**GOOD)[:-1], "malformed"),
        (first.record(**GOOD | {"x": math.inf}), "range"),
        (first.record(**GOOD | {"at": -1}), "range"),
        (first.record(**GOOD | {"note": "n" * 70_000}), "oversized"),
        (None, "tombstone"),
    ],
)
def test_what_is_no_record_of_its_schema_is_refused_with_its_reason(value, error):
    decoded = decode(source(), [first.record(**GOOD), value, first.record(**GOOD)], {1: first.loads})
    assert [(reject.row, reject.error) for reject in decoded.rejects] == [(1, error)]
    assert decoded.frame.to_dicts() == [GOOD, GOOD]


def test_the_place_of_a_type_may_be_written_in_either_way():
    message = first.content(**GOOD)[1:]
    decoded = decode(source(), [framed(1, b"\0" + message), framed(1, b"\2\0" + message)], {1: first.loads})
    assert decoded.frame.to_dicts() == [GOOD, GOOD]


@given(st.binary(max_size=60))
def test_nonsense_never_raises(content):
    values = [framed(1, content), framed(2, b"\4\2\0" + content), framed(1, b"\0" + content), first.record(**GOOD)]
    decoded = decode(source(), values, {1: first.loads, 2: nested.loads})
    assert decoded.frame.row(-1, named=True) == GOOD


def test_messages_within_messages_without_end_are_refused():
    deep = Schema('syntax = "proto3"; message Payment { string id = 1; int64 at = 2; Payment inner = 3; }')
    content = b""
    for _ in range(2_000):
        size = len(content)
        content = b"\x1a" + bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + content
    decoded = decode(source(), [framed(1, b"\0" + content), deep.record(id="a", at=5)], {1: deep.loads})
    assert [reject.row for reject in decoded.rejects] == [0]
    assert decoded.frame["id"].to_list() == ["a"]


SHARED = 'syntax = "proto3"; package shared; import "deep/er.proto"; message Money { double x = 1; er.Unit unit = 2; }'
DEEPER = 'syntax = "proto3"; package er; enum Unit { EUR = 0; }'
IMPORTING = """
syntax = "proto3"; import "shared/money.proto";
message Payment { string id = 1; int64 at = 2; shared.Money money = 3; }
"""


def referring(name, subject, version=1):
    return {"name": name, "subject": subject, "version": version}


def test_what_a_schema_imports_is_asked_of_the_registry():
    schemas = {
        1: ("PROTOBUF", IMPORTING, referring("shared/money.proto", "the money", 3)),
        2: ("PROTOBUF", SHARED, referring("deep/er.proto", "er")),
        3: ("PROTOBUF", DEEPER),
        4: ("PROTOBUF", IMPORTING, referring("shared/money.proto", "nobody")),
    }
    with schema_registry.running(schemas, {"the money/3": 2, "er/1": 3}) as server:
        registry = SchemaRegistry(server.url)
        for _ in range(2):
            found = registry.loaders({1})
        assert server.asked == [1, 2, 3]
        assert registry.loaders({4}).keys() == {1}
    importing = Schema(IMPORTING, imports={"shared/money.proto": SHARED, "deep/er.proto": DEEPER})
    made = source(schema={"id": str, "at": int, "x": float, "unit": str}, fields={"x": "money.x", "unit": "money.unit"})
    decoded = decode(made, [importing.record(id="a", at=5, money={"x": 1.5})], found)
    assert decoded.frame.rows() == [("a", 5, 1.5, "EUR")]


@pytest.mark.parametrize(
    ("text", "imports", "why"),
    [
        ("message", {}, "it is no Protobuf schema: _.proto:1:8: Expected message name"),
        (IMPORTING, {}, "shared/money.proto: File not found"),
        (FIRST, {"../up.proto": ""}, "imports '../up.proto', which is no path"),
        (FIRST, {"/up.proto": ""}, "no path"),
        (FIRST, {"a/./b.proto": ""}, "no path"),
        (FIRST, {"a.proto/b.proto": ""}, "no path"),
        (FIRST, {"a.txt": ""}, "no path"),
        (FIRST, {"a\nb.proto": ""}, "no path"),
    ],
)
def test_a_schema_that_is_of_no_use_says_why(text, imports, why):
    with pytest.raises(ValueError, match=why):
        loader_of("PROTOBUF", text, imports)


CONTRACT = """
syntax = "proto3";
import "confluent/meta.proto";
import "confluent/type/decimal.proto";
import "google/type/date.proto";
import "google/type/timeofday.proto";
message Payment {
  option (confluent.message_meta).rules = { name: "positive" expr: "this.price > 0" };
  string id = 1 [(confluent.field_meta) = { tags: "PII", params: [{ key: "k", value: "v" }] }];
  google.type.Date day = 2;
  confluent.type.Decimal price = 3;
  google.type.TimeOfDay time = 4;
}
"""


@given(st.dates(date(1970, 1, 1), date(9999, 12, 31)), st.decimals(allow_nan=False, allow_infinity=False))
def test_what_confluents_registry_knows_by_itself_need_not_be_referred_to(day, price):
    schema = contract()
    sign, digits, exponent = price.as_tuple()
    value = int("".join(map(str, digits))) * (-1 if sign else 1)
    price_message = {"value": value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True), "scale": -exponent}
    record = schema.record(
        id="a",
        day={"year": day.year, "month": day.month, "day": day.day},
        price=price_message,
        time={"hours": 7},
    )
    columns = {"id": str, "at": "timestamp[ms]", "price": float, "hour": int}
    made = source(schema=columns, fields={"at": "day", "hour": "time.hours"})
    decoded = decode(made, [record], {1: schema.loads})
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000
    expected = float(price) + 0.0  # an integer has no -0.0
    if math.isinf(expected):
        assert [reject.error for reject in decoded.rejects] == ["range"]
    else:
        assert decoded.frame.rows() == [("a", midnight, expected, 7)]


@cache
def contract():
    return Schema(CONTRACT)


def test_a_date_that_is_none_and_a_decimal_beyond_all_floats_are_refused():
    made = source(schema={"id": str, "at": int, "price": float}, fields={"at": "day"})
    day = {"year": 1970, "month": 1, "day": 2}
    values = [
        contract().record(id="a", day={"year": 1970}),
        contract().record(id="a", day=day, price={"value": b"\1", "scale": -(2**31)}),
        contract().record(id="a", day=day, price={"value": b"\1" * 9_000, "scale": 1}),
        contract().record(id="a", day=day, price={"value": b"\1", "scale": 2**31 - 1}),
    ]
    decoded = decode(made, values, {1: contract().loads})
    assert [(reject.row, reject.error) for reject in decoded.rejects] == [
        (0, "malformed"),
        (1, "range"),
        (2, "malformed"),
    ]
    assert decoded.frame.rows() == [("a", 86_400_000, 0.0)]


def test_the_place_of_decimals_in_some_clients_is_known_too():
    text = 'syntax = "proto3"; import "confluent/types/decimal.proto"; message P { confluent.type.Decimal price = 1; }'
    assert loader_of("PROTOBUF", text)(b"\0\x0a\x05\x0a\x01\x0f\x18\x01") == {"price": 1.5}


def test_other_editions_are_read_too():
    old = Schema(
        'syntax = "proto2"; message P { required string id = 1; required int64 at = 2; optional int64 n = 3; }'
    )
    new = Schema('edition = "2023"; message P { string id = 1; int64 at = 2; int64 n = 3; }')
    values = [framed(1, old.content(id="a", at=5)), framed(2, new.content(id="b", at=6, n=0)), framed(1, b"\0")]
    decoded = decode(source(), values, {1: old.loads, 2: new.loads})
    assert [row[:3] for row in decoded.frame.rows()] == [("a", 5, None), ("b", 6, 0)]
    assert [reject.row for reject in decoded.rejects] == [2]


def test_without_the_compiler_or_the_library_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs protoc, its compiler: pip install 'onceflow\[protobuf\]'"):
        compiler()
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    with pytest.raises(ConfigError, match=r"cannot be read here: pip install 'onceflow\[protobuf\]'"):
        compiler()


def test_the_library_is_not_imported_before_a_schema_is_read():
    script = "import sys, featurestore.confluent, featurestore.formats; print('google.protobuf' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
