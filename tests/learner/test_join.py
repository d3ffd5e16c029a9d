import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.early import EarlyLabels
from learner.join import LabelJoin

WAIT = 10
KEYS = st.sampled_from(["a", "b", "c", "d", None])
events = st.lists(
    st.tuples(
        st.sampled_from("pl"), KEYS, st.integers(0, 40), st.sampled_from([0.0, 1.0, 1.0, None, float("nan"), 0.5])
    ),
    max_size=60,
)


def oracle(rows, *, hold=False):
    """What joins, by the rules read aloud: a list of (place of the prediction, label), and the counts."""
    waiting, early, joins, clock, newest = {}, [], [], -1, -1
    counts = dict.fromkeys(("predictions", "duplicates", "unnamed", "null", "unmatched", "expired"), 0)
    for place, (kind, key, time, value) in enumerate(rows):
        clock = max(clock, time)
        counts["expired"] += sum(at + WAIT < clock for _, at in waiting.values())
        waiting = {k: held for k, held in waiting.items() if held[1] + WAIT >= clock}
        if kind == "p" and key is not None and key not in waiting:
            newest = max(newest, time)
        counts["unmatched"] += sum(at + WAIT < newest for _, at, _ in early)
        early = [label for label in early if label[1] + WAIT >= newest]
        if kind == "p" and (key is None or key in waiting):
            counts["unnamed" if key is None else "duplicates"] += 1
        elif kind == "p":
            counts["predictions"] += 1
            waiting[key] = (place, time)
            told = [label for label in early if label[0] == key and time <= label[1] <= time + WAIT]
            if told:
                early.remove(told[0])
                del waiting[key]
                joins.append((place, told[0][2]))
            elif time + WAIT < clock:
                del waiting[key]
                counts["expired"] += 1
        elif value not in (0.0, 1.0):
            counts["null"] += 1
        elif key not in waiting or time < waiting[key][1]:
            hopeful = hold and key is not None and time + WAIT >= newest
            counts["unmatched"] += not hopeful
            early += [(key, time, value)] if hopeful else []
        else:
            joins.append((waiting.pop(key)[0], value))
    return joins, counts | {"joined": len(joins), "pending": len(waiting), "held": len(early)}


def run(join, rows, start=0):
    joins = []
    for place, (kind, key, time, value) in enumerate(rows, start):
        if kind == "p":
            slot = join.predicted(key, time)
            if slot >= 0:
                join.rows[slot] = place
                told = join.told_before(key, time)
                joins += [(place, told)] if told is not None else []
        else:
            slot = join.labelled(key, time, value)
            if slot >= 0:
                joins.append((int(join.rows[slot, 0]), value))
    return joins


def counts_of(join):
    names = ("predictions", "duplicates", "unnamed", "null", "unmatched", "expired", "joined", "pending", "held")
    return {name: getattr(join, name) for name in names}


@settings(deadline=None)
@given(events, st.booleans())
def test_join_equals_the_rules_read_aloud(rows, hold):
    join = LabelJoin(WAIT, 1, hold=hold)
    joins, counts = oracle(rows, hold=hold)
    assert run(join, rows) == joins
    assert counts_of(join) == counts


@settings(deadline=None)
@given(events, st.lists(st.integers(0, 60)), st.booleans())
def test_when_the_dead_are_swept_makes_no_difference(rows, sweeps, hold):
    lazy, eager = LabelJoin(WAIT, 1, hold=hold), LabelJoin(WAIT, 1, hold=hold)
    joins = []
    for place, row in enumerate(rows):
        joins += run(eager, [row], place)
        if place in sweeps:
            assert eager.predictions == eager.joined + eager.expired + eager.pending
            eager.release()
        if place % 7 == 6:
            eager = LabelJoin.load(eager.dump(), hold=hold)
    assert run(lazy, rows) == joins
    assert counts_of(lazy) == counts_of(eager)
    assert lazy.dump()["ids"] == eager.dump()["ids"]
    assert lazy.dump()["rows"].tobytes() == eager.dump()["rows"].tobytes()


def test_label_joins_until_the_last_millisecond_of_the_wait():
    for late, joined in ((WAIT, 1), (WAIT + 1, 0)):
        join = LabelJoin(WAIT, 1)
        join.predicted("a", 100)
        join.labelled("a", 100 + late, 1.0)
        assert (join.joined, join.expired, join.unmatched) == (joined, 1 - joined, 1 - joined)


def test_label_from_before_the_prediction_does_not_join():
    join = LabelJoin(WAIT, 1)
    join.predicted("a", 100)
    assert join.labelled("a", 99, 1.0) == -1
    assert join.labelled("a", 100, 1.0) >= 0


def test_first_label_and_first_prediction_win():
    join = LabelJoin(WAIT, 1)
    slot = join.predicted("a", 1)
    assert join.predicted("a", 2) == -1
    assert join.labelled("a", 3, None) == -1  # a null says nothing: the wait goes on
    assert join.labelled("a", 4, 0.0) == slot
    assert join.labelled("a", 5, 1.0) == -1
    assert (join.duplicates, join.null, join.joined, join.unmatched) == (1, 1, 1, 1)


def test_what_never_gets_a_label_leaves_room_for_others():
    join = LabelJoin(WAIT, 3)
    for time in range(20_000):
        join.rows[join.predicted(f"flight {time}", time)] = time
        join.release()
    assert join.pending == WAIT + 1
    assert join.expired == 20_000 - WAIT - 1
    assert len(join.rows) == 64


def test_table_grows_with_what_waits():
    join = LabelJoin(1_000_000, 1)
    slots = [join.predicted(str(i), i) for i in range(1000)]
    join.rows[slots, 0] = np.arange(1000)
    join.release()
    joined = [join.labelled(str(i), 2000, 1.0) for i in range(1000)]
    assert join.rows[joined, 0].tolist() == list(range(1000))


def test_labels_that_are_held_are_bounded_in_time_and_number():
    early = EarlyLabels(wait=10, most=5000)
    for time in range(50_000):
        early.newest = time
        early.keep(f"flight {time}", time, 1.0)
    assert len(early) <= 1024
    early.newest = 50_000
    early.sweep()
    assert (len(early), early.dropped) == (10, 49_990)
    for i in range(20_000):  # all at once
        early.keep(f"stranger {i}", 50_000, 0.0)
    assert len(early) <= 5000
    assert len(early) + early.dropped == 70_000
    assert early.take("stranger 19999", 50_000) == 0.0
    assert early.take("stranger 0", 50_000) is None


def test_labels_wait_for_predictions_however_late_these_are():
    join = LabelJoin(WAIT, 1, hold=True)
    for time in range(100):
        join.labelled(f"flight {time}", time + 5, 1.0)
    joined = [join.told_before(f"flight {t}", t) for t in range(100) if join.predicted(f"flight {t}", t) >= 0]
    assert joined == [1.0] * 100
    assert (join.joined, join.expired, join.unmatched, join.held) == (100, 0, 0, 0)
