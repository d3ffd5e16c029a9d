"""Finishes: how a feature comes out of what its window was merged to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.kernel.layout import (
    CODE,
    OUT_N,
    OUT_PARAMETER,
    OUT_WORD,
    OUTPUT,
    TWO_TO_64,
    ZERO,
    Results,
    compiled,
    inlined,
)
from featurestore.kernel.primitives import added_real, merged_moments

if TYPE_CHECKING:
    from featurestore.kernel.layout import Reals, Words

COUNT, TOTAL_FLOAT, TOTAL_INT, MEAN_FLOAT, MEAN_INT, VALUE, STD, VAR, TIMED_VALUE, SINCE = range(10)
SKEW, KURTOSIS, RATE_COUNT, RATE_FLOAT, RATE_INT, DECAYED, SLOPE, CORR = range(10, 18)
BUNDLE_FLOAT, BUNDLE_INT = 18, 19

#: What a bundle may write of one STATS primitive, by its column after OUTPUT; -1 there for what nobody wants.
BUNDLED = ("count", "sum", "mean", "min", "max", "std", "var")


@inlined
def _write(
    words: Words,
    out: int,
    n: int,
    whole_sum: int,
    wraps: int,
    total: float,
    low: int,
    high: int,
    squares: float,
    results: Results,
    column: int,
) -> None:
    """Write a bundle's outputs; `low` and `high` are the bits of what may be floats."""
    j = words[out + OUTPUT]
    if j >= 0:
        results.words[j, column] = n
    j = words[out + OUTPUT + 1]
    if j >= 0:
        if words[out + CODE] == BUNDLE_INT:
            results.words[j, column] = whole_sum
            if wraps != 0:
                results.valid[j, column] = False
        else:
            results.reals[j, column] = total
    j = words[out + OUTPUT + 2]
    if j >= 0:
        results.reals[j, column] = total / n if n else 0.0
        if n == 0:
            results.valid[j, column] = False
    for i in range(2):
        j = words[out + OUTPUT + 3 + i]
        if j >= 0:
            results.words[j, column] = high if i else low
            if n == 0:
                results.valid[j, column] = False
    variance = squares / (n - 1) if n > 1 else 0.0
    j = words[out + OUTPUT + 5]
    if j >= 0:
        results.reals[j, column] = np.sqrt(variance)
        if n < 2:
            results.valid[j, column] = False
    j = words[out + OUTPUT + 6]
    if j >= 0:
        results.reals[j, column] = variance
        if n < 2:
            results.valid[j, column] = False


@inlined
def finish_bundle(words: Words, reals: Reals, out: int, a: int, b: int, results: Results, column: int) -> None:
    """Write the outputs of a STATS primitive at once, from the accumulator at `b`.

    Of floats also from what that at `a` (0 for none) and `b` come to, to the bit as `primitives.merge_one` has it.
    """
    a, b = a + words[out + OUT_WORD] if a else b + words[out + OUT_WORD], b + words[out + OUT_WORD]
    na, nb, whole, wraps = words[a], words[b], ZERO, ZERO
    if a == b or na == 0 or nb == 0:
        w = a if nb == 0 else b
        n, total, squares, low, high = words[w], reals[w + 1] + reals[w + 2], reals[w + 6], words[w + 3], words[w + 4]
        if words[out + CODE] == BUNDLE_INT:
            whole, wraps = words[w + 1], words[w + 2]
            total = whole + wraps * TWO_TO_64
    else:
        total, more = added_real(reals[a + 1], reals[a + 2], reals[b + 1])
        total += more + reals[b + 2]
        n = na + nb
        _, squares = merged_moments(reals[a + 5], reals[a + 6], reals[b + 5], reals[b + 6], na, nb)
        low = words[b + 3] if reals[b + 3] < reals[a + 3] else words[a + 3]
        high = words[b + 4] if reals[b + 4] > reals[a + 4] else words[a + 4]
    _write(words, out, n, whole, wraps, total, low, high, squares, results, column)


@inlined
def finish_simple(words: Words, reals: Reals, out: int, a: int, b: int, results: Results, column: int) -> None:
    """Write what an out of a SIMPLE group says of what the accumulators at `a` (0 for none) and `b` come to."""
    if words[out + CODE] == COUNT:
        n = words[b + words[out + OUT_N]]
        if a:
            n += words[a + words[out + OUT_N]]
        results.words[words[out + OUTPUT], column] = n
    else:
        finish_bundle(words, reals, out, a, b, results, column)


@compiled
def _bundle_apart(words: Words, reals: Reals, out: int, at: int, results: Results, column: int) -> None:
    finish_bundle(words, reals, out, ZERO, at, results, column)


@compiled
def finish_out(words: Words, reals: Reals, out: int, at: int, as_of: int, results: Results, column: int) -> None:
    """Write what row `out` of the outs says of a column, from the accumulator at `at`."""
    if words[out + CODE] >= BUNDLE_FLOAT:
        _bundle_apart(words, reals, out, at, results, column)
        return
    j, w, n = words[out + OUTPUT], at + words[out + OUT_WORD], words[at + words[out + OUT_N]]
    code, valid, parameter = words[out + CODE], True, reals[out + OUT_PARAMETER]
    if code == COUNT:
        results.words[j, column] = n
    elif code == TOTAL_FLOAT:
        results.reals[j, column] = reals[w] + reals[w + 1]
    elif code == TOTAL_INT:
        valid = words[w + 1] == 0
        results.words[j, column] = words[w]
    elif code == STD:
        valid = n > 1
        results.reals[j, column] = np.sqrt(reals[w + 1] / (n - 1)) if valid else 0.0
    elif code == VAR:
        valid = n > 1
        results.reals[j, column] = reals[w + 1] / (n - 1) if valid else 0.0
    elif code == RATE_COUNT:
        results.reals[j, column] = n / parameter
    elif code == RATE_FLOAT:
        results.reals[j, column] = (reals[w] + reals[w + 1]) / parameter
    elif code == RATE_INT:
        total = words[w] + words[w + 1] * TWO_TO_64
        results.reals[j, column] = total / parameter
    elif code == DECAYED:
        age = (words[w] - as_of) / parameter
        results.reals[j, column] = reals[w + 1] * np.exp2(age) if n else 0.0
    elif n == 0:
        valid = False
        results.words[j, column] = 0
    elif code == VALUE:
        results.words[j, column] = words[w]
    elif code == MEAN_FLOAT:
        results.reals[j, column] = (reals[w] + reals[w + 1]) / n
    elif code == MEAN_INT:
        results.reals[j, column] = (words[w] + words[w + 1] * TWO_TO_64) / n
    elif code == TIMED_VALUE:
        results.words[j, column] = words[w + 1]
    elif code == SINCE:
        results.words[j, column] = as_of - words[w]
    else:
        valid = _shape(code, w, n, reals, results, j, column)
    if not valid:
        results.valid[j, column] = False


@inlined
def _shape(code: int, w: int, n: int, reals: Reals, results: Results, j: int, column: int) -> bool:
    """Skewness and excess kurtosis of the values themselves (no correction for samples); slope; correlation."""
    value = np.nan
    if code == SKEW:
        value = reals[w + 2] / n / (reals[w + 1] / n) ** 1.5 if reals[w + 1] > 0 else np.nan
    elif code == KURTOSIS:
        value = reals[w + 3] * n / (reals[w + 1] * reals[w + 1]) - 3 if reals[w + 1] > 0 else np.nan
    elif code == SLOPE:
        value = 1000 * reals[w + 4] / reals[w + 3] if reals[w + 3] > 0 else np.nan  # a second
    elif reals[w + 2] > 0 and reals[w + 3] > 0:
        value = min(max(reals[w + 4] / np.sqrt(reals[w + 2]) / np.sqrt(reals[w + 3]), -1.0), 1.0)
    results.reals[j, column] = value if np.isfinite(value) else 0.0
    return bool(np.isfinite(value))
