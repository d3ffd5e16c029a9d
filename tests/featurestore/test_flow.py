from __future__ import annotations

import random
from collections import defaultdict
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import Count, Entity, Last, Max, Mean, Source, Std, Sum, col, derived, oracle, view
from featurestore.align import Aligner
from featurestore.flow import Flow, Read
from featurestore.frames import META
from tests.featurestore.helpers import PARTITIONS, SOURCE, frame_of

ASKS = Source("asks", schema={"k": str, "g": int, "at": "timestamp[ms]"}, event_time="at", key="k", lateness="10s")


@view(entity=Entity("k", "k"), source=SOURCE, windows=["5s", "1m"])
class Own:
    """Keyed as its topic is."""

    n = Count()
    total = Sum("i")
    last = Last("i", windows=["lifetime"])


@view(entity=Entity("g", "g"), source=SOURCE, windows=["20s"])
class Other:
    """Keyed by another column: an entity has events in all partitions."""

    n = Count(where=col("i") > 0)
    most = Max("i")
    mean = Mean("x")
    spread = Std("x")
    sum = Sum("x", windows=["20s", "1m"])
    share = derived(col("sum_20s") / col("sum_1m"))


@view(entity=Entity("k", "k"), source=ASKS, windows=["10s", "lifetime"])
class Asked:
    """Of the topic that is read at."""

    n = Count()


VIEWS = [Own, Other, Asked]
READS = [
    Read(Own, "asks", ("k",)),
    Read(Other, "asks", ("g",)),
    Read(Asked, "asks", ("k",)),
    Read(Asked, "asks", ("k",), before=True),
    Read(Other, "events", ("g",), before=True),
]
TOPICS = {"events": SOURCE, "asks": ASKS}
EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "topic": st.sampled_from(["events", "events", "asks"]),
            "_partition": st.integers(0, PARTITIONS - 1),
            "_time": st.integers(0, 150_000) | st.integers(0, 12).map(lambda n: n * 2_500),
            "k": st.sampled_from("abc"),
            "g": st.sampled_from([1, 2, None]),
            "i": st.sampled_from([None, 1, -3, 2**62]),
            "x": st.sampled_from([None, 0.1, 1e16, -1e16, 3.3]),
        }
    ),
    max_size=40,
)
SEEDS = st.integers(0, 1 << 32)


def logs_of(events):
    """The events as an event frame a partition."""
    rows = {(topic, p): [] for topic in TOPICS for p in range(PARTITIONS)}
    for event in events:
        mine = rows[event["topic"], event["_partition"]]
        mine.append({**event, "_offset": len(mine), "_timestamp": event["_time"], "at": event["_time"]})
    return {at: frame_of(TOPICS[at[0]], mine) for at, mine in rows.items()}


def chunks_of(logs, rng, starts=None, erasures=()):
    """The logs in merged order, cut as the random numbers have it, each partition from its start on.

    Of an offset that is an erasure's there is no event.
    """
    aligner = Aligner({"events": 0, "asks": 1})
    for at, frame in logs.items():
        start = (starts or {}).get(at, 0)
        before = frame[:start]["_time"]
        aligner.assign({at: before.max() if len(before) else None})
        mine = [each for each in erasures if (each.topic, each.partition) == at]
        end = max([start, *(each.offset + 1 for each in mine), *(frame["_offset"][-1:] + 1)])
        if start < end:
            aligner.push(at, frame[start:], start, end, mine)
        aligner.drain(at)
    while (chunk := aligner.take(rng.randint(1, 9))) is not None:
        yield chunk


class Run:
    """A flow over chunks with all that came of it, and a store of its states; `forget` starts anew from the store."""

    def __init__(self):
        self.blobs, self.positions = {}, {}
        self.events, self.reads = defaultdict(list), defaultdict(list)
        self.late, self.overflowed = defaultdict(list), defaultdict(list)
        self.forget()

    def forget(self):
        self.flow = Flow(VIEWS, READS, dict.fromkeys(TOPICS, PARTITIONS))
        for each in VIEWS:
            for p in range(PARTITIONS):
                self.flow.begin(each.key, (each.source.name, p), self.positions.get((each.key, p)))

    def take(self, chunk, read_from=0):
        wanted = {(topic, p): read_from for topic in TOPICS for p in range(PARTITIONS)}
        for key, pairs in self.flow.lookups(chunk, wanted).items():
            state = self.flow.states[key]
            for entity, p in pairs:
                state.load(entity, p, self.blobs.get((key, p, state.names[entity])))
        outputs = self.flow.run(chunk)
        for key, changes in self.flow.changes().items():
            for change in changes:
                for entity, blob in zip(change.entities, change.blobs, strict=True):
                    self.blobs[key, change.partition, entity] = bytes(blob)
                for entity in change.erased:
                    self.blobs.pop((key, change.partition, entity), None)
        for key, each in self.flow.views.items():
            for at, (_, end) in chunk.spans.items():
                if at[0] == each.source.name:
                    assert self.flow.next_offset(key, at) >= end
                    clock = self.flow.states[key].clock(at[1])
                    self.positions[key, at[1]] = (self.flow.next_offset(key, at), clock or 0)
            self._keep(key, outputs[key])

    def _keep(self, key, output):
        frames = [(self.events, key, output.events), (self.late, key, output.late)]
        frames += [(self.overflowed, key, output.overflowed)]
        frames += [(self.reads, read, frame) for read, frame in output.reads.items()]
        for kept, name, frame in frames:  # a step counts from the beginning of its chunk
            kept[name] += frame.drop("_step", strict=False).rows()

    def all(self):
        """Everything, with every bit of every number."""
        return repr([sorted(self.blobs.items()), sorted(self.positions.items()), *map(self._sorted, self._kept())])

    def _kept(self):
        return self.events, self.late, self.overflowed, {str(READS.index(r)): rows for r, rows in self.reads.items()}

    @staticmethod
    def _sorted(kept):
        return sorted((key, rows) for key, rows in kept.items() if rows)


def run(events, seed=0, forgetful=0.0, budget=None):
    done, rng = Run(), random.Random(seed)
    for chunk in chunks_of(logs_of(events), rng):
        if rng.random() < forgetful:
            done.forget()
        done.take(chunk)
        if budget is not None:
            done.flow.forget_oldest(budget)
    return done


@given(EVENTS, SEEDS, SEEDS)
@settings(deadline=None)
def test_any_chunking_gives_the_same_bits(events, one, other):
    assert run(events, one).all() == run(events, other).all()


@given(EVENTS, SEEDS)
@settings(deadline=None, max_examples=40)
def test_states_that_were_stored_and_loaded_are_as_good_as_those_kept_in_memory(events, seed):
    assert run(events, seed, forgetful=0.5).all() == run(events, seed).all()


@given(EVENTS, SEEDS, st.sampled_from([0, 100_000, 200_000]))
@settings(deadline=None, max_examples=60)
def test_entities_that_memory_had_no_room_for_are_as_good_as_those_that_it_kept(events, seed, budget):
    assert run(events, seed, budget=budget).all() == run(events, seed).all()


def test_memory_keeps_the_entities_that_were_used_last():
    flow = Flow([Other], [], {"events": PARTITIONS})
    for p in range(PARTITIONS):
        flow.begin(Other.key, ("events", p), None)
    event = {"topic": "events", "_partition": 1, "k": "b", "i": 4, "x": 0.5}
    events = [{**event, "_time": 1_000 * at, "g": g} for at, g in enumerate([1, 2, 3, 4, 1])]
    for chunk in chunks_of(logs_of(events), SimpleNamespace(randint=lambda *_: 1)):
        flow.lookups(chunk, {})
        flow.run(chunk)
        flow.changes()
    before = flow.states[Other.key]
    flow.forget_oldest(before.nbytes)
    assert flow.states[Other.key] is before
    flow.forget_oldest(before.nbytes - 1)
    kept = flow.states[Other.key]
    assert [kept.names[number] for number in range(len(kept.names))] == [b"i1", b"i4"]
    assert kept.blobs(1) == {name: blob for name, blob in before.blobs(1).items() if name in {b"i1", b"i4"}}


@given(EVENTS, SEEDS, st.data())
@settings(deadline=None, max_examples=40)
def test_a_view_that_is_ahead_skips_what_it_has_folded(events, seed, data):
    logs, rng = logs_of(events), random.Random(seed)
    whole, ahead = Run(), Run()
    cuts = {at: data.draw(st.integers(0, len(frame))) for at, frame in logs.items() if at[0] == "events"}
    for chunk in chunks_of({at: frame[: cuts[at]] for at, frame in logs.items() if at in cuts}, rng):
        ahead.take(chunk)
    ahead.positions = {at: place for at, place in ahead.positions.items() if at not in {(Other.key, 0), (Other.key, 1)}}
    for p in (0, 1):
        for key in [key for key in ahead.blobs if key[:2] == (Other.key, p)]:
            del ahead.blobs[key]
    ahead.forget()
    ahead.events.clear()
    for chunk in chunks_of(logs, rng):
        whole.take(chunk)
        ahead.take(chunk)
    assert sorted(ahead.blobs.items()) == sorted(whole.blobs.items())
    assert ahead.positions == whole.positions
    fresh = [row for row in whole.events[Own.key] if row[1] >= cuts["events", row[0]]]
    assert [row[:2] for row in ahead.events[Own.key]] == [row[:2] for row in fresh]
    again = [row for row in whole.events[Other.key] if row[0] < 2 or row[1] >= cuts["events", 2]]
    assert [row[:2] for row in ahead.events[Other.key]] == [row[:2] for row in again]


@given(EVENTS)
@settings(deadline=None)
def test_a_read_sees_what_came_before_it_in_merged_order_and_its_own_event_unless_before(events):
    done, seen = run(events), defaultdict(list)
    reads = {read: iter(rows) for read, rows in done.reads.items()}
    for topic, event in merged_rows(events):
        for read in (read for read in READS if read.topic == topic and read.before):
            check(read, event, seen, next(reads[read]))
        seen[topic].append(event)
        for read in (read for read in READS if read.topic == topic and not read.before):
            check(read, event, seen, next(reads[read]))
    assert all(next(rows, None) is None for rows in reads.values())


def merged_rows(events):
    """(topic, event) in merged order."""
    out = []
    for chunk in chunks_of(logs_of(events), random.Random(0)):
        rows = [(row["_step"], topic, row) for topic, frame in chunk.frames.items() for row in frame.to_dicts()]
        out += [(topic, row) for _, topic, row in sorted(rows, key=lambda row: row[0])]
    return out


def check(read, event, seen, row):
    """Compare a row of a read with what the oracle gives; sums of floats are of no interest here."""
    key = tuple(event[name] for name in read.keys)
    names = [*read.view.outputs, "_effective"]
    found = dict(zip(names, row, strict=True))
    if None in key:
        assert all(found[name] is None for name in read.view.outputs)
        return
    effective, wanted = oracle.features(read.view, seen[read.view.source.name], key, event["_time"])
    assert found["_effective"] == effective
    exact = [
        f.name for f in read.view.stored if isinstance(f.aggregate, Count | Last | Max) or f.aggregate.column == "i"
    ]
    assert {name: found[name] for name in exact} == {name: wanted[name] for name in exact}


def test_events_that_are_late_overflow_or_have_no_key_are_not_folded_and_told_apart():
    base = {"topic": "events", "_partition": 0, "k": "a", "g": None, "i": 2**62, "x": None}
    done = run([{**base, "_time": time} for time in (500_000, 500_000, 1_000)])
    assert [row[:2] for row in done.events[Own.key]] == [(0, 0), (0, 2)]  # a lifetime is never too late
    names = frame_of(SOURCE, []).columns
    assert [row[names.index("_offset")] for row in done.overflowed[Own.key]] == [1]
    assert [row[names.index("_offset")] for row in done.late[Other.key]] == [2]
    assert done.events[Other.key] == []
    assert done.positions[Other.key, 0] == (3, 500_000)


def test_an_output_has_the_events_place_its_keys_and_all_features():
    event = {"topic": "events", "_partition": 1, "_time": 5_000, "k": "b", "g": 2, "i": 4, "x": 0.5}
    flow = Flow([Other], [], {"events": PARTITIONS})
    for p in range(PARTITIONS):
        flow.begin(Other.key, ("events", p), None)
    [chunk] = chunks_of(logs_of([event]), random.Random(0))
    assert flow.lookups(chunk, {}) == {}
    frame = flow.run(chunk)[Other.key].events
    assert frame.columns == ["_partition", "_offset", "_time", "g", *Other.outputs]
    assert frame.row(0) == (1, 0, 5_000, 2, 1, 4, 0.5, None, 0.5, 0.5, 1.0)
    assert {name: frame.schema[name] for name in ("_partition", "_offset", "_time")} == {
        name: META[name] for name in ("_partition", "_offset", "_time")
    }
