"""Primitives: what a tile keeps of a lane, as an algebra of three compiled functions: add, merge, finish.

Sums of floats are compensated after Neumaier, ZAMM 54 (1974); moments follow Welford, Technometrics 4 (1962), and
merge after Chan, Golub and LeVeque, COMPSTAT (1982); those of third and fourth order and co-moments follow Pebay,
Sandia report SAND2008-6212 (2008). Nothing is ever subtracted to expire it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.kernel.bare import move
from featurestore.kernel.layout import CODE, INT_MAX, INT_MIN, N_WORD, PARAMETER, SIZE, WORD, ZERO, inlined

if TYPE_CHECKING:
    from featurestore.kernel.layout import Reals, Words

# Those that count (STATS_FLOAT, STATS_INT, N) come last of a lane: the others ask the count whether they are first.
SUM_FLOAT, SUM_INT, MIN_FLOAT, MIN_INT, MAX_FLOAT, MAX_INT, MOMENTS_FLOAT, MOMENTS_INT = range(8)
MOMENTS4_FLOAT, MOMENTS4_INT, FIRST, LAST, DECAY_FLOAT, DECAY_INT, TREND_FLOAT, TREND_INT, PAIR = range(8, 17)
STATS_FLOAT, STATS_INT, N = range(17, 20)

#: Words that a primitive takes in a tile.
#: SUM_FLOAT: sum, compensation. SUM_INT: sum, how often it wrapped. MOMENTS: mean, sum of squares about it; MOMENTS4:
#: and of cubes, and of fourth powers. FIRST, LAST: time, value. DECAY: time, sum as of then. TREND: time of its first
#: event, means of time since then (a float's bits are too few for the mean of times themselves) and of value, squares
#: of time, products. PAIR: two means, two sums of squares, products. STATS_FLOAT: count, sum, compensation, min, max,
#: mean, squares. STATS_INT: count, sum, wraps, min, max, mean, squares. N: count.
WORDS = {SUM_FLOAT: 2, SUM_INT: 2, MIN_FLOAT: 1, MIN_INT: 1, MAX_FLOAT: 1, MAX_INT: 1, MOMENTS_FLOAT: 2, MOMENTS_INT: 2}
WORDS |= {MOMENTS4_FLOAT: 4, MOMENTS4_INT: 4, FIRST: 2, LAST: 2, DECAY_FLOAT: 2, DECAY_INT: 2}
WORDS |= {TREND_FLOAT: 5, TREND_INT: 5, PAIR: 5, STATS_FLOAT: 7, STATS_INT: 7, N: 1}


@inlined
def added_real(before: float, more: float, value: float) -> tuple[float, float]:
    """A compensated sum with one more value."""
    total = before + value
    if np.isfinite(total):
        back = total - before
        more += (before - (total - back)) + (value - back)
    return total, more


@inlined
def add_real(reals: Reals, w: int, value: float) -> None:
    """Add to a compensated sum."""
    reals[w], reals[w + 1] = added_real(reals[w], reals[w + 1], value)


@inlined
def overflows(a: int, b: int) -> bool:
    """Whether a + b leaves int64."""
    return (b > 0 and a > INT_MAX - b) or (b < 0 and a < INT_MIN - b)


@inlined
def add_int(words: Words, w: int, value: int, wraps: int) -> None:
    """Add to an integer sum that knows how often it wrapped: 0 in the end means that the sum is right."""
    if overflows(words[w], value):
        words[w + 1] += 1 if value > 0 else -1
    words[w] += value
    words[w + 1] += wraps


@inlined
def added_moments(mean: float, squares: float, n: int, value: float) -> tuple[float, float]:
    """A mean and the sum of squares about it with the n-th value.

    1 / n waits for nothing; a division of delta, on which the next value waits, would take longer than all the rest.
    """
    delta = value - mean
    mean += delta * (1.0 / n)
    return mean, squares + delta * (value - mean)


@inlined
def add_moments(reals: Reals, w: int, n: int, value: float) -> None:
    """Add the n-th value to a mean and the sum of squares about it."""
    reals[w], reals[w + 1] = added_moments(reals[w], reals[w + 1], n, value)


@inlined
def merged_moments(
    mean: float, squares: float, other: float, other_squares: float, na: int, nb: int
) -> tuple[float, float]:
    """Mean and squares of `na` values with those of `nb` others; neither are none."""
    delta, part = other - mean, nb / (na + nb)
    return mean + delta * part, squares + (other_squares + delta * delta * (na * part))


@inlined
def merge_moments(reals: Reals, a: int, b: int, na: int, nb: int) -> None:
    """Merge mean and squares at b into those at a; neither is empty."""
    reals[a], reals[a + 1] = merged_moments(reals[a], reals[a + 1], reals[b], reals[b + 1], na, nb)


@inlined
def _add_moments4(reals: Reals, w: int, n: int, value: float) -> None:
    delta = value - reals[w]
    part = delta / n
    square, term = part * part, delta * part * (n - 1)
    reals[w] += part
    reals[w + 3] += term * square * (n * n - 3 * n + 3) + 6 * square * reals[w + 1] - 4 * part * reals[w + 2]
    reals[w + 2] += term * part * (n - 2) - 3 * part * reals[w + 1]
    reals[w + 1] += term


@inlined
def _merge_moments4(reals: Reals, a: int, b: int, na: float, nb: float) -> None:
    n = na + nb
    delta = reals[b] - reals[a]
    part = delta / n
    square = part * part
    reals[a + 3] += (
        reals[b + 3]
        + delta * part * square * na * nb * (na * na - na * nb + nb * nb)
        + 6 * square * (na * na * reals[b + 1] + nb * nb * reals[a + 1])
        + 4 * part * (na * reals[b + 2] - nb * reals[a + 2])
    )
    reals[a + 2] += (
        reals[b + 2] + delta * square * na * nb * (na - nb) + 3 * part * (na * reals[b + 1] - nb * reals[a + 1])
    )
    reals[a + 1] += reals[b + 1] + delta * part * na * nb
    reals[a] += part * nb


@inlined
def _add_pair(reals: Reals, w: int, n: int, x: float, y: float) -> None:
    dx, dy = x - reals[w], y - reals[w + 1]
    reals[w] += dx / n
    reals[w + 1] += dy / n
    reals[w + 2] += dx * (x - reals[w])
    reals[w + 3] += dy * (y - reals[w + 1])
    reals[w + 4] += dx * (y - reals[w + 1])


@inlined
def _merge_pair(reals: Reals, a: int, b: int, na: float, nb: float) -> None:
    n = na + nb
    dx, dy, both = reals[b] - reals[a], reals[b + 1] - reals[a + 1], na * (nb / n)
    reals[a] += dx * nb / n
    reals[a + 1] += dy * nb / n
    reals[a + 2] += reals[b + 2] + dx * dx * both
    reals[a + 3] += reals[b + 3] + dy * dy * both
    reals[a + 4] += reals[b + 4] + dx * dy * both


@inlined
def _add_trend(words: Words, reals: Reals, w: int, n: int, time: int, value: float) -> None:
    if n == 1:
        words[w] = time
    since = float(time - words[w])
    dt = since - reals[w + 1]
    reals[w + 1] += dt / n
    reals[w + 2] += (value - reals[w + 2]) / n
    reals[w + 3] += dt * (since - reals[w + 1])
    reals[w + 4] += dt * (value - reals[w + 2])


@inlined
def _merge_trend(words: Words, reals: Reals, a: int, b: int, na: float, nb: float) -> None:
    n = na + nb
    dt, dx, both = (
        float(words[b] - words[a]) + (reals[b + 1] - reals[a + 1]),
        reals[b + 2] - reals[a + 2],
        na * (nb / n),
    )
    reals[a + 1] += dt * nb / n
    reals[a + 2] += dx * nb / n
    reals[a + 3] += reals[b + 3] + dt * dt * both
    reals[a + 4] += reals[b + 4] + dt * dx * both


@inlined
def _decay(words: Words, reals: Reals, w: int, time: int, value: float, half_life: float, empty: bool) -> None:
    """Add a value as of a time to a decaying sum, which is kept as of the newest time."""
    if empty:
        words[w], reals[w + 1] = time, value
    elif time >= words[w]:
        reals[w + 1] = reals[w + 1] * np.exp2((words[w] - time) / half_life) + value
        words[w] = time
    else:
        reals[w + 1] += value * np.exp2((time - words[w]) / half_life)


@inlined
def add_one(
    words: Words, reals: Reals, o: int, at: int, time: int, values: Words, real_values: Reals, k: int, step: int
) -> None:
    """Fold the k-th value, a valid one of an op's lane, into the tile at `at`.

    `real_values` are the values as floats; that of a pair's second lane lies `step` further. They are read where they
    are needed: Numba would read all that is handed over, whatever the op.
    """
    op, w, n = words[o + CODE], at + words[o + WORD], words[at + words[o + N_WORD]]
    if op == STATS_FLOAT:
        real = real_values[k]
        words[w] = n + 1
        add_real(reals, w + 1, real)
        if n == 0:
            reals[w + 3] = reals[w + 4] = real
        else:
            reals[w + 3] = min(reals[w + 3], real)
            reals[w + 4] = max(reals[w + 4], real)
        add_moments(reals, w + 5, n + 1, real)
    elif op == N:
        words[w] = n + 1
    elif op == SUM_FLOAT:
        add_real(reals, w, real_values[k])
    elif op == SUM_INT:
        add_int(words, w, values[k], ZERO)
    elif op == MIN_FLOAT:
        reals[w] = real_values[k] if n == 0 else min(reals[w], real_values[k])
    elif op == MAX_FLOAT:
        reals[w] = real_values[k] if n == 0 else max(reals[w], real_values[k])
    elif op == MIN_INT:
        words[w] = values[k] if n == 0 else min(words[w], values[k])
    elif op == MAX_INT:
        words[w] = values[k] if n == 0 else max(words[w], values[k])
    elif op == MOMENTS_FLOAT:
        add_moments(reals, w, n + 1, real_values[k])
    elif op == MOMENTS_INT:
        add_moments(reals, w, n + 1, float(values[k]))
    elif op == STATS_INT:
        whole = values[k]
        words[w] = n + 1
        add_int(words, w + 1, whole, ZERO)
        if n == 0:
            words[w + 3] = words[w + 4] = whole
        else:
            words[w + 3] = min(words[w + 3], whole)
            words[w + 4] = max(words[w + 4], whole)
        add_moments(reals, w + 5, n + 1, float(whole))
    elif op == FIRST:
        if n == 0 or time < words[w]:
            words[w], words[w + 1] = time, values[k]
    elif op == LAST:
        if n == 0 or time >= words[w]:
            words[w], words[w + 1] = time, values[k]
    elif op in (MOMENTS4_FLOAT, MOMENTS4_INT):
        _add_moments4(reals, w, n + 1, real_values[k] if op == MOMENTS4_FLOAT else float(values[k]))
    elif op in (DECAY_FLOAT, DECAY_INT):
        value = real_values[k] if op == DECAY_FLOAT else float(values[k])
        _decay(words, reals, w, time, value, reals[o + PARAMETER], n == 0)
    elif op in (TREND_FLOAT, TREND_INT):
        _add_trend(words, reals, w, n + 1, time, real_values[k] if op == TREND_FLOAT else float(values[k]))
    else:
        _add_pair(reals, w, n + 1, real_values[k], real_values[k + step])


@inlined
def _merge_stats(words: Words, reals: Reals, to: int, a: int, b: int) -> None:
    """Merge STATS_FLOAT at `a` and at `b`."""
    na, nb = words[a], words[b]
    if na == 0 or nb == 0:
        a = b if na == 0 else a
        for i in range(7):
            words[to + i] = words[a + i]
        return
    total, more = added_real(reals[a + 1], reals[a + 2], reals[b + 1])
    mean, squares = merged_moments(reals[a + 5], reals[a + 6], reals[b + 5], reals[b + 6], na, nb)
    low = words[b + 3] if reals[b + 3] < reals[a + 3] else words[a + 3]
    high = words[b + 4] if reals[b + 4] > reals[a + 4] else words[a + 4]
    more += reals[b + 2]
    words[to], reals[to + 1], reals[to + 2], words[to + 3] = na + nb, total, more, low
    words[to + 4], reals[to + 5], reals[to + 6] = high, mean, squares


@inlined
def merge_one(words: Words, reals: Reals, o: int, to: int, a: int, b: int) -> None:
    """Write to `to`, which may be `a`, what an op's primitive comes to of accumulator `a` and the later `b`."""
    op, w = words[o + CODE], words[o + WORD]
    if op == STATS_FLOAT:
        _merge_stats(words, reals, to + w, a + w, b + w)
        return
    na, nb = words[a + words[o + N_WORD]], words[b + words[o + N_WORD]]
    if op == N:
        words[to + w] = na + nb
        return
    if na == 0 or to != a:
        move(words, to + w, (b if na == 0 else a) + w, words[o + SIZE])
    if na == 0 or nb == 0:
        return
    a, b = to + w, b + w
    if op == SUM_FLOAT:
        add_real(reals, a, reals[b])
        reals[a + 1] += reals[b + 1]
    elif op == SUM_INT:
        add_int(words, a, words[b], words[b + 1])
    elif op == MIN_FLOAT:
        reals[a] = min(reals[a], reals[b])
    elif op == MAX_FLOAT:
        reals[a] = max(reals[a], reals[b])
    elif op == MIN_INT:
        words[a] = min(words[a], words[b])
    elif op == MAX_INT:
        words[a] = max(words[a], words[b])
    elif op in (MOMENTS_FLOAT, MOMENTS_INT):
        merge_moments(reals, a, b, na, nb)
    elif op == STATS_INT:
        words[a] = na + nb
        add_int(words, a + 1, words[b + 1], words[b + 2])
        words[a + 3] = min(words[a + 3], words[b + 3])
        words[a + 4] = max(words[a + 4], words[b + 4])
        merge_moments(reals, a + 5, b + 5, na, nb)
    elif op == FIRST:
        if words[b] < words[a]:
            words[a], words[a + 1] = words[b], words[b + 1]
    elif op == LAST:
        if words[b] >= words[a]:
            words[a], words[a + 1] = words[b], words[b + 1]
    elif op in (MOMENTS4_FLOAT, MOMENTS4_INT):
        _merge_moments4(reals, a, b, float(na), float(nb))
    elif op in (DECAY_FLOAT, DECAY_INT):
        _decay(words, reals, a, words[b], reals[b + 1], reals[o + PARAMETER], na == 0)
    elif op in (TREND_FLOAT, TREND_INT):
        _merge_trend(words, reals, a, b, float(na), float(nb))
    else:
        _merge_pair(reals, a, b, float(na), float(nb))
