"""The public API: what definitions give, and what each mistake is told."""

from __future__ import annotations

import copy
import inspect
import types

import polars as pl
import pytest

import featurestore
from featurestore import (
    Count,
    CountBy,
    DefinitionError,
    Entity,
    First,
    Last,
    LastN,
    Max,
    Mean,
    Min,
    OnceflowError,
    Source,
    Std,
    Sum,
    TopK,
    View,
    aggregates,
    col,
    definitions,
    derived,
    errors,
    sources,
    view,
    window,
)

transactions = Source(
    "transactions",
    schema={"card_id": str, "merchant": str, "amount": float, "status": str, "at": "timestamp[ms]"},
    event_time="at",
    key="card_id",
    lateness="10m",
)
card = Entity("card", key="card_id")


@view(entity=card, source=transactions, windows=["5m", "1h", "1d"], version=1)
class CardActivity:
    """What a card has done lately."""

    payments = Count()
    spend = Sum("amount")
    declined = Count(where=col("status") == "declined", windows=["10m"])
    biggest = Max("amount", windows=["1d", "lifetime"])
    share = derived(col("spend_5m") / col("spend_1d"))


def activity(source=transactions, entity=card, windows=("5m",), version=1, name="CardActivity", **features):
    """A view of the given features."""
    return view(entity=entity, source=source, windows=windows, version=version)(type(name, (), features))


def changed(**changes):
    """The source of the example with some arguments changed."""
    given = {"schema": transactions.schema, "event_time": "at", "key": "card_id", "lateness": "10m", **changes}
    return Source(given.pop("name", "transactions"), **given)


def test_the_example_of_the_design_gives_its_names_and_types():
    assert CardActivity.outputs == {
        "payments_5m": "int",
        "payments_1h": "int",
        "payments_1d": "int",
        "spend_5m": "float",
        "spend_1h": "float",
        "spend_1d": "float",
        "declined_10m": "int",
        "biggest_1d": "float",
        "biggest_lifetime": "float",
        "share": "float",
    }
    assert (CardActivity.name, CardActivity.version) == ("card_activity", 1)
    assert CardActivity.doc == "What a card has done lately."
    assert CardActivity.key == f"card_activity@{CardActivity.fingerprint}"
    assert CardActivity.keyed


def test_expressions_by_name_become_a_feature_or_a_column_each():
    both = {"": col("spend_5m") * 2, "high": col("spend_5m") > 9}
    made = activity(spend=Sum("amount"), double=derived(both), again=derived(col("double_high"), name="again"))
    assert list(made.outputs.items())[1:] == [("double", "float"), ("double_high", "bool"), ("again", "bool")]
    source = changed(derive={"status_is": {"ok": col("status") == "ok", "bad": col("status") == "bad"}})
    assert list(source.types)[-2:] == list(source.derived) == ["status_is_ok", "status_is_bad"]
    plain = {"status_is_ok": col("status") == "ok", "status_is_bad": col("status") == "bad"}
    fingerprints = {activity(each, spend=Sum("amount")).fingerprint for each in (source, changed(derive=plain))}
    assert len(fingerprints) == 1


def test_a_derived_feature_of_a_view_is_named_by_its_attribute_alone():
    with pytest.raises(DefinitionError, match=r"feature 'share': .* named by its attribute; leave out name='part'"):
        activity(spend=Sum("amount"), share=derived(col("spend_5m"), name="part"))


def test_features_are_attributes_and_items_with_full_names():
    assert isinstance(CardActivity, View)
    assert CardActivity.spend_5m is CardActivity["spend_5m"]
    assert CardActivity.spend_5m.full_name == "card_activity:spend_5m"
    assert CardActivity.share.aggregate is None
    assert [feature.name for feature in CardActivity.stored] == [*CardActivity.outputs][:-1]
    with pytest.raises(AttributeError, match="view 'card_activity' has no feature 'spend_2m'"):
        _ = CardActivity.spend_2m
    with pytest.raises(DefinitionError, match="no feature 'spend_5'; did you mean 'spend_5m'"):
        _ = CardActivity["spend_5"]
    assert "card_activity" in repr(CardActivity)
    assert copy.copy(CardActivity).key == CardActivity.key


def test_the_public_names_are_the_ones_in_all():
    public = {name for name, value in vars(featurestore).items() if not name.startswith("_")}
    modules = {name for name in public if isinstance(getattr(featurestore, name), types.ModuleType)}
    assert sorted(featurestore.__all__) == featurestore.__all__
    assert public - modules == set(featurestore.__all__)
    assert featurestore.col is pl.col


@pytest.mark.parametrize("module", [aggregates, definitions, errors, sources])
def test_every_public_class_is_exported_and_documented(module):
    for name, value in vars(module).items():
        if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_"):
            assert name in featurestore.__all__
            assert value.__doc__


def test_every_error_is_one_of_ours():
    kinds = [value for value in vars(errors).values() if inspect.isclass(value)]
    assert all(issubclass(kind, OnceflowError) for kind in kinds)


@pytest.mark.parametrize(
    ("aggregate", "kinds"),
    [
        (Count, {"n": "int", "x": "int", "b": "int", "s": "int", "t": "int"}),
        (Sum, {"n": "int", "x": "float", "b": "int"}),
        (Mean, {"n": "float", "x": "float", "b": "float"}),
        (Std, {"n": "float", "x": "float", "b": "float"}),
        *((each, {"n": "int", "x": "float", "b": "bool", "t": "timestamp[ms]"}) for each in (Min, Max, First, Last)),
    ],
)
def test_the_type_of_a_feature_follows_its_column(aggregate, kinds):
    schema = {"n": int, "x": float, "b": bool, "s": str, "t": "timestamp[ms]"}
    source = Source("s", schema=schema, event_time="t", key="s")
    made = activity(source, Entity("e", key="s"), **{f"f_{column}": aggregate(column) for column in kinds})
    assert made.outputs == {f"f_{column}_5m": kind for column, kind in kinds.items()}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"f": Sum("amout")}, r"feature 'f': there is no column 'amout' in 'transactions'; did you mean 'amount'"),
        ({"f": Sum("merchant")}, r"feature 'f': Sum needs numbers, and column 'merchant' is a str"),
        ({"f": Mean("at")}, r"feature 'f': Mean of a timestamp has no meaning; derive a duration first"),
        ({"f": Count(windows=["5 m"])}, r"feature 'f': '5 m' is no duration: write a number and a unit"),
        ({"f": Count(windows=[5])}, r"feature 'f': 5 is no duration"),
        ({"f": Count(windows=[])}, r"feature 'f': it has no windows; give a list, such as windows="),
        ({"f": Count(windows="5m")}, r"feature 'f': windows is a list; write windows=\['5m'\]"),
        ({"f": Count(windows=["5m", "5m"])}, r"feature 'f': there are two features named 'f_5m'; rename one, or drop"),
        ({"f": Count(), "f_5m": derived(col("f_5m") + 1)}, r"two features named 'f_5m'"),
        (
            {"f": Count(where=col("amount") + 1)},
            r"feature 'f': where must be true or false for each event, as a comparison is",
        ),
        (
            {"f": Count(where=col("amunt") > 1)},
            r"feature 'f', where: there is no column 'amunt'; did you mean 'amount'",
        ),
        (
            {"f": Count(where=col("amount") > col("amount").mean())},
            r"'f', where: .* more than its own row; use row-wise",
        ),
        ({"f": Count(where="amount > 1")}, r"feature 'f', where: 'amount > 1' is no expression"),
        (
            {"f": Sum("amount"), "g": derived(col("f_1h") * 2)},
            r"feature 'g': there is no column 'f_1h'; there are f_5m",
        ),
        ({"f": Sum("amount"), "g": derived(col("f_5m").mean())}, r"feature 'g': .* more than its own row"),
        ({"f": Sum("amount"), "g": derived(3)}, r"feature 'g': 3 is no expression"),
        ({"f": 3}, r"'f' is no feature; write an aggregate such as Count\(\) or derived"),
        ({"f": featurestore.Aggregate("amount")}, r"'f' is no feature"),
        ({}, r"it has no features over windows; add one, such as payments = Count\(\)"),
        ({"f": derived(pl.lit(1))}, r"it has no features over windows"),
        ({"name": "Größe", "f": Count()}, r"View Größe: name the class with letters"),
        ({"windows": "5m", "f": Count()}, r"feature 'f': windows is a list"),
        ({"windows": (), "f": Count()}, r"feature 'f': it has no windows"),
        ({"version": 0, "f": Count()}, r"version must be a whole number from 1 on, not 0"),
        ({"entity": Entity("user", key="user_id"), "f": Count()}, r"entity 'user' needs column 'user_id' in 'transac"),
        ({"entity": Entity("sum", key="amount"), "f": Count()}, r"key column 'amount' is a float; entity keys are"),
    ],
)
def test_a_view_that_cannot_work_is_told_the_mistake_and_the_fix(features, message):
    with pytest.raises(DefinitionError, match=message):
        activity(**features)


def test_a_hop_wider_than_its_window_is_refused():
    with pytest.raises(DefinitionError, match='window "5m": hop "10m" is wider'):
        window("5m", hop="10m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "no spaces"}, r"^Source 'no spaces': a topic name has 1 to 200 letters"),
        ({"schema": {"card_id": bytes}}, r"column 'card_id': <class 'bytes'> is no column type; use str, int, float"),
        ({"schema": {"card_id": "datetime"}}, r"'datetime' is no column type"),
        ({"event_time": "time"}, r"there is no column 'time'"),
        ({"event_time": "amount"}, r"event time 'amount' must be \"timestamp\[ms\]\" in the schema"),
        ({"key": "card"}, r"there is no column 'card'; did you mean 'card_id'"),
        ({"key": ()}, r"it has no key; name the column"),
        ({"lateness": "soon"}, r"'soon' is no duration"),
        ({"max_lead": "0s"}, r"'0s' is no duration"),
        ({"partitioner": "md5"}, r"partitioner must be one of murmur2, crc32, or left out"),
        ({"grown_from": [4]}, r"without a partitioner all partitions are read; leave grown_from out"),
        (
            {"partitioner": "crc32", "grown_from": [0]},
            r"grown_from lists numbers of partitions, .* not \[0\]",
        ),
        ({"derive": {"amount": col("amount") * 2}}, r"derived column 'amount' is already there; choose another name"),
        ({"derive": {"x": col("amunt") * 2}}, r"derived column 'x': there is no column 'amunt'; did you mean"),
        ({"derive": {"x": col("amount").shift()}}, r"derived column 'x': .* more than its own row"),
        ({"derive": {"_time": col("at")}}, r"column '_time' must be a name of letters, digits and '_'"),
    ],
)
def test_a_source_that_cannot_work_is_told_the_mistake_and_the_fix(changes, message):
    with pytest.raises(DefinitionError, match=message):
        changed(**changes)


def test_an_entity_without_a_key_is_refused():
    with pytest.raises(DefinitionError, match="Entity 'card': it has no key"):
        Entity("card", key=())


def test_an_entity_may_have_several_columns_and_need_not_be_the_topics_key():
    pair = Entity("pair", key=["card_id", "merchant"])
    assert pair.keys == ("card_id", "merchant")
    assert not activity(entity=pair, f=Count()).keyed


def test_derived_columns_and_features_may_build_on_earlier_ones():
    source = changed(derive={"cents": (col("amount") * 100).cast(pl.Int64), "odd": col("cents") % 2 == 1})
    assert source.types["cents"] == "int"
    assert source.types["odd"] == "bool"
    assert "cents" not in source.schema
    made = activity(source, f=Sum("cents"), g=derived(col("f_5m") * 2), h=derived(col("g") > 1))
    assert made.outputs == {"f_5m": "int", "g": "int", "h": "bool"}


def test_names_become_snake_case():
    assert activity(name="HTTPErrors5xx", f=Count()).name == "http_errors5xx"


BASE = {"f": Sum("amount"), "g": Count(where=col("amount").round(1) > 1)}


@pytest.mark.parametrize(
    "other",
    [
        activity(f=Mean("amount"), g=BASE["g"]),
        activity(f=BASE["f"]),
        activity(g=BASE["g"], f=BASE["f"]),
        activity(f=BASE["f"], g=Count(where=col("amount").round(2) > 1)),
        activity(windows=["5m", "1h"], **BASE),
        activity(windows=[window("5m", hop="1m")], **BASE),
        activity(entity=Entity("card", key="merchant"), **BASE),
        activity(changed(lateness="11m"), **BASE),
        activity(changed(name="other"), **BASE),
        activity(changed(derive={"x": col("amount")}), **BASE),
        activity(changed(schema={**transactions.schema, "more": int}), **BASE),
    ],
    ids=range(11),
)
def test_a_changed_definition_has_a_new_fingerprint(other):
    assert other.fingerprint != activity(**BASE).fingerprint


def test_what_the_state_does_not_depend_on_leaves_the_fingerprint_as_it_is():
    base = activity(**BASE).fingerprint
    assert activity(**BASE).fingerprint == base
    assert activity(**BASE, share=derived(col("f_5m") * 2)).fingerprint == base
    assert activity(version=2, **BASE).fingerprint == base
    assert activity(changed(max_lead="1h", partitioner="murmur2"), **BASE).fingerprint == base


def test_the_fingerprint_of_the_example_is_what_it_was():
    """Stored state is found by it. Should an upgrade of Polars, whose text of `where` it holds, change it: say so."""
    assert CardActivity.fingerprint == "a38841f2612e"


def test_the_spec_is_plain_data():
    spec = CardActivity.spec()
    assert spec["view"] == "card_activity"
    assert spec["entity"] == {"name": "card", "key": ["card_id"]}
    assert spec["features"][3] == {
        "name": "spend_5m",
        "type": "float",
        "aggregate": "Sum",
        "column": "amount",
        "where": None,
        "parameters": {},
        "window": {"label": "5m", "kind": "tiles", "length": 300_000, "hop": 5_000, "delay": 0},
    }
    assert [each["name"] for each in spec["derived"]] == ["share"]


def test_derived_features_look_into_lists_and_maps():
    class Visits:
        shops = CountBy("merchant")
        spent = LastN("amount", n=3)
        top = TopK("merchant", k=2)
        groceries = derived(col("shops_1h").map.get("grocery"))
        typical = derived(col("spent_1h").list.mean())
        best = derived(col("top_1h").list.first().struct.field("value"))

    made = view(entity=Entity("card", key="card_id"), source=transactions, windows=["1h"])(Visits)
    types = [made.outputs[name] for name in ("groceries", "typical", "best", "shops_1h", "spent_1h", "top_1h")]
    assert types == ["int", "float", "str", "map[int]", "list[float]", "counts[str]"]
    Visits.list_itself = derived(col("spent_1h").list.reverse())
    with pytest.raises(DefinitionError, match=r"'list_itself': .* gives List\(Float64\); cast it to a number"):
        view(entity=Entity("card", key="card_id"), source=transactions, windows=["1h"])(Visits)
