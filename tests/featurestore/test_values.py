from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.values import Values

strings = st.lists(st.none() | st.binary(max_size=30), max_size=20)


@given(strings)
def test_values_are_the_sequence_that_they_were_made_of(given_values):
    values = Values.of(given_values)
    assert list(values) == given_values
    assert [values[i] for i in range(len(values))] == given_values
    assert values == given_values
    assert Values.of(values) is values


@given(strings)
def test_values_become_arrow_s_views(given_values):
    array = Values.of(given_values).to_arrow()
    array.validate(full=True)
    assert array.to_pylist() == given_values


@given(strings.filter(bool), st.data())
def test_parts_of_values_share_the_buffer(given_values, data):
    values = Values.of(given_values)
    rows = data.draw(st.lists(st.integers(0, len(given_values) - 1), max_size=9))
    begin, end = (data.draw(st.integers(0, len(given_values))) for _ in range(2))
    taken = values.taken(np.array(rows, np.int64))
    assert list(taken) == [given_values[row] for row in rows]
    assert list(values[begin:end]) == given_values[begin:end]
    assert np.shares_memory(taken.buffer, values.buffer) or not len(values.buffer)


def test_an_index_beyond_the_end_is_an_error():
    with pytest.raises(IndexError):
        Values.of([b"a"])[1]


@given(st.lists(st.lists(st.none() | st.binary(max_size=20), max_size=4), min_size=1, max_size=5))
def test_parts_are_joined_whatever_they_are(parts):
    mixed = [Values.of(part) if i % 2 else part for i, part in enumerate(parts)]
    assert Values.joined(mixed) == [value for part in parts for value in part]
