"""Names are numbered as a dict would number them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.names import Names

KEYS = st.lists(st.binary(max_size=20) | st.sampled_from([b"", b"s", b"sa", b"s" * 300, b"i1", b"i11"]))


@given(st.lists(KEYS, max_size=5))
def test_names_are_numbered_in_order_of_first_sight(batches):
    names, known = Names(), {}
    for keys in batches:
        expected = [known.setdefault(key, len(known)) for key in keys]
        assert names.number(keys).tolist() == expected
    assert len(names) == len(known)
    assert [names[number] for number in range(len(names))] == list(known)


def test_many_names_stay_apart_while_the_table_grows():
    names, keys = Names(), [b"i%d" % number for number in range(50_000)]
    for begin in range(0, len(keys), 7_000):
        names.number(keys[begin : begin + 7_000])
    again = np.random.default_rng(1).permutation(len(keys))
    assert np.array_equal(names.number([keys[number] for number in again]), again)
    assert len(names) == len(keys)


def test_a_number_that_was_not_given_out_is_no_name():
    names = Names()
    names.number([b"sa"])
    for number in (-1, 1):
        with pytest.raises(IndexError):
            names[number]
