from __future__ import annotations

import random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import Count, Entity, Source, col, view
from featurestore.align import Aligner
from featurestore.erasures import Erasure, check_erasure, entities_of, rows_of, told_before
from featurestore.errors import DataError, DefinitionError
from featurestore.frames import META
from featurestore.keys import encode_entity
from tests.featurestore.helpers import PARTITIONS, SOURCE, made
from tests.featurestore.test_flow import ASKS, EVENTS, SEEDS, TOPICS, VIEWS, Asked, Other, Own, Run, chunks_of, logs_of

ENTITIES = {"k": [b"sa", b"sb", b"szz"], "g": [b"i1", b"i2", b"i9"]}
ERASED = st.lists(
    st.tuples(
        st.sampled_from(list(TOPICS)),
        st.integers(0, PARTITIONS - 1),
        st.integers(0, 12),  # after so many events
        st.sampled_from([(name, key) for name, keys in ENTITIES.items() for key in keys]),
    ),
    max_size=8,
)


def with_erasures(events, erased):
    """The events' logs with erasures among them: the frames, and the erasures in order of offset."""
    logs, erasures = logs_of(events), []
    for at, frame in logs.items():
        mine = sorted((place, who) for topic, partition, place, who in erased if (topic, partition) == at)
        erasures += [Erasure(*at, place + i, *who) for i, (place, who) in enumerate(mine)]
        moved = [offset + sum(place <= offset for place, _ in mine) for offset in frame["_offset"]]
        logs[at] = frame.with_columns(pl.Series("_offset", moved, pl.Int64))
    # Beyond the last event the first offsets would leave holes, which a log may have.
    return logs, erasures


def masked(logs, erasures, name):
    """The logs with the key of every event taken away that comes before an erasure of its entity called `name`."""
    out = {}
    for at, frame in logs.items():
        limits = {}
        for each in erasures:
            if (each.topic, each.partition, each.entity) == (*at, name):
                limits[each.key] = each.offset
        hidden = pl.Series(rows_of(frame, [name], limits))
        out[at] = frame.with_columns(pl.when(~hidden).then(pl.col(name)).alias(name))
    return out


def run(logs, erasures, seed=0, forgetful=0.0, budget=None):
    done, rng = Run(), random.Random(seed)
    for chunk in chunks_of(logs, rng, erasures=erasures):
        if rng.random() < forgetful:
            done.forget()
        done.take(chunk)
        if budget is not None:
            done.flow.forget_oldest(budget)
    return done


@given(EVENTS, ERASED, SEEDS)
@settings(deadline=None)
def test_an_erasure_leaves_the_states_of_a_log_in_which_the_entity_had_no_events_before(events, erased, seed):
    logs, erasures = with_erasures(events, erased)
    found = run(logs, erasures, seed)
    for each in VIEWS:
        wanted = run(masked(logs, erasures, each.entity.name), [], seed)
        assert of(each, found.blobs) == of(each, wanted.blobs)
        clocks = {at: clock for at, (_, clock) in of(each, wanted.positions).items()}
        assert clocks.items() <= {at: clock for at, (_, clock) in found.positions.items()}.items()


def of(each, kept):
    """What is kept of a view."""
    return {at: what for at, what in kept.items() if at[0] == each.key}


@given(EVENTS, ERASED, SEEDS, SEEDS, st.sampled_from([None, 0, 100_000]))
@settings(deadline=None)
def test_an_erasure_takes_its_place_however_the_logs_are_cut_and_states_are_kept(events, erased, one, other, budget):
    logs, erasures = with_erasures(events, erased)
    assert run(logs, erasures, one).all() == run(logs, erasures, other, forgetful=0.5, budget=budget).all()


def test_an_erasure_ends_what_its_partition_knows_and_nothing_else():
    row = {"topic": "events", "_time": 1_000, "g": 1, "i": 1, "x": 1.0}
    events = [{**row, "_partition": p, "k": k} for p in (0, 1) for k in "ab"]
    logs, erasures = with_erasures(events, [("events", 0, 2, ("k", b"sa"))])
    assert set(run(logs, erasures).blobs) == {
        (Own.key, 0, b"sb"),
        (Own.key, 1, b"sa"),
        (Own.key, 1, b"sb"),
        (Other.key, 0, b"i1"),
        (Other.key, 1, b"i1"),
    }


def test_an_erasure_has_the_place_of_an_event_of_its_partitions_newest_time():
    logs = {("asks", 0): [3], ("events", 0): [1, 5], ("events", 1): [4]}
    aligner, erasure = Aligner({"events": 0, "asks": 1}), Erasure("events", 0, 2, "k", b"sa")
    aligner.assign(dict.fromkeys(logs))
    for at, times in logs.items():
        rows = {"_partition": [at[1]] * len(times), "_offset": range(len(times)), "_time": times}
        frame = pl.DataFrame(rows, schema={name: META[name] for name in rows})
        aligner.push(at, frame, 0, len(times) + 3, [erasure] if at == ("events", 0) else [])
        aligner.drain(at)
    chunk = aligner.take(100)
    assert chunk.erasures == [(4, erasure)]
    assert chunk.spans == {("asks", 0): (0, 4), ("events", 0): (0, 5), ("events", 1): (0, 4)}
    assert aligner.empty


def test_a_topic_knows_the_entities_of_its_views_and_of_those_that_are_read_at_its_events():
    assert entities_of("asks", VIEWS, [(Other, "asks")]) == {"k": ("k",), "g": ("g",)}
    assert entities_of("asks", VIEWS) == {"k": Asked.entity.keys}
    assert entities_of("nowhere", VIEWS) == {}


def test_topics_that_are_joined_know_the_entities_of_pairs_by_columns_of_their_own():
    schema = {"card": str, "place": str, "at": "timestamp[ms]"}
    payments, logins, visits = (
        Source(name, schema=schema | {column: str}, event_time="at", key="card")
        for name, column in (("payments", "shop"), ("logins", "device"), ("visits", "page"))
    )
    pairs = payments.join(logins, on="card", within="1m", derive={"where": col("shop") + col("device")})
    threes = pairs.join(visits, on="card", within="1m")

    def of(source, *keys):
        return view(entity=Entity(keys[0], key=keys), source=source, windows=["1h"])(type("V", (), {"n": Count()}))

    def told(*views):
        return [topic for _, topic in told_before(views)]

    assert told(of(pairs, "card")) == ["payments", "logins"]
    assert told(of(threes, "card")) == [pairs.name, "payments", "logins", "visits"]
    assert (told(of(pairs, "shop")), told(of(threes, "device"))) == (["payments"], [pairs.name, "logins"])
    assert told(of(pairs, "place")) == ["payments"]  # that of a login has another name there
    assert told(of(pairs, "where")) == told(of(pairs, "shop", "device")) == told(of(pairs, "pair_id")) == []
    assert told(of(threes, "pair_id")) == []
    assert told(of(pairs, "card"), of(logins, "card")) == ["payments"]


def test_one_name_stands_for_one_key_of_a_topic_be_it_of_a_view_or_read_by_a_service():
    one, two = (made({"n": Count()}, entity=Entity("account", key=key), windows=["1h"]) for key in ("k", "s"))
    far = made({"n": Count()}, source=ASKS, entity=Entity("account", key="g"), windows=["1h"])
    assert entities_of("events", [one, one, far]) == {"account": ("k",)}
    for views, reads in (([one, two], []), ([one], [(far, "events")]), ([], [(one, "events"), (far, "events")])):
        with pytest.raises(DefinitionError, match=r"'account' of 'events' has the key k in .* different names"):
            entities_of("events", views, reads)
    pairs = [made({"n": Count()}, entity=Entity("pair", key=key), windows=["1h"]) for key in (["k", "s"], ["s", "k"])]
    with pytest.raises(DefinitionError, match="has the key k, s in view"):  # their keys are encoded in this order
        entities_of("events", pairs)


@pytest.mark.parametrize(
    ("entity", "key", "why"),
    [
        (b"who", b"sa", "no view of 'events' is about an entity 'who'; there are 'k', 'pair'"),
        (b"\xff", b"sa", "is about an entity"),
        (b"k", None, "not an encoded key of 'k'"),
        (b"k", b"a", "not an encoded key of 'k'"),
        (b"k", b"s%41", "not an encoded key of 'k'"),
        (b"k", b"i1", "not one of 'k', whose columns are str"),
        (b"k", b"sa,sb", "not one of 'k'"),
        (b"pair", b"sa", "not one of 'pair', whose columns are str, int"),
        (b"pair", b"sa,b1", "not one of 'pair'"),
    ],
)
def test_a_record_that_names_no_entity_of_the_topic_is_told_why(entity, key, why):
    with pytest.raises(DataError, match=why):
        check_erasure(SOURCE, {"k": ("k",), "pair": ("k", "g")}, entity, key)


def test_a_record_that_names_an_entity_is_an_erasure():
    check_erasure(SOURCE, {"pair": ("k", "g")}, b"pair", encode_entity(("a", 7)))


def test_rows_below_the_limit_of_their_entity_are_found():
    frame = pl.DataFrame({"k": ["a", "b", None, "a", "b"], "_offset": [3, 4, 5, 6, 7]})
    assert rows_of(frame, ["k"], {b"sa": 6, b"sb": 5, b"sc": 9}).tolist() == [True, True, False, False, False]
    assert rows_of(frame[:0], ["k"], {b"sa": 6}).tolist() == []
