"""Orders of many events at once, by entity: whoever looks at one entity after another finds each state at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.kernel.layout import entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]


@entry
def by_group(groups: Ints, count: int) -> Ints:
    """Positions in order of their group, numbers below `count`, and within one in their own: a counting sort."""
    ends, out = np.zeros(count + 1, np.int64), np.empty(groups.shape[0], np.int64)
    for group in groups:
        ends[group + 1] += 1
    for group in range(count):
        ends[group + 1] += ends[group]
    for i in range(groups.shape[0]):
        out[ends[groups[i]]] = i
        ends[groups[i]] += 1
    return out


@entry
def merged_by_group(groups: Ints, keys: Ints, others: Ints, other_keys: Ints) -> Ints:
    """Positions, in the two sequences as if one, by (group, key); both are in this order, the first one goes first."""
    first, second = 0, 0
    out = np.empty(groups.shape[0] + others.shape[0], np.int64)
    for i in range(out.shape[0]):
        take = second == others.shape[0]
        if not take and first < groups.shape[0]:
            group, other = groups[first], others[second]
            take = group < other or (group == other and keys[first] <= other_keys[second])
        out[i] = first if take else groups.shape[0] + second
        first, second = first + take, second + (not take)
    return out
