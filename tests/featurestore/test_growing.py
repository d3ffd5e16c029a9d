"""Memory keeps its words while it grows, also under the eyes of somebody else."""

from __future__ import annotations

import numpy as np
import pytest

from featurestore.growing import GrowingWords


@pytest.mark.parametrize("watched", [False, True])
def test_words_stay_while_memory_grows(watched):
    memory = GrowingWords(np.arange(5))
    eye = memory.words if watched else None
    memory.grow(100_000)
    assert memory.words[:5].tolist() == list(range(5))
    assert not memory.words[5:].any()
    assert len(memory.words) == len(memory.reals) == 100_000
    memory.reals[7] = 0.5
    assert memory.words[7] == np.float64(0.5).view(np.int64)
    memory.grow(1_000_000)
    assert memory.reals[7] == 0.5
    assert eye is None or eye.tolist() == list(range(5))
