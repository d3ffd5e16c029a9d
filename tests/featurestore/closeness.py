"""Numbers that are hard to add up, and how near what is computed of them must come to what is true."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import strategies as st

from featurestore import (
    Corr,
    Distinct,
    ExpDecay,
    First,
    Kurtosis,
    Last,
    Max,
    Min,
    Quantile,
    Skew,
    Slope,
    Std,
    SumBy,
    Var,
)
from featurestore.bags import BagAggregate

INT64 = 2**63
EPS = np.finfo(np.float64).eps

WHOLE = st.integers(-5, 5) | st.sampled_from([INT64 - 1, -INT64, INT64 - 2, 2**62, -(2**62), 10**16 + 1])
REAL = st.sampled_from([0.1, -0.0, 1e9, 1e9 + 1, 1e9 + 2, 1e16, 1e16 + 2, -1e16, 1e-300, 1e100, math.nan])
REAL |= st.floats(-1e6, 1e6)


def assert_close(got, want, feature, inputs):
    """Integers, times and picked values are exact; sums, means and deviations keep to their error bounds."""
    here = f"{feature.full_name}: {got!r}, and not {want!r}"
    if isinstance(feature.aggregate, BagAggregate):
        assert_bag(got, want, feature, inputs, here)
        return
    if isinstance(feature.aggregate, Skew | Kurtosis | Slope | Corr):
        assert_shape(got, want, feature, inputs, here)
        return
    if want is None or not isinstance(want, float) or isinstance(feature.aggregate, Min | Max | First | Last):
        assert got == want, here
        assert type(got) is type(want) or feature.type == "float", here
        return
    n, size = len(inputs), math.fsum(abs(float(value)) for value in inputs)
    if isinstance(feature.aggregate, ExpDecay):  # a rounding for each step of decay
        assert got is not None and abs(got - want) <= 1e-12 * size, here  # noqa: PT018
        return
    if isinstance(feature.aggregate, Var):
        bound = 1e-11 * want + (8 * n * EPS * max(abs(float(value)) for value in inputs)) ** 2
        bound += 2 * math.sqrt(want) * 8 * n * EPS * max(abs(float(value)) for value in inputs)
    elif isinstance(feature.aggregate, Std):  # Welford: relative error n eps kappa, kappa = mean / deviation
        bound = 1e-12 * want + 8 * n * EPS * max(abs(float(value)) for value in inputs)
    else:  # Neumaier: one rounding, and the second-order term
        bound = 4 * EPS * abs(want) + 8 * (n * EPS) ** 2 * size
    assert got is not None, here
    assert abs(got - want) <= bound, here


def assert_shape(got, want, feature, inputs, here):
    """What divides by a spread says little where the values, or their squares, are as good as equal as floats."""
    values = [value[0] if isinstance(value, tuple) else value for value in inputs]
    spread, size = max(values, default=0) - min(values, default=0), max((abs(v) for v in values), default=0)
    if spread < 1e-5 * size or size > 1e60 or any(0 < abs(value) < 1e-60 for value in values):
        return
    assert (got is None) == (want is None), here
    if want is not None:
        assert abs(got - want) <= 1e-6 * max(abs(want), 1, spread * isinstance(feature.aggregate, Slope)), here


def of_bins(size):
    """How far off a quantile of bins may be, of values of this size; below 2^-1022 floats have too few bits."""
    return 0.008 * size + 2.0**-1028


def assert_bag(got, want, feature, inputs, here):
    """Counts and values are exact; sketches and sums of floats keep to their error bounds."""
    aggregate = feature.aggregate
    if isinstance(aggregate, Distinct) and want > aggregate.bound:
        assert abs(got - want) <= max(1, 6 * 0.023 * want), here
    elif isinstance(aggregate, Quantile) and want is not None:
        exact = feature.window.kind in ("exact", "last")
        bound = 0 if exact else of_bins(max(abs(float(value)) for value in inputs))
        assert got == want or math.isinf(bound) or abs(got - want) <= bound + 1e-12 * abs(want), here
    elif isinstance(aggregate, SumBy) and feature.type == "map[float]":
        size = math.fsum(abs(amount) for amount, _ in inputs)
        assert abs(math.fsum(got.values()) - math.fsum(want.values())) <= 1e-12 * size, here
        if len(want) <= aggregate.bound:  # or rounding may choose others
            assert got == pytest.approx(want, rel=1e-12, abs=1e-15 * size), here
    else:
        assert repr(sorted(got.items())) == repr(sorted(want.items())) if isinstance(want, dict) else got == want, here
