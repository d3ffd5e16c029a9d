"""Compiled loops of the learner: row by row, in one fixed order, so that no result depends on how rows are batched.

No fast maths and no BLAS: both may reorder a sum, and with it its last bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

#: A value beyond this is as good as missing: its square would overflow and poison the running variance for ever.
LIMIT = 1e150

# Rows of a logistic model's table (each has one number an input) ...
COUNT, MEAN, VARIANCE, WEIGHT = range(4)
# ... and places in its settings.
RATE, BIAS_RATE, L2, CLIP, POSITIVE, NEGATIVE = range(6)


@njit(cache=True, nogil=True)
def logistic_predict(rows: Floats, table: Floats, bias: Floats) -> Floats:
    """Probabilities [n] of rows [n, f] under a table [4, f] and a bias [1]; NaN inputs contribute nothing."""
    count, width = rows.shape
    result = np.empty(count)
    for i in range(count):
        total = 0.0
        for j in range(width):
            value, variance = rows[i, j], table[VARIANCE, j]
            if variance > 0.0 and abs(value) <= LIMIT:
                total += table[WEIGHT, j] * ((value - table[MEAN, j]) / math.sqrt(variance))
        result[i] = _sigmoid(total + bias[0])
    return result


@njit(cache=True, nogil=True)
def logistic_learn(rows: Floats, labels: Floats, table: Floats, bias: Floats, settings: Floats) -> None:
    """One pass over rows [n, f] in order, in place: each updates the running statistics, then takes one SGD step.

    The order of every operation is that of `learn_one` of River's `StandardScaler | LogisticRegression(SGD)`.
    """
    count, width = rows.shape
    scaled = np.empty(width)
    for i in range(count):
        total = 0.0
        for j in range(width):
            value = rows[i, j]
            scaled[j] = np.nan
            if abs(value) <= LIMIT:
                table[COUNT, j] += 1.0
                delta = value - table[MEAN, j]
                table[MEAN, j] += delta / table[COUNT, j]
                spread = delta * (value - table[MEAN, j])
                table[VARIANCE, j] += (spread - table[VARIANCE, j]) / table[COUNT, j]
                variance = table[VARIANCE, j]
                scaled[j] = (value - table[MEAN, j]) / math.sqrt(variance) if variance > 0.0 else 0.0
                total += table[WEIGHT, j] * scaled[j]
        gradient = _gradient(total + bias[0], labels[i], settings)
        for j in range(width):
            if scaled[j] == scaled[j]:  # false for NaN, that is for a missing input
                step = gradient * scaled[j] + settings[L2] * table[WEIGHT, j]
                table[WEIGHT, j] -= settings[RATE] * step
        bias[0] -= settings[BIAS_RATE] * gradient


@njit(cache=True, nogil=True)
def _sigmoid(logit: float) -> float:
    if logit < -30.0:
        return 0.0
    if logit > 30.0:
        return 1.0
    if logit == logit:  # noqa: PLR0124 - false for NaN: two overflows of opposite sign say nothing
        return 1.0 / (1.0 + math.exp(-logit))
    return 0.5


@njit(cache=True, nogil=True)
def _gradient(logit: float, label: float, settings: Floats) -> float:
    sign, weight = (-1.0, settings[NEGATIVE]) if label == 0.0 else (1.0, settings[POSITIVE])
    z = logit * sign
    if z > 18.0:
        slope = weight * math.exp(-z) * -sign
    elif z < -18.0:
        slope = weight * -sign
    elif z == z:  # noqa: PLR0124 - NaN teaches nothing
        slope = weight * -sign / (math.exp(z) + 1.0)
    else:
        slope = 0.0
    limit = settings[CLIP]
    return float(max(min(slope, limit), -limit))


@njit(cache=True, nogil=True)
def add_losses(probabilities: Floats, labels: Floats, sums: Floats) -> None:
    """Add log losses and squared errors to `sums`: [log loss, its compensation, squared error, its compensation]."""
    for i in range(len(labels)):
        p, y = probabilities[i], labels[i]
        clipped = min(max(p, 1e-15), 1.0 - 1e-15)
        _neumaier(sums, 0, -math.log(clipped if y == 1.0 else 1.0 - clipped))
        _neumaier(sums, 2, (p - y) * (p - y))


@njit(cache=True, nogil=True)
def _neumaier(sums: Floats, at: int, value: float) -> None:
    total = sums[at] + value
    if abs(sums[at]) >= abs(value):
        sums[at + 1] += (sums[at] - total) + value
    else:
        sums[at + 1] += (value - total) + sums[at]
    sums[at] = total
