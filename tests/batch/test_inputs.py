from __future__ import annotations

import polars as pl
import pytest

from batch.inputs import inputs_at
from featurestore import DataError, col, derived
from featurestore.featureset import FeatureSet
from tests.batch.stored import INPUTS, ShopPayments, ShopRequests, history, requests

EVENTS = history(60)
ASKED = EVENTS["requests"]


def test_some_of_the_events_have_the_inputs_that_all_have_in_their_own_order():
    every = inputs_at(INPUTS, EVENTS, ASKED)
    assert every.columns == list(INPUTS.names)
    some = [41, 3, 17]
    assert inputs_at(INPUTS, EVENTS, ASKED[some]).equals(every[some])
    assert inputs_at(INPUTS, EVENTS, ASKED.clear()).schema == every.schema


def test_before_an_event_its_own_topic_has_one_event_less():
    features = FeatureSet(requests, [ShopRequests.n_1m])
    after, before = (inputs_at(features, EVENTS, ASKED, before=each)["shop_requests:n_1m"] for each in (False, True))
    assert set(after - before) == {1.0}


def test_each_view_is_named_as_its_turn_comes():
    said = []
    inputs_at(INPUTS, EVENTS, ASKED, progress=said.append)
    assert said == ["card_payments", "shop_payments", "shop_requests"]


@pytest.mark.parametrize(
    ("events", "asked", "message"),
    [
        ({"requests": ASKED}, ASKED, "view 'card_payments' needs the events of 'payments'; give them"),
        (EVENTS, ASKED.drop("hour"), "events of 'requests' have no column 'hour'"),
        (EVENTS, ASKED.with_columns(pl.col("_offset") + 1_000), "60 of the events asked for are not among those"),
    ],
)
def test_what_cannot_be_computed_is_told(events, asked, message):
    with pytest.raises(DataError, match=message):
        inputs_at(INPUTS, events, asked)


def test_without_events_of_a_view_its_features_are_those_of_nothing():
    features = FeatureSet(requests, [ShopPayments.n_30s, derived(col("shop_payments:n_30s") + 1, name="more")])
    found = inputs_at(features, EVENTS | {"payments": EVENTS["payments"].clear()}, ASKED)
    assert set(found.rows()) == {(0.0, 1.0)}
