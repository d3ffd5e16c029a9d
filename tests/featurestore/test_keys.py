"""Entity keys: a bijection that no value can break out of."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featurestore.errors import DataError, FormatError
from featurestore.keys import (
    MAX_VALUE_BYTES,
    decode_entity,
    encode_entity,
    encode_strings,
    position_key,
    state_key,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
INT64 = st.integers(-(2**63), 2**63 - 1)
ENTITIES = st.lists(TEXT | INT64 | st.booleans(), min_size=1, max_size=4)


@given(ENTITIES)
@example(["\x00", "{}:\n,%~*?[]\\ é漢😀"])
@example(["next"])
@example([""])
@example([True, 1, "1", "True"])
def test_decoding_gives_back_the_values_and_their_types(values):
    decoded = decode_entity(encode_entity(values))
    assert [(type(value), value) for value in decoded] == [(type(value), value) for value in values]


@given(ENTITIES, ENTITIES)
def test_two_entities_share_a_key_only_when_equal_in_value_and_type(left, right):
    same = [(type(v), v) for v in left] == [(type(v), v) for v in right]
    assert (encode_entity(left) == encode_entity(right)) == same


@given(ENTITIES)
def test_no_value_can_change_the_hash_tag_or_the_shape_of_a_key(values):
    entity = encode_entity(values)
    assert re.fullmatch(rb"[A-Za-z0-9_.,%-]+", entity)
    key = state_key("card.events", 3, "activity@ab12", entity)
    assert key.startswith(b"{card.events:3}:activity@ab12:")
    assert (key.count(b"{"), key.count(b"}"), key.count(b":")) == (1, 1, 3)
    assert key != position_key("card.events", 3, "activity@ab12")


@given(st.binary(max_size=40) | ENTITIES.map(encode_entity))
@example(b"next")
@example(b"")
@example(b"i07")
@example(b"i1_0")
@example(b"i 7")
@example(b"s%41")
@example(b"s%zz")
@example(b"s%ff")
@example(b"b2")
@example(b"s%e9")
def test_only_bytes_that_encoding_made_are_decoded(entity):
    try:
        values = decode_entity(entity)
    except FormatError:
        return
    assert encode_entity(values) == entity


@given(st.lists(TEXT | st.text("abcXYZ019_.-", max_size=20), max_size=30))
def test_encoding_many_strings_equals_encoding_each(values):
    assert encode_strings(values) == [encode_entity((value,)) for value in values]


def test_plain_keys_stay_readable():
    assert (
        state_key("flights", 0, "origin@c0ffee", encode_entity(("ORD", -7, True)))
        == b"{flights:0}:origin@c0ffee:sORD,i-7,b1"
    )
    assert position_key("flights", 0, "origin@c0ffee") == b"{flights:0}:origin@c0ffee:next"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((), "at least one"),
        (("x" * (MAX_VALUE_BYTES + 1),), "at most 256"),
        (("é" * 129,), "258 bytes"),
        (("\ud800",), "lone surrogate"),
        ((2**63,), "int64"),
        ((10**5000,), "int64"),
        ((1.5,), "float"),
        ((None,), "NoneType"),
    ],
)
def test_values_that_cannot_be_keys_are_refused(values, message):
    with pytest.raises(DataError, match=message):
        encode_entity(values)


def test_the_longest_allowed_value_passes():
    longest = "é" * (MAX_VALUE_BYTES // 2)
    assert decode_entity(encode_entity((longest,))) == (longest,)


def test_one_value_too_long_is_named_among_many():
    with pytest.raises(DataError, match="'yyyy"):
        encode_strings(["plain", "y" * 257])


@pytest.mark.parametrize(
    ("topic", "view_key"), [("a}b", "v@1"), ("a", "v"), ("a", "v@1:x"), ("", "v@1"), ("a\n", "v@1")]
)
def test_names_that_could_break_out_of_a_key_are_refused(topic, view_key):
    with pytest.raises(DataError, match="cannot be stored"):
        state_key(topic, 0, view_key, b"s1")
