from __future__ import annotations

import polars as pl
import pytest

from featurestore import (
    Count,
    DataError,
    DefinitionError,
    Entity,
    Last,
    Source,
    Sum,
    col,
    cross,
    derived,
    feature_hash,
    impute,
    one_hot,
    view,
)
from featurestore.featureset import FeatureSet

orders = Source(
    "orders",
    schema={"order": str, "card": str, "shop": str, "amount": float, "items": int, "gift": bool, "at": "timestamp[ms]"},
    event_time="at",
    key="order",
    derive={"price": col("amount") / col("items"), "dear": col("price") > 10},
)
refunds = Source("refunds", schema={"shop": str, "sum": float, "at": "timestamp[ms]"}, event_time="at", key="shop")


@view(entity=Entity("card", key="card"), source=orders, windows=["1h"])
class Cards:
    n = Count()
    spend = Sum("amount")
    mean = derived(col("spend_1h") / col("n_1h"))


@view(entity=Entity("shop", key="shop"), source=refunds, windows=["1d"])
class Shops:
    refunded = Sum("sum")
    latest = Last("at")


@view(
    entity=Entity("till", key="till"), source=Source("t", schema={"till": int, "at": int}, event_time="at", key="till")
)
class Tills:
    n = Count(windows=["1h"])


RATIO = derived(col("amount") / col("cards:spend_1h"), name="ratio")
EVERYTHING = [
    Cards,
    Shops.refunded_1d,
    "amount",
    "dear",
    RATIO,
    derived(one_hot(col("shop"), ["s"]), name="shop_is"),
    derived(col("ratio") * col("shops:refunded_1d"), name="risk"),
    derived(col("price") * 2, name="twice"),
]


def events(**given):
    row = {"order": "o", "card": "c", "shop": "s", "amount": 6.0, "items": 2, "gift": True, "at": 1}
    row |= {"price": 3.0, "dear": False} | given
    return pl.DataFrame([row], schema_overrides={"amount": pl.Float64, "price": pl.Float64})


def found(spend=12.0, refunded=4.0):
    cards = pl.DataFrame({"n_1h": [3], "spend_1h": [spend], "mean": [4.0], "_effective": [1]})
    return {Cards: cards, Shops: pl.DataFrame({"refunded_1d": [refunded], "latest_1d": [7], "_effective": [2]})}


def test_inputs_have_full_names_in_the_order_given():
    made = FeatureSet(orders, EVERYTHING)
    assert made.names == (
        "cards:n_1h",
        "cards:spend_1h",
        "cards:mean",
        "shops:refunded_1d",
        "amount",
        "dear",
        "ratio",
        "shop_is_s",
        "shop_is_other",
        "risk",
        "twice",
    )
    assert made.views == (Cards, Shops)
    assert made.columns == ("amount", "dear")
    assert {name: kind for name, (_, kind) in made.derived.items()} == {
        "ratio": "float",
        "shop_is_s": "bool",
        "shop_is_other": "bool",
        "risk": "float",
        "twice": "float",
    }


def test_derived_features_are_traced_to_what_comes_with_a_request_and_to_windows():
    made = FeatureSet(orders, EVERYTHING)
    assert made.origins("risk") == {"amount", "cards:spend_1h", "shops:refunded_1d"}
    assert made.requested == ("shop", "amount", "items")
    assert made.windowless == ("amount", "dear", "shop_is_s", "shop_is_other", "twice")
    assert FeatureSet(orders, [Cards, "amount"]).requested == ()


def test_inputs_are_floats_and_values_have_their_own_types():
    made = FeatureSet(orders, EVERYTHING)
    assert made.inputs(events(), found()).row(0, named=True) == dict(
        zip(made.names, (3.0, 12.0, 4.0, 4.0, 6.0, 0.0, 0.5, 1.0, 0.0, 2.0, 6.0), strict=True)
    )
    assert set(made.inputs(events(), found()).dtypes) == {pl.Float64}
    values = made.values(events(), found()).row(0, named=True)
    assert (values["cards:n_1h"], values["shop_is_s"], values["dear"]) == (3, True, False)
    assert made.inputs(events().clear(), {each: frame.clear() for each, frame in found().items()}).shape == (0, 11)


def test_a_derived_feature_without_a_value_is_null_and_a_division_by_zero_infinite():
    made = FeatureSet(orders, [Cards, Shops.refunded_1d, RATIO])
    assert made.inputs(events(amount=0.0), found(spend=0.0))["ratio"].item() is None
    assert made.inputs(events(amount=None), found())["ratio"].item() is None
    assert made.inputs(events(), found(spend=0.0))["ratio"].item() == float("inf")


def test_views_that_only_derived_features_see_are_no_inputs():
    age = derived(col("at") - col("shops:latest_1d"), name="age")  # of a timestamp, which is no input itself
    made = FeatureSet(orders, [age], reads=[Shops])
    assert (made.names, made.views) == (("age",), (Shops,))
    assert made.seen(Shops) == ["latest_1d"]
    assert made.inputs(events(), {Shops: found()[Shops]})["age"].to_list() == [-6.0]


def test_events_that_lack_a_column_are_told_which():
    made = FeatureSet(orders, [Cards, RATIO])
    with pytest.raises(DataError, match="events of 'orders' have no column 'amount', which is an input, or a derived"):
        made.inputs(events().drop("amount"), found())
    assert made.inputs(events().drop("items", "gift"), found())["ratio"].item() == 0.5


def named(expression, name="made"):
    return derived(expression, name=name)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            [Cards, derived(col("amount"))],
            r"^derived feature '': give it a name of its own, .* as in derived\(..., name=",
        ),
        ([Cards, named(col("amount"), "amount")], "'amount': give it a name of its own.* 'orders' has order, card"),
        ([Cards, named(col("amount"), "cards:n_1h")], "'cards:n_1h': give it a name"),
        ([Cards, named(col("amount"), "probability")], "'probability': .* a prediction id, prediction, probability"),
        ([Cards, RATIO, RATIO], "'ratio': give it a name of its own"),
        ([RATIO, Shops.refunded_1d], "'ratio': view 'cards' is not among its views; add it to features, or to reads"),
        ([Cards, named(col("amuont"))], "'made': there is no column 'amuont'; did you mean 'amount'"),
        ([Cards, named(col("cards:spent_1h"))], "no column 'cards:spent_1h'; did you mean 'cards:spend_1h'"),
        ([Cards, named(col("later") + 1), named(col("amount"), "later")], "no column 'later'"),
        ([Cards, named(col("amount").mean())], "more than its own row"),
        ([Cards, named(col("amount").map_elements(abs, return_dtype=pl.Float64))], "calls Python"),
        ([Cards, named(col("shop") + 1.5)], "'made': the expression .* does not work"),
        (
            [Cards, named(cross(col("card"), col("shop")))],
            r"'made' is a str and a model takes numbers; hash it, .*one_hot",
        ),
        ([Cards, named(5)], "'made': 5 is no expression"),
        ([Cards, named(pl.lit(1.0))], "'made' is the same for every event"),
        ([Cards, named(impute(col("amount"), 0), "items")], "'items': give it a name of its own"),
        ([Tills], "view 'tills' is looked up by 'till', which 'orders' does not have"),
        ([Shops], "'shops:latest_1d' is a timestamp.* one by one"),
        ([Cards, Cards.n_1h], "cards:n_1h is there more than once"),
        ([3.5], "3.5 is no feature; give a view"),
    ],
)
def test_a_set_that_cannot_work_says_why(features, message):
    with pytest.raises(DefinitionError, match=message):
        FeatureSet(orders, features)


def test_views_are_checked_though_only_read():
    with pytest.raises(DefinitionError, match="looked up by 'till'"):
        FeatureSet(orders, [Cards], reads=[Tills])
    with pytest.raises(DefinitionError, match="reads is a list of views, and 'cards' is none"):
        FeatureSet(orders, [Cards], reads=["cards"])
    twin = view(entity=Entity("card", key="card"), source=orders, windows=["1h"])(type("Cards", (), {"n": Count()}))
    with pytest.raises(DefinitionError, match="two of its views have one name"):
        FeatureSet(orders, [Cards], reads=[twin])


def test_operations_serve_over_views_and_events_together():
    place = derived(feature_hash(cross(col("shop"), col("card")), 16), name="place")
    level = derived(impute(col("amount"), col("cards:mean"), 0.0), name="level")
    made = FeatureSet(orders, [place, level], reads=[Cards])
    assert made.names == ("place", "level", "level_missing")
    frame = made.inputs(events(amount=None), {Cards: found()[Cards]})
    assert frame.row(0)[1:] == (4.0, 1.0)
    assert 0 <= frame["place"].item() < 16
