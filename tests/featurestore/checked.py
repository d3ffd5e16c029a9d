"""Tests of the kernel as Python, every index and every move looked at: `python -m tests.featurestore.checked`.

Compiled, an index of a bare array is used as it is; one that lies outside would read or write what is there. And new
memory is full of nonsense here, as it may be everywhere.
"""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest


class Checked:
    """An array that takes only indices from 0 to its end."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def __getitem__(self, index):
        return self.array[self._inside(index)]

    def __setitem__(self, index, value):
        self.array[self._inside(index)] = value

    def _inside(self, index):
        if any(each < 0 for each in (index if isinstance(index, tuple) else (index,))):
            raise IndexError(f"{index} of {self.shape}")
        return index


def bared(given):
    return type(given)(*map(bared, given)) if isinstance(given, tuple) else Checked(given)


def move(words, to, at, count):
    """As `featurestore.kernel.bare.move`."""
    if min(to, at, count) < 0 or max(to, at) + count > words.shape[0]:
        raise IndexError(f"{count} from {at} to {to} of {words.shape}")
    array = words.array if isinstance(words, Checked) else words
    array[to : to + count] = array[at : at + count].copy()


def wipe(words, at, count):
    """As `featurestore.kernel.bare.wipe`."""
    if min(at, count) < 0 or at + count > words.shape[0]:
        raise IndexError(f"{count} at {at} of {words.shape}")
    (words.array if isinstance(words, Checked) else words)[at : at + count] = 0


def flat(matrix):
    return Checked(matrix.array.reshape(-1))


def fetch(_words, _at):
    """Nothing: it may be told any address."""


def spoilt(memory, used):
    """Memory for a state whose free words hold nonsense."""

    def made(plan, partitions, sizes):
        words = memory(plan, partitions, sizes)
        words[words[used] :] = -(2**62) - 12_345
        return words

    return made


def main():
    bare = ModuleType("featurestore.kernel.bare")
    bare.bared, bare.move, bare.wipe, bare.fetch, bare.flat = bared, move, wipe, fetch, flat
    sys.modules[bare.__name__] = bare
    np.seterr(over="ignore")  # hashes wrap
    from featurestore.kernel import layout  # noqa: PLC0415 - the kernel must not be there before
    from featurestore.planned import Plan  # noqa: PLC0415

    Plan.memory = spoilt(Plan.memory, layout.USED)
    tests = [
        "tests/featurestore/test_engine.py",
        "tests/featurestore/test_stretches.py",
        "-k",
        "equals_the_oracle or no_cut_into_batches or written_and_no_other",
    ]
    return pytest.main([*tests, "-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"])


if __name__ == "__main__":
    sys.exit(main())
