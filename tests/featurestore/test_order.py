"""Windows fold and merge in the order that the design gives: recomputed from its lines, in plain Python, to the bit."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from featurestore import Entity, Min, Sum, Var, last, session, view, window
from tests.featurestore.helpers import PARTITIONS, SOURCE, do, event, numbered, read, state_of

NOON = 1_700_000_000_000
NOTHING = (0, 0.0, 0.0, 0.0, 0.0)  # count, sum, compensation, mean, squares about it


def summed(total, more, value):
    """Neumaier's sum."""
    new = total + value
    return new, more + ((total - new + value) if abs(total) >= abs(value) else (value - new + total))


def add(tile, value):
    n, total, more, mean, squares = tile
    delta, (total, more) = value - mean, summed(total, more, value)
    mean += delta * (1 / (n + 1))
    return n + 1, total, more, mean, squares + delta * (value - mean)


def merge(a, b):
    if a[0] == 0 or b[0] == 0:
        return b if a[0] == 0 else a
    (total, more), delta, n = summed(a[1], a[2], b[1]), b[3] - a[3], a[0] + b[0]
    return n, total, more + b[2], a[3] + delta * (b[0] / n), a[4] + (b[4] + delta * delta * (a[0] * (b[0] / n)))


def backwards(tiles):
    """t1 + (t2 + (t3 + ...))."""
    return reduce(lambda rest, tile: merge(tile, rest), reversed(tiles), NOTHING)


def folded(events):
    return reduce(add, [x for _, x in events], NOTHING)


def tiled(events, end, length, hop):
    tiles = {}
    for time, x in events:
        tiles[time // hop] = add(tiles.get(time // hop, NOTHING), x)
    blocks = -(-length // hop) + 1
    boundary = max(tiles) // blocks * blocks
    *held, newest = [i for i in sorted(tiles) if (end - length + 1) // hop <= i <= end // hop] or [None]
    before = backwards([tiles[i] for i in held if i < boundary])
    after = reduce(merge, [tiles[i] for i in held if i >= boundary], NOTHING)
    return merge(merge(before, after), tiles.get(newest, NOTHING))


def delayed(events, end, length, hop):
    tiles = {}
    for time, x in events:
        tiles[time // hop] = add(tiles.get(time // hop, NOTHING), x)
    held = [i for i in sorted(tiles) if (end - length + 1) // hop <= i <= end // hop]
    return reduce(merge, [tiles[i] for i in held], NOTHING)


def exact(events, end, length):
    boundary = max(events)[0] // length * length
    held = [(time, x) for time, x in sorted(events, key=lambda e: e[0]) if end - length < time <= end]
    before = backwards([add(NOTHING, x) for time, x in held if time < boundary])
    return merge(before, folded([e for e in held if e[0] >= boundary]))


def exact_delayed(events, end, length):
    return folded([(time, x) for time, x in sorted(events, key=lambda e: e[0]) if end - length < time <= end])


def run_of(events, end, gap, lateness):
    sessions, newest = [], -1  # (first time, last time, tile), by time
    for time, x in events:
        newest = max(newest, time)
        oldest = newest - gap - lateness
        if time < oldest:
            continue
        near = [s for s in sessions if s[1] >= max(time - gap, oldest) and s[0] <= time + gap]
        older, *newer = near or [(time, time, NOTHING)]
        tile = reduce(merge, [s[2] for s in newer], add(older[2], x))
        joined = (min(older[0], time), max([time, older[1], *(s[1] for s in newer)]), tile)
        sessions = sorted([*(s for s in sessions if s not in near), joined])
    return sessions[-1][2] if sessions and end - sessions[-1][1] <= gap else NOTHING


WAYS = {
    "tiles": (window("60s", hop="1s"), lambda events, t: tiled(events, t, 60_000, 1_000)),
    "tiles of a hop that does not divide it": (
        window("60s", hop="13s"),
        lambda events, t: tiled(events, t, 60_000, 13_000),
    ),
    "delayed": (window("60s", hop="7s", delay="30s"), lambda events, t: delayed(events, t - 30_000, 60_000, 7_000)),
    "exact": (window("60s", exact=True), lambda events, t: exact(events, t, 60_000)),
    "exact and delayed": (
        window("60s", exact=True, delay="30s"),
        lambda events, t: exact_delayed(events, t - 30_000, 60_000),
    ),
    "session": (session("5s"), lambda events, t: run_of(events, t, 5_000, SOURCE.lateness_ms)),
}


def logs(seed):
    """Events in the order in which they come, some out of order."""
    rng, time = np.random.default_rng(seed), NOON
    for _ in range(200):
        time += int(rng.integers(0, 3_000))
        behind = int(rng.integers(0, rng.choice([9_000, 9_000, 9_000, 40_000]))) if rng.random() < 0.3 else 0
        yield time - behind, int(rng.integers(0, PARTITIONS)), float(rng.normal() * 10.0 ** rng.integers(0, 6))


def values_of(chosen, seed):
    """What the engine says now and then: (events so far, time, sum and variance)."""
    made = {"sum": Sum("x"), "var": Var("x")} | ({"low": Min("x")} if seed % 2 else {})  # with it, one primitive
    state = state_of(view(entity=Entity("key", key="k"), source=SOURCE, windows=[chosen])(type("Made", (), made)))
    seen = []
    events = numbered(event(time, partition=p, x=x) for time, p, x in logs(seed))
    for i, (each, log) in enumerate(zip(events, logs(seed), strict=True), 1):
        do(state, [each])
        seen.append(log)
        if i % 4 == 0:
            top = max(time for time, _, _ in seen)
            for later in (0, 1_000, 20_000, 45_000):
                got = read(state, as_of=top + later)
                yield seen, top + later, (got[f"sum_{chosen.label}"], got[f"var_{chosen.label}"])


def finished(tile):
    n, total, more, _, squares = tile
    return total + more, squares / (n - 1) if n > 1 else None


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", WAYS)
def test_each_partition_merges_in_its_order_and_then_the_partitions(name, seed):
    chosen, recomputed = WAYS[name]
    for seen, time, got in values_of(chosen, seed):
        parts = [[(t, x) for t, p, x in seen if p == partition] for partition in range(PARTITIONS)]
        assert got == finished(reduce(merge, [recomputed(events, time) for events in parts if events], NOTHING))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_last_events_are_folded_over_all_partitions(seed):
    for seen, _, got in values_of(last(9), seed):
        ordered = sorted(seen, key=lambda each: each[:2])
        assert got == finished(folded([(time, x) for time, _, x in ordered[-9:]]))
