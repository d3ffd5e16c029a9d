"""The events on which the stream is measured are what the page of numbers says."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from benchmarks.work import KEY, START, VARIANTS, arrow_records, frames
from benchmarks.work_views import card_spend, payments
from featurestore.decoding import decode_json
from featurestore.formats import decode
from onceflow.produce import encode


def made(variant="cents", count=20_000):
    return pl.concat(frames(count, variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_event_is_taken_by_the_definitions_and_the_same_each_time(variant):
    frame = made(variant)
    texts = encode(frame)
    decoded = decode_json(payments.types, [KEY], "ts", texts)
    assert not decoded.rejects
    assert decoded.frame["amount"].equals(frame["amount"])
    assert decoded.frame["merchant"].equals(frame["merchant"])
    assert texts == encode(made(variant))
    assert 90 <= np.mean([len(text) for text in texts]) <= 130


def test_records_of_arrow_hold_the_same_events_each_partition_in_its_order():
    frame = made(count=9_000)
    records = list(arrow_records(frame, 4))
    decoded = decode(card_spend("arrow").source, [value for _, value, _ in records])
    assert not decoded.rejects
    assert decoded.frame.sort("ts").equals(frame)
    for partition in range(4):
        times = [time for place, _, time in records if place == partition]
        assert times == sorted(times)


def test_event_time_rises_by_10_ms_across_slices():
    times = made(count=300_000)["ts"].to_numpy()
    assert times[0] == START
    assert set(np.diff(times)) == {10}


def test_cards_are_skewed_and_a_hot_one_has_nine_tenths():
    shares = [made(variant)[KEY].value_counts()["count"].max() / 20_000 for variant in ("cents", "hot")]
    assert shares[0] == pytest.approx(0.18, abs=0.05)
    assert shares[1] == pytest.approx(0.92, abs=0.02)


def test_amounts_are_in_cents_or_need_all_digits():
    cents, digits = (json.loads(encode(made(variant))[0])["amount"] for variant in ("cents", "digits"))
    assert round(cents, 2) == cents
    assert round(digits, 8) != digits


def test_of_many_cards_each_fourth_event_has_the_next():
    numbers = np.array([int(card.removeprefix("card-")) for card in made("many", 8_000)[KEY]])
    assert list(numbers[::4]) == list(range(2_000))
    assert np.mean(numbers[1::4] == 0) > 0.1
