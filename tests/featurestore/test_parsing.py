from __future__ import annotations

import json
import struct

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.decoding import MAX_KEY, MAX_TIME, _decoded_strictly, decode_json
from featurestore.parsing import names_of, parsed
from featurestore.values import Values

SCHEMA = {"id": "str", "at": "timestamp[ms]", "n": "int", "x": "float", "ok": "bool", "note": "str"}
RULES = (SCHEMA, ["id"], "at")

scalars = st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats() | st.text(max_size=20)
numbers = st.from_regex(r"-?[0-9]{1,22}(\.[0-9]{0,22})?([eE][-+]?[0-9]{0,3})?", fullmatch=True)
values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(max_size=3), scalars, max_size=2)
names = st.sampled_from([*SCHEMA, "more", "é", "i\u0064"])
good = {"id": "k", "at": 5}


@st.composite
def texts(draw):
    """JSON text that is mostly good: any values, spacing, escapes and order, now and then with a byte changed."""
    event = good | draw(st.dictionaries(names, values, max_size=6))
    members = list(event.items()) + draw(st.lists(st.tuples(names, values), max_size=1))
    ascii_only, blank = draw(st.booleans()), draw(st.sampled_from(["", " ", "\n\t "]))
    parts = []
    for name, value in draw(st.permutations(members)):
        text = json.dumps(value, ensure_ascii=ascii_only)
        if isinstance(value, float | int) and draw(st.booleans()):
            text = draw(numbers)
        parts.append(f"{json.dumps(name, ensure_ascii=ascii_only)}{blank}:{blank}{text}")
    made = bytearray(("{" + f"{blank},{blank}".join(parts) + "}").encode("utf-8", "surrogatepass"))
    if draw(st.integers(0, 3)) == 0:
        made[draw(st.integers(0, len(made) - 1))] = draw(st.sampled_from(b'"\\{}[]:,u0123deE+-. \xc3\xa9\xff\0nt'))
    return bytes(made)


def taken(*given_values, schema=None):
    made = names_of(tuple((schema or SCHEMA).items()), frozenset(["id"]), "at", (MAX_TIME, 65_536, MAX_KEY))
    return parsed(made, Values.of(given_values)).taken.tolist()


@settings(max_examples=500, deadline=None)
@given(st.lists(texts(), min_size=1, max_size=4))
def test_what_is_taken_is_what_the_strict_decoder_takes(records):
    found, strict = decode_json(*RULES, records), _decoded_strictly(*RULES, records, 65_536, 32)
    assert found.rejects == strict.rejects
    assert found.rows.tolist() == strict.rows.tolist()
    assert repr(found.frame.to_dicts()) == repr(strict.frame.to_dicts())
    assert [bits(x) for x in found.frame["x"]] == [bits(x) for x in strict.frame["x"]]


def bits(value):
    return None if value is None else struct.pack("<d", value)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False, width=64), min_size=1))
def test_floats_as_programs_write_them_are_the_same_floats(floats):
    records = [json.dumps(good | {"x": value}).encode() for value in floats]
    assert [bits(x) for x in decode_json(*RULES, records).frame["x"]] == [bits(float(x)) for x in floats]


@pytest.mark.parametrize(
    "value",
    [
        b'{"id":"k","at":5,"n":-7,"x":0.1,"ok":false,"note":"\xc3\xa9"}',
        b' { "note" : null , "at" : 5 , "id" : "k" } ',
        json.dumps(good | {"note": 'a"\\/\b\f\n\r\t\x00é€😀'}).encode(),
        b'{"id":"k","at":5,"more":"\\u00e9","other":12.5e-3,"x":1e22}',
        json.dumps(good | {"x": 0.30000000000000004}).encode(),
    ],
)
def test_the_usual_needs_no_other_decoder(value):
    assert taken(value) == [True]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b'{"id":"k"}',
        b'{"id":"k","at":5,"id":"k"}',
        b'{"id":"k","at":5,"more":[1]}',
        b'{"id":"\xff","at":5}',
    ],
)
def test_what_is_doubtful_is_left_to_the_strict_decoder(value):
    assert taken(value) == [False]


def test_texts_of_all_lengths_come_through_plain_and_escaped():
    notes = ["x" * size for size in range(40)] + ["\u00e9" * size for size in range(40)]
    records = [json.dumps(good | {"note": note}, ensure_ascii=escaped).encode() for note in notes for escaped in (0, 1)]
    assert all(taken(*records))
    assert decode_json(*RULES, records).frame["note"].to_list() == list(np.repeat(notes, 2))


def test_a_record_is_read_within_its_bounds():
    whole = b'{"id":"k","at":5,"note":"abc"}{"id":"k2","at":6}'
    starts = np.arange(len(whole), dtype=np.int64)
    for length in range(1, 31):
        cut = Values(
            np.frombuffer(whole, np.uint8), starts[: len(whole) - length], np.full(len(whole) - length, length)
        )
        found = decode_json(*RULES, cut)
        assert found.frame.equals(_decoded_strictly(*RULES, list(cut), 65_536, 32).frame)


def test_more_columns_than_there_are_bits_are_decoded_strictly():
    schema = {"id": "str", "at": "int", **{f"c{i}": "int" for i in range(70)}}
    record = json.dumps({name: 5 if name != "id" else "k" for name in schema}).encode()
    assert decode_json(schema, ["id"], "at", [record]).frame.equals(
        pl.DataFrame({name: ["k" if name == "id" else 5] for name in schema})
    )
