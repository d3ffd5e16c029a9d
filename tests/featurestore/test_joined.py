from __future__ import annotations

import pytest

from featurestore import Count, DefinitionError, Entity, Source, col, view

KEYED = {"event_time": "at", "key": "card"}


def payments(**changes):
    schema = {"card": str, "amount": float, "at": "timestamp[ms]"} | changes.pop("schema", {})
    return Source("payments", schema=schema, **KEYED | {"lateness": "5m"} | changes)


def logins(**changes):
    schema = {"card": str, "device": str, "amount": int, "at": "timestamp[ms]"} | changes.pop("schema", {})
    return Source("logins", schema=schema, **KEYED | changes)


def test_a_joined_source_has_the_columns_of_both_and_two_of_its_own():
    made = payments(derive={"large": col("amount") > 100}).join(logins(max_lead="1h"), on="card", within="10m")
    columns = {"pair_id": "str", "pair_at": "timestamp[ms]", "card": "str", "amount": "float", "at": "timestamp[ms]"}
    columns |= {"large": "bool", "device": "str", "amount_right": "int", "at_right": "timestamp[ms]"}
    assert made.types == columns
    assert (made.name, made.event_time, made.keys, made.id) == ("payments.logins", "pair_at", ("card",), "pair_id")
    assert (made.within_ms, made.lateness_ms, made.max_lead_ms) == (600_000, 1_200_000, 3_600_000)


def test_name_derived_columns_and_partitioner_of_a_join():
    made = payments(partitioner="murmur2").join(
        logins(), on=["card"], within="1m", name="both", derive={"ratio": col("amount") / col("amount_right")}, dedup=9
    )
    assert (made.name, made.types["ratio"], made.partitioner, made.dedup) == ("both", "float", "murmur2", 9)


def test_pairs_of_pairs_have_one_id_and_one_time():
    visits = Source("visits", schema={"card": str, "page": str, "at": "timestamp[ms]"}, **KEYED)
    made = payments().join(logins(), on="card", within="1m").join(visits, on="card", within="1h")
    assert list(made.types)[:3] == ["pair_id", "pair_at", "card"]
    assert list(made.types)[3:] == ["amount", "at", "device", "amount_right", "at_right", "page", "at_right_right"]
    assert made.name == "payments.logins.visits"


def views(source):
    return view(entity=Entity("card", key="card"), source=source, windows=["1h"])(type("Made", (), {"n": Count()}))


@pytest.mark.parametrize(
    ("left", "right", "within"),
    [
        (payments(lateness="6m"), logins(), "10m"),
        (payments(schema={"more": str}), logins(), "10m"),
        (payments(), logins(derive={"small": col("amount") < 3}), "10m"),
        (payments(), logins(schema={"device": int}), "10m"),
        (payments(), logins(), "11m"),
    ],
)
def test_views_of_pairs_have_another_fingerprint_when_what_makes_the_pairs_is_another(left, right, within):
    same, other = payments().join(logins(), on="card", within="10m"), left.join(right, on="card", within=within)
    assert same.fingerprint != other.fingerprint
    assert views(same).fingerprint != views(other).fingerprint
    assert views(payments().join(logins(), on="card", within="10m")).fingerprint == views(same).fingerprint


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: payments().join(payments(), on="card", within="1m"), "are one topic"),
        (lambda: payments().join(logins(), on="user", within="1m"), "'payments' has no column 'user'"),
        (lambda: payments().join(logins(), on="card", within="soon"), "within: 'soon' is no duration"),
        (lambda: payments().join(logins(key="device"), on="card", within="1m"), "key both topics by card"),
        (lambda: payments(key=["card", "at"]).join(logins(), on="card", within="1m"), "is keyed by card, at"),
        (lambda: payments().join(logins(schema={"card": int}), on="card", within="1m"), "'card' is str and int"),
        (lambda: payments(key="amount").join(logins(key="amount"), on="amount", within="1m"), "and no floats"),
        (lambda: payments(schema={"pair_at": int}).join(logins(), on="card", within="1m"), "rename that of the source"),
        (lambda: payments().join(logins(), on="card", within="1m", name="a b"), "a topic name has"),
        (
            lambda: payments(partitioner="crc32").join(logins(partitioner="murmur2"), on="card", within="1m"),
            "use one partitioner",
        ),
    ],
)
def test_a_join_that_cannot_work_is_refused_with_what_to_do(make, why):
    with pytest.raises(DefinitionError, match=why):
        make()
