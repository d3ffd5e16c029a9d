from __future__ import annotations

import random

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from featurestore.align import Aligner, Chunk, merged, ranks_of

RANKS = {"asked": 1, "a": 0, "b": 0}
NEVER = np.iinfo(np.int64).min

# Few times, so that ties within and across partitions are the rule; None is an offset without a good event.
TIMES = st.lists(st.one_of(st.none(), st.integers(0, 12)), max_size=12)
PARTITIONS = st.sampled_from([(topic, p) for topic in RANKS for p in range(2)])
LOGS = st.dictionaries(PARTITIONS, TIMES, min_size=1)
SEEDS = st.integers(0, 1 << 32)


def frame_of(partition, times, start=0):
    """The good events among the times of offsets from `start` on."""
    rows = [(start + i, time) for i, time in enumerate(times) if time is not None]
    columns = {"_offset": [row[0] for row in rows], "_time": [row[1] for row in rows]}
    frame = pl.DataFrame(columns, schema={"_offset": pl.Int64, "_time": pl.Int64})
    return frame.with_columns(pl.lit(partition[1], pl.Int32).alias("_partition"))


def keys_of(times, clock=NEVER):
    """The key of each good event by offset: the newest event time that the partition has shown up to it."""
    keys = {}
    for offset, time in enumerate(times):
        if time is not None:
            clock = max(clock, time)
            keys[offset] = clock
    return keys


def naive(logs):
    """The merged order, as the words have it: (topic, partition, offset) sorted by key, rank, topic and place."""
    rows = [
        (key, RANKS[topic], topic, partition, offset)
        for (topic, partition), times in logs.items()
        for offset, key in keys_of(times).items()
    ]
    return [row[2:] for row in sorted(rows)]


def order_of(chunk):
    """(topic, partition, offset) of a chunk's events, in the order of their steps."""
    rows = [
        (step, topic, partition, offset)
        for topic, frame in chunk.frames.items()
        for step, partition, offset in frame.select("_step", "_partition", "_offset").rows()
    ]
    assert [row[0] for row in sorted(rows)] == list(range(len(rows)))
    assert chunk.events == len(rows)
    return [row[1:] for row in sorted(rows)]


class Driven:
    """An aligner fed with the tiles of whole logs in an order that a seed tells, and all that it hands out."""

    def __init__(self, logs, seed):
        self.logs, self._rng = logs, random.Random(seed)
        self.aligner = Aligner(RANKS)
        self.aligner.assign(dict.fromkeys(logs))
        self.pushed = dict.fromkeys(logs, 0)
        self.drained = set()
        self.chunks = []

    def run(self):
        while len(self.drained) < len(self.logs):
            partition = self._rng.choice(sorted(self.logs.keys() - self.drained))
            self._push(partition, self._rng.randint(0, 5))
            for _ in range(self._rng.randint(0, 2)):
                self._take()
        while self._take() is not None:
            pass
        assert self.aligner.empty
        assert all(self.aligner.buffered(partition) == 0 for partition in self.logs)
        return [place for chunk in self.chunks for place in order_of(chunk)]

    def _push(self, partition, count):
        start, times = self.pushed[partition], self.logs[partition]
        end = min(start + count, len(times))
        if end > start:
            self.aligner.push(partition, frame_of(partition, times[start:end], start), start, end)
        self.pushed[partition] = end
        if end == len(times):
            self.aligner.drain(partition)
            self.drained.add(partition)

    def _take(self):
        chunk = self.aligner.take(self._rng.randint(1, 8))
        if chunk is not None:
            self._check(chunk)
            self.chunks.append(chunk)
        return chunk

    def _check(self, chunk):
        """Nothing is handed out that a partition could still come before, and spans have all that was before."""
        shown = [
            max(keys_of(self.logs[p][: self.pushed[p]]).values(), default=NEVER)
            for p in self.logs.keys() - self.drained
        ]
        for topic, partition, offset in order_of(chunk):
            assert all(keys_of(self.logs[topic, partition])[offset] < key for key in shown)
            assert chunk.spans[topic, partition][0] <= offset < chunk.spans[topic, partition][1]
        for at, (_, end) in chunk.spans.items():
            before = keys_of(self.logs[at][:end])
            assert chunk.clocks.get(at) == (max(before.values()) if before else None)


@given(LOGS, SEEDS)
def test_the_order_is_a_function_of_the_logs_however_they_are_cut_pushed_and_taken(logs, seed):
    assert Driven(logs, seed).run() == naive(logs)


def test_where_their_order_does_not_count_no_partition_waits_for_another():
    aligner = Aligner(RANKS, in_order=False)
    behind, current = ("a", 0), ("a", 1)
    aligner.assign(dict.fromkeys([behind, current]))
    aligner.push(behind, frame_of(behind, range(100), 0), 0, 100)
    aligner.push(current, frame_of(current, [5_000, 5_001], 0), 0, 2)
    chunk = aligner.take(10)
    assert chunk.spans[current] == (0, 2)
    assert chunk.spans[behind] == (0, 6)
    while (chunk := aligner.take(10)) is not None:
        assert chunk.spans.keys() == {behind}
    assert aligner.empty
    assert aligner.waiting() == []


@given(LOGS, SEEDS)
def test_spans_tile_every_partition_also_where_there_are_no_good_events(logs, seed):
    driven = Driven(logs, seed)
    driven.run()
    for partition, times in logs.items():
        spans = [chunk.spans[partition] for chunk in driven.chunks if partition in chunk.spans]
        starts, ends = [span[0] for span in spans], [span[1] for span in spans]
        assert [*starts, len(times)] == [0, *ends]
        assert all(start < end for start, end in spans)


@given(LOGS)
def test_whole_logs_are_merged_as_their_pieces_are(logs):
    frames = {partition: frame_of(partition, times) for partition, times in logs.items()}
    assert order_of(merged(RANKS, frames)) == naive(logs)


@given(LOGS, SEEDS)
def test_a_merge_that_goes_on_from_spans_and_clocks_gives_the_rest_of_the_order(logs, seed):
    driven = Driven(logs, seed)
    whole = driven.run()
    cut = random.Random(seed).randint(0, len(driven.chunks))
    done, clocks, taken = dict.fromkeys(logs, 0), dict.fromkeys(logs), 0
    for chunk in driven.chunks[:cut]:
        taken += chunk.events
        clocks |= chunk.clocks
        done |= {partition: end for partition, (_, end) in chunk.spans.items()}
    aligner = Aligner(RANKS)
    aligner.assign(clocks)
    for partition, start in done.items():
        times = logs[partition][start:]
        aligner.push(partition, frame_of(partition, times, start), start, start + len(times))
        aligner.drain(partition)
    rest = aligner.take(1_000) or Chunk({}, {})
    assert order_of(rest) == whole[taken:]


def test_events_of_one_time_are_handed_out_together_and_those_predicted_on_come_last():
    aligner = Aligner(RANKS)
    aligner.assign(dict.fromkeys([("asked", 0), ("a", 0), ("b", 1)]))
    for partition in (("asked", 0), ("b", 1), ("a", 0)):
        aligner.push(partition, frame_of(partition, [5, 5, 7]), 0, 3)
    first = aligner.take(1)
    assert order_of(first) == [("a", 0, 0), ("a", 0, 1), ("b", 1, 0), ("b", 1, 1), ("asked", 0, 0), ("asked", 0, 1)]
    assert first.spans == dict.fromkeys([("asked", 0), ("a", 0), ("b", 1)], (0, 2))
    assert aligner.take(1) is None


def test_what_is_read_at_events_that_are_predicted_on_comes_before_these():
    assert ranks_of("abc", {"a": {"b"}}) == {"a": 1, "b": 0, "c": 0}
    assert ranks_of("abc", {"a": {"a", "b"}, "b": {"c"}, "c": set()}) == {"a": 3, "b": 2, "c": 1}
    assert ranks_of("abc", {"a": {"b"}, "b": {"a"}}) == {"a": 2, "b": 2, "c": 0}  # no order does for both


def test_a_silent_partition_holds_up_the_others_until_it_is_drained_or_revoked():
    for release in (Aligner.drain, lambda aligner, partition: aligner.revoke([partition])):
        aligner = Aligner(RANKS)
        aligner.assign({("a", 0): None, ("asked", 0): None})
        aligner.push(("asked", 0), frame_of(("asked", 0), [1, 2]), 0, 2)
        assert aligner.take(10) is None
        assert aligner.waiting() == [("a", 0)]
        release(aligner, ("a", 0))
        assert order_of(aligner.take(10)) == [("asked", 0, 0)]
        aligner.drain(("asked", 0))
        assert order_of(aligner.take(10)) == [("asked", 0, 1)]


def test_a_partition_that_speaks_again_is_waited_for_again():
    aligner = Aligner(RANKS)
    aligner.assign({("a", 0): None, ("asked", 0): None})
    aligner.drain(("a", 0))
    aligner.push(("asked", 0), frame_of(("asked", 0), [1, 9]), 0, 2)
    assert order_of(aligner.take(10)) == [("asked", 0, 0)]
    aligner.push(("a", 0), frame_of(("a", 0), [4]), 0, 1)
    aligner.drain(("a", 0), drained=False)
    aligner.drain(("asked", 0))
    assert aligner.take(10) is None
    aligner.push(("a", 0), frame_of(("a", 0), [20], 1), 1, 2)
    assert order_of(aligner.take(10)) == [("a", 0, 0), ("asked", 0, 1)]


def test_a_tile_without_good_events_moves_its_partition_on_and_nothing_else():
    aligner = Aligner(RANKS)
    aligner.assign({("a", 0): 100, ("asked", 0): None})
    aligner.push(("a", 0), frame_of(("a", 0), [None, None], 7), 7, 9)
    chunk = aligner.take(10)
    assert (chunk.frames, chunk.spans, chunk.clocks) == ({}, {("a", 0): (7, 9)}, {("a", 0): 100})
    assert aligner.take(10) is None
