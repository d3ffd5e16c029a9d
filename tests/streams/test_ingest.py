from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from featurestore import Source, col
from featurestore.erasures import Erasure
from streams import ingest
from streams.transport import Batch

NOW = 1_700_000_000_000
SOURCE = Source(
    "payments",
    schema={"card": str, "shop": str, "n": int, "at": "timestamp[ms]"},
    event_time="at",
    key="card",
    max_lead="1m",
    derive={"small": col("n").cast(pl.Int8), "place": col("shop") + "!"},
)


def payment(**changes):
    return json.dumps({"card": "c1", "shop": "s", "n": 1, "at": NOW, **changes}).encode()


def batch_of(values, *, first=10, step=1, timestamps=NOW):
    offsets = first + step * np.arange(len(values))
    stamps = np.broadcast_to(np.int64(timestamps), len(values))
    return Batch("payments", 3, first, int(first + step * len(values)), offsets, stamps, [None] * len(values), values)


def ingested(source, batch, *options, **more):
    [got] = ingest.ingested(source, [batch], *options, **more)
    return got


def refusals(got):
    return [(refused.offset, refused.error) for refused in got.rejects]


def test_good_events_keep_their_place_their_bytes_and_their_derived_columns():
    values = [payment(n=i) for i in range(3)]
    got = ingested(SOURCE, batch_of(values, step=5, timestamps=[7, 8, 9]), NOW)
    assert got.rejects == []
    frame = got.events
    assert frame["_partition"].to_list() == [3, 3, 3]
    assert frame["_offset"].to_list() == [10, 15, 20]
    assert frame["_timestamp"].to_list() == [7, 8, 9]
    assert frame["_time"].to_list() == [NOW] * 3
    assert frame["_raw"].to_list() == values
    assert (frame["small"].to_list(), frame["place"].to_list()) == ([0, 1, 2], ["s!"] * 3)


def test_bad_records_are_set_apart_and_the_others_go_on():
    values = [payment(), b"{", None, payment(n="1"), payment(card="c2")]
    got = ingested(SOURCE, batch_of(values), NOW)
    assert got.events["card"].to_list() == ["c1", "c2"]
    assert got.events["_offset"].to_list() == [10, 14]
    assert refusals(got) == [(11, "malformed"), (12, "tombstone"), (13, "type")]


def test_batches_that_are_decoded_together_give_what_each_gives_alone():
    several = [[payment(n=1), b"{", payment(n=2)], [], [None], [b"[", payment(card="c2")], [payment(), payment(n=300)]]
    batches = [replace(batch_of(values, first=10 * i), partition=i) for i, values in enumerate(several)]
    together = ingest.ingested(SOURCE, batches, NOW)
    alone = [ingested(SOURCE, batch, NOW) for batch in batches]
    assert [got.rejects for got in together] == [got.rejects for got in alone]
    assert [len(got.rejects) for got in together] == [1, 0, 1, 1, 1]
    for one, other in zip(together, alone, strict=True):
        assert one.events.equals(other.events)
        assert one.events.schema == other.events.schema


def test_the_headers_of_batches_that_are_decoded_together_stay_with_their_records():
    told = replace(SOURCE, headers={"n": "x-n"}, derive={})
    numbers = [[b"1", b"many", b"2"], [], [b"3"], [b"few"]]
    batches = [
        replace(batch_of([payment()] * len(some)), partition=i, headers=[(("x-n", n), ("x", b"")) for n in some])
        for i, some in enumerate(numbers)
    ]
    found = ingest.ingested(told, batches, NOW)
    assert [got.events["n"].to_list() for got in found] == [[1, 2], [], [3], []]
    assert [refusals(got) for got in found] == [[(11, "type")], [], [], [(10, "type")]]
    assert [got.message.headers["header.x-n"] for each in found for got in each.rejects] == [b"many", b"few"]


def test_a_refused_record_goes_out_with_its_bytes_and_says_why_and_whence():
    [refused] = ingested(SOURCE, batch_of([b'{"card": 1}']), NOW).rejects
    message = refused.message
    assert (message.topic, message.partition, message.value) == ("payments.dlq", 3, b'{"card": 1}')
    assert message.headers["detail"]
    rest = {name: value for name, value in message.headers.items() if name != "detail"}
    assert rest == {"error": b"type", "size": b"11", "topic": b"payments", "partition": b"3", "offset": b"10"}


def test_no_more_than_four_kilobytes_of_a_refused_record_are_kept():
    value = payment(shop="x" * 70_000)
    [refused] = ingested(SOURCE, batch_of([value]), NOW).rejects
    assert refused.error == "oversized"
    assert refused.message.value == value[:4096]


@pytest.mark.parametrize(("now", "timestamps"), [(NOW, 0), (None, NOW)])
def test_the_future_begins_after_the_lead_by_the_clock_or_in_a_replay_by_kafkas_timestamp(now, timestamps):
    values = [payment(at=NOW + 60_000), payment(at=NOW + 60_001), payment(at=0)]
    got = ingested(SOURCE, batch_of(values, timestamps=timestamps), now)
    assert got.events["_offset"].to_list() == [10, 12]
    assert refusals(got) == [(11, "future")]


def test_where_events_have_ids_the_future_does_not_come_nearer_while_a_record_waits():
    """Or an event would be refused at first and accepted, with its id, when it is read again."""
    told, values = replace(SOURCE, id="shop"), [payment(at=NOW + 60_000), payment(at=NOW + 60_001)]
    for now in (NOW, NOW + 60_000, None):
        assert refusals(ingested(told, batch_of(values), now)) == [(11, "future")]
    assert refusals(ingested(told, batch_of(values, timestamps=NOW + 60_000), NOW)) == [(11, "future")]


def test_a_text_that_names_an_entity_may_be_only_so_long_in_bytes_also_a_derived_one():
    values = [payment(shop="é" * 127), payment(shop="é" * 128), payment(shop="é" * 129), payment(shop=None)]
    got = ingested(SOURCE, batch_of(values), NOW, ["shop"])
    assert got.events["_offset"].to_list() == [10, 11, 13]
    assert refusals(got) == [(12, "oversized")]
    got = ingested(SOURCE, batch_of(values), NOW, ["place", "shop"])
    assert got.events["_offset"].to_list() == [10, 13]
    assert refusals(got) == [(11, "oversized"), (12, "oversized")]


def test_an_event_that_a_derived_column_cannot_take_is_refused_alone():
    values = [payment(n=n) for n in (1, 300, 2, 3, -129, 4)]
    got = ingested(SOURCE, batch_of(values), NOW)
    assert got.events["small"].to_list() == [1, 2, 3, 4]
    assert got.events["_raw"].to_list() == [values[i] for i in (0, 2, 3, 5)]
    assert refusals(got) == [(11, "derive"), (14, "derive")]


def test_an_event_with_two_faults_is_refused_once():
    got = ingested(SOURCE, batch_of([payment(shop="s" * 300, at=NOW + 60_001)]), NOW, ["shop", "place"])
    assert refusals(got) == [(10, "future")]
    assert len(got.events) == 0


@pytest.mark.parametrize("values", [[], [b"{"], [payment(n=1_000)]])
def test_a_batch_without_good_events_gives_a_frame_with_all_columns(values):
    got = ingested(SOURCE, batch_of(values), NOW, ["place"])
    assert len(got.events) == 0
    assert got.events.columns == ingested(SOURCE, batch_of([payment()]), NOW).events.columns
    assert len(got.rejects) == len(values)


def erasing(values, keys, headers):
    """A batch of values, keys and, where there is no value, headers."""
    batch = batch_of(values)
    return replace(batch, keys=keys, tombstones={row: each for row, each in enumerate(headers) if values[row] is None})


def test_records_that_erase_an_entity_are_told_from_tombstones_and_from_malformed_ones():
    forget = ("onceflow-forget", b"shop")
    values = [payment(), None, None, None, None]
    keys = [b"c1", b"ss", b"ss", b"i1", None]
    headers = [(forget,), (("other", b"x"), forget), (), (forget,), (("onceflow-forget", b"who"),)]
    got = ingested(SOURCE, erasing(values, keys, headers), NOW, erasable={"shop": ("shop",)})
    assert got.erasures == [Erasure("payments", 3, 11, "shop", b"ss")]
    assert refusals(got) == [(12, "tombstone"), (13, "erasure"), (14, "erasure")]
    details = [refused.message.headers["detail"].decode() for refused in got.rejects[1:]]
    assert details[0] == "the key is not one of 'shop', whose columns are str"
    assert details[1] == "no view of 'payments' is about an entity 'who'; there are 'shop'"
    own = [refused.message.headers.get("header.onceflow-forget") for refused in got.rejects]
    assert own == [None, b"shop", b"who"]
    assert [refused.message.key for refused in got.rejects] == keys[2:]
    assert len(got.events) == 1


@pytest.mark.parametrize("form", ["msgpack", "csv", "arrow", "avro"])
def test_an_erasure_is_one_in_any_format(form):
    source = Source("payments", schema={"card": str, "at": "timestamp[ms]"}, event_time="at", key="card", format=form)
    batch = erasing([None], [b"sc1"], [(("onceflow-forget", b"card"),)])
    got = ingested(source, batch, NOW, erasable={"card": ("card",)})
    assert got.erasures == [Erasure("payments", 3, 10 << source.row_bits, "card", b"sc1")]
    assert refusals(got) == []
