"""Memory keeps its words while it grows, also under the eyes of somebody else, and is used again when nobody looks."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from featurestore import growing
from featurestore.growing import GrowingWords, matrix


@pytest.fixture(autouse=True)
def _nothing_waits(monkeypatch):
    monkeypatch.setattr(growing, "_pieces", [])


def address(words):
    return words.__array_interface__["data"][0]


@pytest.mark.parametrize("watched", [False, True])
def test_words_stay_while_memory_grows(watched):
    memory = GrowingWords(np.arange(5))
    eye = memory.words if watched else None
    memory.grow(100_000)
    assert memory.words[:5].tolist() == list(range(5))
    assert len(memory.words) == len(memory.reals) >= 100_000
    memory.reals[7] = 0.5
    assert memory.words[7] == np.float64(0.5).view(np.int64)
    memory.grow(1_000_000)
    assert memory.reals[7] == 0.5
    assert eye is None or eye.tolist() == list(range(5))


def test_what_is_large_fills_whole_huge_pages():
    memory = GrowingWords(np.arange(5))
    for words in (300_000, 1_000_001, 3_000_000):
        memory.grow(words)
        assert len(memory.words) % (growing.HUGE // 8) == 0
    matrix(3, 100_001, np.int64)
    assert [len(piece) % growing.HUGE for piece in growing._pieces if len(piece) >= growing.LARGE] == [0, 0]


def test_memory_that_nobody_looks_at_is_used_again():
    words = matrix(10, 100_000, np.int64)
    place = address(words)
    del words
    assert address(matrix(9, 100_000, np.int64)) == place


@pytest.mark.parametrize(
    "seen",
    [
        lambda words: words[3, 5:],
        lambda words: pa.array(words[0]),
        lambda words: pl.Series(pa.array(words[2])),
        memoryview,
    ],
)
def test_memory_that_somebody_still_sees_is_not_given_away(seen):
    words = matrix(10, 100_000, np.int64)
    words[:] = 7
    eye, place = seen(words), address(words)
    del words
    other = matrix(10, 100_000, np.int64)
    assert address(other) != place
    other[:] = 8
    assert set(np.asarray(eye).reshape(-1).tolist()) == {7}


def test_a_piece_that_is_much_too_large_is_left_to_others():
    large = matrix(100, 100_000, np.int64)
    place = address(large)
    del large
    assert address(matrix(2, 100_000, np.int64)) != place


def test_what_waits_is_bounded(monkeypatch):
    monkeypatch.setattr(growing, "KEPT", 20_000_000)
    held = [matrix(1, 1_000_000 + n, np.int64) for n in range(5)]
    del held
    matrix(1, 3_000_000, np.int64)
    assert sum(map(len, growing._pieces)) <= 20_000_000 + 24_000_000
    monkeypatch.setattr(growing, "PIECES", 3)
    held = [matrix(1, 200_000 + n, np.int64) for n in range(9)]
    assert len(growing._pieces) == 3
    assert len({address(words) for words in held}) == 9


def test_what_grew_beyond_the_bounds_goes_back_when_its_user_is_done(monkeypatch):
    monkeypatch.setattr(growing, "KEPT", 20_000_000)
    memory = GrowingWords(np.arange(5))
    memory.grow(3_000_000)
    assert memory.words[:5].tolist() == list(range(5))
    assert growing._pieces == []
    large = matrix(1, 3_000_000, np.int64)
    assert len(large[0]) == 3_000_000
    assert growing._pieces == []
