"""How the kernel is compiled: what its functions call becomes machine code only within what Python calls."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from numba import njit

from featurestore.kernel.layout import compiled, inlined
from featurestore.kernel.parts import EntryCompiler


@inlined
def _doubled(value):
    return 2 * value


@compiled
def _sum_of_doubles(values):
    total = 0.0
    for i in range(values.shape[0]):
        total += _doubled(values[i])
    return total


def test_a_part_works_within_what_python_calls():
    @njit
    def entry(values):
        return _sum_of_doubles(values) + _doubled(1)

    assert entry(np.array([1.0, 2.5])) == 9.0


@pytest.mark.parametrize(("part", "given"), [(_sum_of_doubles, np.ones(3)), (_doubled, 1.0)])
def test_a_part_that_python_calls_refuses_and_does_not_crash(part, given):
    for _ in range(2):  # the second time it is compiled already
        with pytest.raises(TypeError, match="bad argument"):
            part(given)


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_waits_until_all_is_compiled_and_is_collected_then_if_it_was_before(collects):
    seen = []

    class Watching(EntryCompiler):
        def define_pipelines(self):
            seen.append(gc.isenabled())
            return super().define_pipelines()

    @njit(pipeline_class=Watching)
    def entry(value):
        return value + 1

    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        assert entry(1) == 2
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()
    assert seen == [False]
