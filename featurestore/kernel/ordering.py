"""Orders of many events at once, by entity: whoever looks at one entity after another finds each state at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.kernel.layout import Results, Steps, entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]


@entry
def ascends(values: Ints, partitions: NDArray[np.int32]) -> bool:
    """Whether no value is less than the one before it of the same partition."""
    for i in range(1, values.shape[0]):
        if values[i] < values[i - 1] and partitions[i] == partitions[i - 1]:
            return False
    return True


@entry
def places_by_group(groups: Ints, least: int, end: int) -> tuple[Ints, Ints]:
    """Where each group from `least` to below `end` goes, in order of groups and within one in their own; others to -1.

    Returned is also where each group ends. It is a counting sort. Values are better written to places than read from
    them: what is written of one group lies together, and is still in a processor's cache when the next one comes.
    """
    ends = np.zeros(end - least + 1, np.int64)
    for i in range(groups.shape[0]):
        if groups[i] >= least:
            ends[groups[i] - least + 1] += 1
    for group in range(end - least):
        ends[group + 1] += ends[group]
    out = np.full(groups.shape[0], -1)
    for i in range(groups.shape[0]):
        if groups[i] >= least:
            out[i] = ends[groups[i] - least]
            ends[groups[i] - least] += 1
    return out, ends[:-1]


@entry
def put(values: NDArray[Any], places: Ints, out: NDArray[Any]) -> None:
    """Write each value to its place, if it has one."""
    for i in range(values.shape[0]):
        if places[i] >= 0:
            out[places[i]] = values[i]


@entry
def next_steps(
    entities: Ints,
    keys: Ints,
    partitions: NDArray[np.int32],
    times: Ints,
    asked: Ints,
    instants: Ints,
    event: int,
    row: int,
    steps: Steps,
    reads: Ints,
) -> int:
    """Write the next steps of a sweep over events and rows, both by (entity, key), each row after its like.

    Rows ask for entities `asked` at `instants`. The sweep is at the `event`-th event and at this `row`; there are as
    many more as steps, at least. Which of the steps read is written to `reads`, and returned how many do.
    """
    count = 0
    for i in range(steps.row.shape[0]):
        folds = row == asked.shape[0]
        if event < entities.shape[0] and not folds:
            entity = entities[event]
            folds = entity < asked[row] or (entity == asked[row] and keys[event] <= instants[row])
        steps.offset[i] = event  # not their own: by time they may not ascend
        if folds:
            steps.row[i], steps.entity[i] = event, entities[event]
            steps.partition[i], steps.time[i] = partitions[event], times[event]
            event += 1
        else:
            steps.row[i], steps.entity[i], steps.partition[i], steps.time[i] = -1, asked[row], 0, instants[row]
            reads[count] = i
            row, count = row + 1, count + 1
    return count


@entry
def take_steps(results: Results, steps: Ints, out: Results, at: int) -> None:
    """Copy what came of some steps to `out`, from column `at` on."""
    for j in range(results.words.shape[0]):  # one array after the other: all that is read of one stays near
        for i in range(steps.shape[0]):
            out.words[j, at + i] = results.words[j, steps[i]]
        for i in range(steps.shape[0]):
            out.valid[j, at + i] = results.valid[j, steps[i]]
    for i in range(steps.shape[0]):
        out.effective[at + i] = results.effective[steps[i]]
