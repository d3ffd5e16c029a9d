"""Orders of many events at once, by entity: whoever looks at one entity after another finds each state at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.kernel.bare import bared
from featurestore.kernel.layout import Steps, entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]


@entry
def ascends(values: Ints, partitions: NDArray[np.int32]) -> bool:
    """Whether no value is less than the one before it of the same partition."""
    values, partitions = bared(values), bared(partitions)
    for i in range(1, values.shape[0]):
        if values[i] < values[i - 1] and partitions[i] == partitions[i - 1]:
            return False
    return True


@entry
def number_values(values: Ints, low: int, numbers: Ints, out: Ints) -> None:
    """Write each value's place among the distinct ones, in their order.

    `numbers` are 0, one for each integer from `low` to the largest value; those that are values are not 0 after it.
    """
    values, numbers, out = bared(values), bared(numbers), bared(out)
    for i in range(values.shape[0]):
        numbers[values[i] - low] = 1
    count = 0
    for i in range(numbers.shape[0]):
        if numbers[i]:
            count += 1
            numbers[i] = count
    for i in range(values.shape[0]):
        out[i] = numbers[values[i] - low] - 1


@entry
def until_last(groups: Ints, values: Ints, last: Ints, out: Ints) -> None:
    """Write the group of each value that is not more than the last of its group; of others -1."""
    groups, values, last, out = bared(groups), bared(values), bared(last), bared(out)
    for i in range(groups.shape[0]):
        group = groups[i]
        out[i] = group if group >= 0 and values[i] <= last[group] else -1


@entry
def places_by_group(groups: Ints, least: int, ends: Ints, out: Ints) -> None:
    """Write where each value goes, in order of groups from `least` on and within one in their own; others go to -1.

    `ends` are 0, one more than there are groups; after it they say where each group ends. It is a counting sort. Values
    are better written to places than read from them: what is written of one group lies together, and is still in a
    processor's cache when the next one comes.
    """
    groups, at, out = bared(groups), bared(ends), bared(out)
    for i in range(groups.shape[0]):
        if groups[i] >= least:
            at[groups[i] - least + 1] += 1
    for group in range(at.shape[0] - 1):
        at[group + 1] += at[group]
    for i in range(groups.shape[0]):
        out[i] = -1
        if groups[i] >= least:
            out[i] = at[groups[i] - least]
            at[groups[i] - least] += 1


@entry
def put(values: NDArray[Any], places: Ints, out: NDArray[Any]) -> None:
    """Write each value to its place, if it has one."""
    values, places, out = bared(values), bared(places), bared(out)
    for i in range(values.shape[0]):
        if places[i] >= 0:
            out[places[i]] = values[i]


@entry
def next_steps(
    ends: Ints,
    keys: Ints,
    partitions: NDArray[np.int32],
    times: Ints,
    asked: Ints,
    instants: Ints,
    at: Ints,
    steps: Steps,
) -> None:
    """Write the next steps of a sweep over events and rows, both by (entity, key), each row after its like.

    `ends` says where each entity's events end. Rows ask for entities `asked` at `instants`; what each finds goes to the
    column of its number. `at` is where the sweep is: at which event, row and entity. As many are left as steps, at
    least.
    """
    ends, keys, partitions, times, asked = bared(ends), bared(keys), bared(partitions), bared(times), bared(asked)
    instants, at, steps = bared(instants), bared(at), bared(steps)
    event, row, entity = at[0], at[1], at[2]
    for i in range(steps.row.shape[0]):
        folds = event < keys.shape[0]
        if folds:
            while ends[entity] <= event:
                entity += 1
            if row < asked.shape[0]:
                folds = entity < asked[row] or (entity == asked[row] and keys[event] <= instants[row])
        steps.offset[i] = event  # not their own: by time they may not ascend
        if folds:
            steps.row[i], steps.entity[i] = event, entity
            steps.partition[i], steps.time[i] = partitions[event], times[event]
            event += 1
        else:
            steps.row[i], steps.entity[i], steps.partition[i], steps.time[i] = ~row, asked[row], 0, instants[row]
            row += 1
    at[0], at[1], at[2] = event, row, entity


@entry
def take(values: NDArray[Any], places: Ints, out: NDArray[Any]) -> None:
    """Write the columns at some places of a matrix to another one, in their order."""
    values, places, out = bared(values), bared(places), bared(out)
    for j in range(values.shape[0]):  # one row after the other: all that is read of it stays near
        for i in range(places.shape[0]):
            out[j, i] = values[j, places[i]]
