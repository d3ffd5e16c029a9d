from __future__ import annotations

import io
import json
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from uuid import UUID

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import Source
from featurestore.confluent import ids_of, loader_of, plain
from featurestore.errors import ConfigError, UnavailableError
from featurestore.formats import decode
from featurestore.schema_registry import SchemaRegistry
from tests import schema_registry
from tests.featurestore.payments import GOOD, SCHEMA, framed, payments


def record(*fields):
    names = ("name", "type", "default")
    return {"type": "record", "name": "Payment", "fields": [dict(zip(names, f, strict=False)) for f in fields]}


FIRST = record(
    ("id", "string"),
    ("at", "long"),
    ("n", ["null", "long"], None),
    ("x", ["null", "double"], None),
    ("ok", ["null", "boolean"], None),
    ("note", ["null", "string"], None),
)
LATER = record(  # renamed, nested, added and removed
    ("id", "string"),
    ("created", {"type": "long", "logicalType": "timestamp-micros"}),
    ("amount", {"type": "record", "name": "Amount", "fields": [{"name": "value", "type": "float"}]}),
    ("more", {"type": "map", "values": "string"}),
    ("n", "int"),
)


def source(kind="avro", **options):
    return Source("payments", schema=SCHEMA, event_time="at", key="id", format=kind, **options)


def avro(schema, event, number=1):
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), event)
    return framed(number, out.getvalue())


def loaders(**extra):
    return {1: loader_of("AVRO", json.dumps(FIRST)), 2: loader_of("AVRO", json.dumps(LATER)), **extra}


@given(st.lists(payments, max_size=9))
def test_avro_gives_the_columns_of_the_same_events_as_json(rows):
    decoded = decode(source(), [avro(FIRST, row) for row in rows], loaders())
    assert decoded.rejects == []
    assert repr(decoded.frame.to_dicts()) == repr(rows)


def test_records_of_an_older_and_a_newer_schema_are_read_side_by_side():
    made = source(fields={"at": ["at", "created"], "x": ["x", "amount.value"]})
    later = {
        "id": "b",
        "created": datetime(2024, 1, 1, 0, 0, 0, 1999, UTC),
        "amount": {"value": 2.5},
        "more": {},
        "n": 3,
    }
    decoded = decode(made, [avro(FIRST, GOOD), avro(LATER, later, 2)], loaders())
    assert decoded.frame.to_dicts() == [
        GOOD,
        {"id": "b", "at": 1_704_067_200_001, "n": 3, "x": 2.5, "ok": None, "note": None},
    ]


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (b"", "malformed"),
        (b"\1\0\0\0\1rest", "malformed"),
        (framed(9, b"rest"), "malformed"),
        (framed(1, b""), "malformed"),
        (framed(1, b"\x02"), "malformed"),
        (avro(FIRST, GOOD) + b"\0", "malformed"),
        (avro(FIRST, GOOD)[:-1], "malformed"),
        (avro(FIRST, GOOD | {"x": math.inf}), "range"),
        (avro(FIRST, GOOD | {"at": -1}), "range"),
        (avro(LATER, {"id": "b", "created": 5, "amount": {"value": 1}, "more": {}, "n": 3}, 2), "missing"),
        (avro(FIRST, GOOD | {"note": "n" * 70_000}), "oversized"),
        (None, "tombstone"),
    ],
)
def test_what_is_no_record_of_its_schema_is_refused_with_its_reason(value, error):
    decoded = decode(source(), [avro(FIRST, GOOD), value, avro(FIRST, GOOD)], loaders())
    assert [(reject.row, reject.error) for reject in decoded.rejects] == [(1, error)]
    assert decoded.frame.to_dicts() == [GOOD, GOOD]


@given(st.binary(max_size=60))
def test_nonsense_never_raises(content):
    decoded = decode(source(), [framed(1, content), framed(2, content), content, avro(FIRST, GOOD)], loaders())
    assert decoded.frame.row(-1, named=True) == GOOD


def test_json_with_a_schema_is_json_behind_its_head():
    values = [framed(3, json.dumps(GOOD).encode()), framed(3, b'{"id":'), framed(3, json.dumps([1]).encode())]
    decoded = decode(source("json_schema"), values, {3: loader_of("JSON", "{}")})
    assert decoded.frame.to_dicts() == [GOOD]
    assert [reject.error for reject in decoded.rejects] == ["malformed", "type"]


def test_logical_types_become_what_columns_hold():
    found = plain(
        {
            "time": datetime(1969, 12, 31, 23, 59, 59, 999_500, UTC),
            "day": date(1970, 1, 2),
            "price": Decimal("1.25"),
            "id": UUID(int=5),
            "inner": {"local": datetime(1970, 1, 1, 0, 0, 1)},  # noqa: DTZ001
        }
    )
    assert found == {
        "time": -1,
        "day": 86_400_000,
        "price": 1.25,
        "id": "00000000-0000-0000-0000-000000000005",
        "inner": {"local": 1_000},
    }


def test_the_ids_of_records_are_found_and_nothing_else():
    assert ids_of([framed(7, b"x"), framed(7, b"y"), framed(300, b""), b"", b"\0\0", b"\1\0\0\0\1", None]) == {7, 300}


def test_a_registry_is_asked_for_each_schema_once():
    with schema_registry.running({1: ("AVRO", json.dumps(FIRST)), 3: ("JSON", "{}")}) as server:
        registry = SchemaRegistry(server.url + "/")
        for _ in range(2):
            found = registry.loaders({1, 3})
        assert server.asked == [1, 3]
        assert decode(source(), [avro(FIRST, GOOD)], found).frame.to_dicts() == [GOOD]


def test_what_a_schema_refers_to_is_asked_of_the_registry():
    money = {"type": "record", "name": "shop.Money", "fields": [{"name": "x", "type": "double"}]}
    total = {"type": "record", "name": "shop.Total", "fields": [{"name": "of", "type": "shop.Money"}]}
    paid = record(("id", "string"), ("at", "long"), ("total", "shop.Total"), ("fee", "shop.Money"))
    references = [{"name": each, "subject": each, "version": 1} for each in ("shop.Money", "shop.Total")]
    schemas = {
        1: ("AVRO", json.dumps(paid), *references[::-1]),
        2: ("AVRO", json.dumps(total), references[0]),
        3: ("AVRO", json.dumps(money)),
        4: ("JSON", "{}", {"name": "n", "subject": "nobody's", "version": 1}),
    }
    with schema_registry.running(schemas, {"shop.Total/1": 2, "shop.Money/1": 3}) as server:
        found = SchemaRegistry(server.url).loaders({1, 4})
        assert server.asked == [1, 2, 3, 4]
    event = {"id": "a", "at": 5, "total": {"of": {"x": 1.5}}, "fee": {"x": 0.5}}
    out, named = io.BytesIO(), {}
    for each in (money, total, paid):
        schema = fastavro.parse_schema(each, named)
    fastavro.schemaless_writer(out, schema, event)
    decoded = decode(source(fields={"x": "total.of.x"}), [framed(1, out.getvalue())], found)
    assert decoded.frame.row(0)[:4] == ("a", 5, None, 1.5)


def test_schemas_that_are_unknown_or_of_no_use_are_left_out(caplog):
    schemas = {4: ("THRIFT", "struct"), 5: ("AVRO", "no json"), 6: ("AVRO", '{"type": "nothing"}')}
    with schema_registry.running(schemas) as server:
        assert SchemaRegistry(server.url).loaders({4, 5, 6, 7}) == {}
    told = {record.schema: (record.getMessage(), str(getattr(record, "error", ""))) for record in caplog.records}
    assert "schemas of type THRIFT are not supported" in told[4][1]
    assert told[7] == ("a schema cannot be used", "there is no schemas/ids/7")


def test_a_registry_that_is_away_or_refuses_is_an_error_that_tells_no_secret():
    with schema_registry.running({1: ("AVRO", json.dumps(FIRST))}) as server:
        address = server.url.removeprefix("http://")
        server.secret = "Basic dXNlcjpzZS9jcmV0"
        assert 1 in SchemaRegistry(f"http://user:se%2Fcret@{address}").loaders({1})
        with pytest.raises(ConfigError, match="refuses these credentials") as refused:
            SchemaRegistry(f"http://user:wrong@{address}").loaders({1})
        assert "wrong" not in str(refused.value)
        server.away = True
        with pytest.raises(UnavailableError, match="cannot serve: HTTP 503"):
            SchemaRegistry(server.url).loaders({1})
    with pytest.raises(UnavailableError, match="cannot reach the schema registry"):
        SchemaRegistry(server.url).loaders({1})
    with pytest.raises(ConfigError, match="not the address of a schema registry"):
        SchemaRegistry("ftp://x")
