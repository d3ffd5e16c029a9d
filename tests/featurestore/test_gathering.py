"""The algebra of bags: how the kernel merges stretches of their entries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import CountBy, Distinct, SumBy
from featurestore.kernel import gathering, layout, sketches
from featurestore.plan import compiled
from tests.featurestore.closeness import EPS, INT64, REAL
from tests.featurestore.helpers import callable_part, made

merged, to_registers = callable_part(gathering.merged), callable_part(sketches.to_registers)


class Bags:
    """Stretches of a bag's entries, merged by the kernel."""

    def __init__(self, aggregate):
        self.plan = compiled(made({"f": aggregate}, windows=["lifetime"]))
        (bag,) = self.plan.bags
        self.size = 1 + bag.words
        words = self.plan.memory(1, [1])
        self.words = np.concatenate([words, np.zeros(1 << 14, np.int64)])
        self.reals = self.words.view(np.float64)
        self.bag = self.words[self.words[layout.GROUPS_END] + layout.OF_BAG]

    def __call__(self, *stretches):
        """The entries of ascending stretches, one of each key."""
        flat = [word for stretch in stretches for entry in stretch for word in entry]
        at = int(self.words[layout.USED])
        self.words[at : at + len(flat)] = flat
        begin, end = merged(self.words, self.reals, self.bag, at, at + len(flat))
        return [tuple(entry) for entry in self.words[begin:end].reshape(-1, self.size).tolist()]


COUNTED, SKETCHED = Bags(CountBy("s")), Bags(Distinct("i", bound=1))
WHOLE, REALS = Bags(SumBy("i", by="s")), Bags(SumBy("x", by="s"))
KEYS = st.integers(0, 9)


def stretches(value):
    """Ascending entries, by key."""
    made_of = st.dictionaries(KEYS, value, max_size=6)
    return made_of.map(lambda entries: [(key, *counted) for key, counted in sorted(entries.items())])


COUNTS = stretches(st.tuples(st.integers(1, 99)))
SUMS = stretches(st.tuples(st.integers(-INT64, INT64 - 1), st.integers(-3, 3)))
FLOATS = REAL.filter(lambda x: not math.isnan(x)).map(lambda x: int(np.float64(x).view(np.int64)))
FLOAT_SUMS = stretches(st.tuples(FLOATS, st.just(0)))


def registers(hashed):
    """The registers of hashes, as entries."""
    words = np.array([(each, 1) for each in sorted(set(hashed))], np.int64).reshape(-1)
    end = to_registers(words, 0, len(words), 2)
    return [tuple(entry) for entry in words[:end].reshape(-1, 2).tolist()]


@pytest.mark.parametrize(
    ("bags", "entries"),
    [(COUNTED, COUNTS), (WHOLE, SUMS), (SKETCHED, st.lists(st.integers(0, INT64 - 1)).map(registers))],
)
def test_the_merge_of_bags_is_associative_and_takes_stretches_in_any_order(bags, entries):
    @settings(max_examples=100)
    @given(a=entries, b=entries, c=entries)
    def check(a, b, c):
        assert bags(a) == bags(a, []) == bags([], a) == a
        assert bags(bags(a, b), c) == bags(a, bags(b, c)) == bags(a, b, c)
        assert bags(c, b, a) == bags(b, a, c) == bags(a, b, c)

    check()


@settings(max_examples=100)
@given(parts=st.lists(FLOAT_SUMS, min_size=3, max_size=3))
def test_the_merge_of_float_sums_keeps_every_key_and_its_error_bound(parts):
    a, b, c = parts
    flat = [entry for part in parts for entry in part]
    for result in (REALS(a, b, c), REALS(REALS(a, b), c), REALS(a, REALS(b, c)), REALS(c, a, b)):
        assert [key for key, _, _ in result] == sorted({key for key, _, _ in flat})
        for key, *words in result:
            total, rest = np.array(words, np.int64).view(np.float64)
            values = np.array([word for each, word, _ in flat if each == key], np.int64).view(np.float64)
            size = math.fsum(map(abs, values))
            assert abs(total + rest - math.fsum(values)) <= 2 * EPS * abs(math.fsum(values)) + 64 * EPS**2 * size


@settings(max_examples=100)
@given(st.lists(st.integers(0, INT64 - 1), max_size=40), st.lists(st.integers(0, INT64 - 1), max_size=40))
def test_registers_of_two_sets_merged_are_those_of_their_union(one, other):
    both = registers(one + other)
    assert SKETCHED(registers(one), registers(other)) == both
    if one and other:
        assert SKETCHED([(each, 1) for each in sorted(set(one))], registers(other)) == both
