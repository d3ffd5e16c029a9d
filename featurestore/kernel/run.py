"""The loop: steps in order, each an event to fold or an entity to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.kernel.bags import fold_bags
from featurestore.kernel.bare import bared, fetch, flat, wipe
from featurestore.kernel.finishes import finish_out, finish_simple
from featurestore.kernel.folding import add_input, fold_apart, forget, would_overflow
from featurestore.kernel.layout import (
    ACC_MOST,
    BAG_GROUPS_END,
    BAGS,
    CACHE,
    CACHED,
    CHECKS,
    CLASS_BITS,
    CLOCKS,
    DELAY,
    DIRTY_NEXT,
    EMPTY,
    END_OUT,
    ENTITY,
    EVENTS,
    FIRST_OUT,
    FOLDED,
    GROUP_WORDS,
    GROUPS,
    GROUPS_END,
    HEAD_WORDS,
    HOP,
    INT_MIN,
    ITEMS_WANTED,
    KEEP,
    KEEPS,
    KEYLESS,
    KIND,
    LAST_OFFSET,
    LATE,
    LATENESS,
    LATEST,
    LENGTH,
    LONGEST,
    NEWEST,
    OUT_WORDS,
    OVERFLOW,
    PARENT,
    PARTITION,
    PARTITIONS,
    PENDING,
    PLAIN,
    RESERVE,
    RUN,
    SCRATCH,
    SESSIONS,
    SIMPLE,
    STRIDE,
    TILES,
    TRACK_WORDS,
    TRACKS,
    TRACKS_END,
    USED,
    WANTED,
    ZERO,
    Inputs,
    Results,
    Steps,
    compiled,
    entry,
    inlined,
)
from featurestore.kernel.picking import finish_bags
from featurestore.kernel.runs import mark_dirty, tile_of
from featurestore.kernel.stretches import fold_stretch
from featurestore.kernel.windows import fetch_closed, gathered, tiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featurestore.kernel.layout import Reals, Words


@compiled
def new_slot(words: Words, entity: int, partition: int) -> int:
    """Address of the head of a new slot, which holds nothing."""
    h = words[USED]
    words[USED] += words[HEAD_WORDS]
    wipe(words, h, words[HEAD_WORDS])
    words[h + NEWEST], words[h + LAST_OFFSET], words[h + DIRTY_NEXT] = INT_MIN, INT_MIN, -1
    words[h + ENTITY], words[h + PARTITION] = entity, partition
    return h


@compiled
def _is_late(words: Words, time: int, limit: int) -> bool:
    """Whether an event is too old for every window as of `limit`."""
    for t in range(words[TRACKS], words[TRACKS_END], TRACK_WORDS):
        kind, hop, keep = words[t + KIND], words[t + HOP], words[t + KEEP]
        if kind == LATEST:
            return False
        if kind == SESSIONS:
            if time >= limit - hop:
                return False
        elif kind == EVENTS:
            if time > limit - keep:
                return False
        elif words[t + PARENT] == 0 and time // hop >= (limit - keep + 1) // hop:
            return False
    return True


@compiled
def _nothing(results: Results, column: int) -> None:
    """Say that a step has no features."""
    for j in range(results.words.shape[0]):
        results.words[j, column] = 0
        results.valid[j, column] = False


@entry
def sort_out(words: Words, steps: Steps, results: Results, emit: bool) -> None:
    """Move the partitions' clocks, and say in the results' status which steps are LATE, KEYLESS or still PENDING."""
    words, steps, results = bared(words), bared(steps), bared(results)
    lateness, keeps = words[LATENESS], words[KEEPS]
    for i in range(steps.row.shape[0]):
        status = PENDING
        if steps.row[i] >= 0:
            time, clock = steps.time[i], words[CLOCKS] + steps.partition[i]
            words[clock] = max(words[clock], time)
            limit = words[clock] - lateness
            if time <= limit - keeps and _is_late(words, time, limit):
                status = LATE
            elif steps.entity[i] < 0:
                status = KEYLESS
        elif steps.entity[i] < 0:
            status = FOLDED
            results.effective[~steps.row[i]] = steps.time[i]
        results.status[i] = status
        if status != PENDING and (emit or steps.row[i] < 0):
            _nothing(results, i if steps.row[i] >= 0 else ~steps.row[i])


@compiled
def _chain(
    steps: Steps, results: Results, begin: int, end: int, order: NDArray[np.int32], last: NDArray[np.int32]
) -> int:
    """Put the pending steps in order, entity by entity; how many chains of them there are.

    `order` [0] are the steps, [1] says where each chain of them ends, [2] is used for each step's chain. `last`, by
    entity, is -1 before and after.
    """
    chains, at = 0, 0
    for i in range(begin, end):
        if results.status[i] != PENDING:
            continue
        chain = last[steps.entity[i]]
        if chain < 0:
            chain = last[steps.entity[i]] = chains
            order[1, chain] = 0
            chains += 1
        order[1, chain] += 1
        order[2, i - begin] = chain
    for chain in range(chains):
        order[1, chain], at = at, at + order[1, chain]
    for i in range(begin, end):
        if results.status[i] == PENDING:
            chain = order[2, i - begin]
            order[0, order[1, chain]] = i
            order[1, chain] += 1
            last[steps.entity[i]] = -1
    return chains


@inlined
def _fetch_state(words: Words, h: int) -> None:
    """Fetch the newest tiles, and room for the next, and the cache of a slot whose head is near."""
    for t in range(words[TRACKS], words[TRACKS_END], TRACK_WORDS):
        run = h + words[t + RUN]
        last = words[run] + ((words[run + 1] >> CLASS_BITS) - 1) * words[t + STRIDE]
        fetch(words, words[run])
        for line in range(0, 24, 8):
            fetch(words, last + line)
    if words[h + CACHE]:
        for g in range(words[GROUPS], words[GROUPS_END], GROUP_WORDS):
            for line in range(0, 32, 8):
                fetch(words, words[h + CACHE] + words[g + CACHED] + line)


@inlined
def _fetch_ahead(
    words: Words, slots: NDArray[np.int64], steps: Steps, order: NDArray[np.int32], chain: int, chains: int
) -> None:
    """Fetch the states of chains to come, stage by stage, as each says where the next one lies."""
    fetch(slots, (steps.entity[order[0, order[1, min(chain + 11, chains - 1)] - 1]], ZERO))
    far = steps.entity[order[0, order[1, min(chain + 8, chains - 1)] - 1]]
    near = steps.entity[order[0, order[1, min(chain + 4, chains - 1)] - 1]]
    next_one = steps.entity[order[0, order[1, min(chain + 2, chains - 1)] - 1]]
    for p in range(words[PARTITIONS]):
        h = slots[far, p]
        if h:
            fetch(words, h)
            fetch(words, h + 8)
        h = slots[near, p]
        if h:
            _fetch_state(words, h)
        h = slots[next_one, p]
        if h and words[h + CACHE]:
            for g in range(words[GROUPS], words[GROUPS_END], GROUP_WORDS):
                fetch_closed(words, h, g)


@entry
def run(
    words: Words,
    reals: Reals,
    slots: NDArray[np.int64],
    steps: Steps,
    inputs: Inputs,
    results: Results,
    begin: int,
    end: int,
    order: NDArray[np.int32],
    last: NDArray[np.int32],
    emit: bool,
    bags: bool | None,
) -> bool:
    """Do the PENDING steps from `begin` to `end`; False when memory must grow first: then call again.

    `slots` are the addresses of heads by entity and partition, 0 for none. A folded event gets a row of results when
    `emit` is set; a read always does. Entities do not know of each other: each one's steps are done together, in
    order, while its state is at hand. `bags` is None where a plan has no bags and lists: Numba compiles the function
    without them then, in half the time. It is one long function since calls would cost as much as their work.
    """
    words, reals, slots, order, last = bared(words), bared(reals), bared(slots), bared(order), bared(last)
    steps, inputs, results = bared(steps), bared(inputs), bared(results)
    chains = _chain(steps, results, begin, end, order, last)
    # Each run and tally may move to a larger room, and bags of joined sessions are merged aside.
    movable = (words[TRACKS_END] - words[TRACKS]) // TRACK_WORDS
    movable += (words[BAG_GROUPS_END] - words[GROUPS_END]) // GROUP_WORDS
    room, margin = words.shape[0] - words[RESERVE], 2 * (movable + 1)
    for chain in range(chains):
        _fetch_ahead(words, slots, steps, order, chain, chains)
        k, stop = (order[1, chain - 1] if chain else 0), order[1, chain]
        while k < stop:
            i = ZERO + order[0, k]
            if words[USED] + margin * words[LONGEST] > room or words[WANTED] > 0 or words[ITEMS_WANTED] > 0:
                return False
            entity, time, row = steps.entity[i], steps.time[i], steps.row[i]

            # Fold the event.
            if row >= 0:
                partition = steps.partition[i]
                h = slots[entity, partition]
                if h == 0:
                    h = slots[entity, partition] = new_slot(words, entity, partition)
                if words[PLAIN] and stop - k > 1:
                    free = room - words[USED] - margin * words[LONGEST]
                    ahead = fold_stretch(
                        words, reals, slots, h, steps, inputs, results, flat(order), k, stop, free, emit
                    )
                    if words[WANTED] > 0:
                        return False
                    if ahead > k:
                        k = ahead
                        continue
                newest, before = max(words[h + NEWEST], time), words[h + NEWEST]
                is_new = steps.offset[i] > words[h + LAST_OFFSET]
                if is_new and words[CHECKS] and would_overflow(words, inputs, h, row, time, newest):
                    results.status[i] = OVERFLOW
                    if emit:
                        _nothing(results, i)
                    k += 1
                    continue
                if is_new:
                    words[h + NEWEST], words[h + LAST_OFFSET] = newest, steps.offset[i]
                    if time < before:
                        forget(words, h)  # it may fall into a closed tile
                    mark_dirty(words, h)
                    t = words[TRACKS]
                    while t < words[TRACKS_END]:
                        if words[t + KIND] == TILES:
                            at = tile_of(words, h, t, time, newest)
                            if at:
                                add_input(words, reals, inputs, t, at, row, time)
                        elif bags is not None and words[t + KIND] >= BAGS:
                            fold_bags(words, reals, inputs, h, t, row, time, newest)
                        else:
                            fold_apart(words, reals, inputs, h, t, row, time, newest)
                        t += TRACK_WORDS
            results.status[i] = FOLDED
            if row >= 0 and not emit:
                k += 1
                continue

            # Finish its entity's windows.
            column = i if row >= 0 else ~row
            effective, only, found = time, ZERO, 0
            for p in range(words[PARTITIONS]):
                h = slots[entity, p]
                if h:
                    effective, only, found = max(effective, words[h + NEWEST]), h, found + 1
            results.effective[column] = effective
            g = words[GROUPS]
            while g < words[GROUPS_END]:
                closed, base = ZERO, ZERO
                if found == 1 and words[g + SIMPLE]:
                    closed, base, _ = tiles(words, reals, only, g, effective - words[g + LENGTH] + 1)
                elif found:
                    base = gathered(words, reals, slots, entity, g, effective)
                if base == 0:
                    base = words[SCRATCH] + EMPTY * words[ACC_MOST]
                out = words[g + FIRST_OUT]
                while out < words[g + END_OUT]:
                    if words[g + SIMPLE]:
                        finish_simple(words, reals, out, closed, base, results, column)
                    else:
                        finish_out(words, reals, out, base, effective - words[g + DELAY], results, column)
                    out += OUT_WORDS
                g += GROUP_WORDS
            if bags is not None:  # noqa: SIM102 - Numba leaves out what is behind this one
                if not finish_bags(words, reals, slots, entity, effective, results, column):
                    results.status[i] = PENDING  # its event is not folded twice
                    return False
            k += 1
    return True
