"""A service's inputs: the same in the stream, over HTTP and from history, and what plain Python makes of the past."""

from __future__ import annotations

import asyncio
import json
import math

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import linear_model, preprocessing

from batch.events import chunks, logs_of
from batch.inputs import inputs_at
from featurestore import (
    Count,
    Entity,
    Last,
    Mean,
    Source,
    Std,
    Sum,
    col,
    cross,
    derived,
    feature_hash,
    impute,
    one_hot,
    oracle,
    standard_scale,
    target_encode,
    view,
)
from featurestore.expressions import TYPES
from featurestore.flow import Flow
from featurestore.frames import checked_events
from featurestore.memory import MemoryStore
from learner import Label, Service
from serving.api import build_application
from serving.predictor import model_rows, reads_of
from serving.reader import FeatureReader
from tests.batch.stored import commits
from tests.serving.helpers import NO_MODELS

SECOND = 1_000
PARTITIONS = 2
TOPICS = {"payments": PARTITIONS, "chargebacks": PARTITIONS}
LATER = 65 * SECOND

payments = Source(
    "payments",
    schema={"id": str, "card": str, "shop": str, "amount": float, "at": "timestamp[ms]"},
    event_time="at",
    key="card",
    derive={"all": pl.lit(1)},
)
chargebacks = Source(
    "chargebacks",
    schema={"id": str, "shop": str, "fraud": bool, "at": "timestamp[ms]"},
    event_time="at",
    key="id",
    derive={"all": pl.lit(1)},
)


@view(entity=Entity("card", key="card"), source=payments, windows=["20s"])
class Cards:
    spend = Sum("amount")
    past = Mean("amount", windows=["lifetime"])
    spread = Std("amount", windows=["lifetime"])
    last = Last("amount", windows=["lifetime"])


@view(entity=Entity("shop", key="shop"), source=chargebacks, windows=["30s"])
class Shops:
    frauds = Sum("fraud")
    told = Count("fraud")


@view(entity=Entity("all", key="all"), source=chargebacks, windows=["lifetime"])
class Overall:
    rate = Mean("fraud")


VIEWS = [Cards, Shops, Overall]
FEATURES = [
    Cards.spend_20s,
    derived(col("amount") / col("cards:spend_20s"), name="ratio"),
    derived(standard_scale(col("amount"), col("cards:past_lifetime"), col("cards:spread_lifetime")), name="scaled"),
    derived(
        target_encode(col("shops:frauds_30s"), col("shops:told_30s"), prior=col("overall:rate_lifetime"), weight=4),
        name="risk",
    ),
    derived(impute(col("amount"), col("cards:last_lifetime"), 1), name="paid"),
    derived(one_hot(col("shop"), ["x", "y"]), name="shop_is"),
    derived(feature_hash(cross(col("card"), col("shop")), 8), name="place"),
    derived(col("paid") * col("risk"), name="at_stake"),
    "amount",
]


def service(*, before):
    label = Label(chargebacks, id="id", value=col("fraud"), wait="1h")
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    options = {"on": payments, "id": "id", "label": label, "model": model, "before": before}
    return Service("risky", features=FEATURES, reads=[Shops, Overall], **options)


SERVICES = {before: service(before=before) for before in (False, True)}


def log(source, rows):
    """An event frame of (second, partition, columns), each partition in order of time."""
    events, counts = [], [0] * PARTITIONS
    for i, (second, partition, columns) in enumerate(sorted(rows, key=lambda row: row[0])):
        place = {
            "_partition": partition,
            "_offset": counts[partition],
            "id": f"{source.name}{i}",
            "at": second * SECOND,
        }
        events.append({**columns, **place})
        counts[partition] += 1
    kinds = {name: TYPES[kind] for name, kind in source.schema.items()}
    return checked_events(source, pl.DataFrame(events, schema={**kinds, "_partition": pl.Int32, "_offset": pl.Int64}))


def events_of(source, **columns):
    row = st.tuples(st.integers(0, 60), st.integers(0, PARTITIONS - 1), st.fixed_dictionaries(columns))
    return st.lists(row, max_size=12).map(lambda rows: log(source, rows))


SHOPS = st.sampled_from([None, "x", "y", "z"])
PAID = events_of(
    payments, card=st.sampled_from("ab"), shop=SHOPS, amount=st.none() | st.sampled_from([0.0, 0.1, 7.25, 1e6])
)
TOLD = events_of(chargebacks, shop=SHOPS, fraud=st.none() | st.booleans())


async def streamed(made, logs, size):
    """What a worker computes, chunk by chunk: the model's rows, in order of place, and the store that it leaves."""
    store, flow = MemoryStore(), Flow(VIEWS, list(reads_of(made).values()), TOPICS)
    for each in VIEWS:
        for partition in range(PARTITIONS):
            await store.claim(each.key, each.source.name, partition, "me")
            flow.begin(each.key, (each.source.name, partition), None)
    parts = {place: frame for topic, frame in logs.items() for place, frame in logs_of(topic, frame).items()}
    rows = []
    for chunk in chunks(parts, {"chargebacks": 0, "payments": 1}, size):
        flow.lookups(chunk, {("payments", partition): 0 for partition in range(PARTITIONS)})
        outputs = flow.run(chunk, emit=False)
        await store.commit(commits(flow, chunk.spans))
        if "payments" in chunk.frames:
            reads = {each: outputs[each.key].reads[read] for each, read in reads_of(made).items()}
            rows.append(model_rows(made, chunk.frames["payments"], reads))
    return pl.concat(rows).sort("_partition", "_offset") if rows else None, store


def bits(frame):
    return [*map(repr, frame.rows())]


@settings(max_examples=40, deadline=None)
@given(PAID, TOLD, st.booleans(), st.integers(1, 20))
def test_the_stream_and_history_compute_the_same_bits(paid, told, before, size):
    made, logs = SERVICES[before], {"payments": paid, "chargebacks": told}
    rows, _ = asyncio.run(streamed(made, logs, size))
    offline = inputs_at(made.feature_set, logs, paid, before=before)
    assert offline.columns == list(made.inputs)
    assert (rows is None) == (not len(paid))
    assert rows is None or bits(rows.select(made.inputs)) == bits(offline)
    backwards = inputs_at(made.feature_set, logs, paid.reverse(), before=before)
    assert bits(backwards.reverse()) == bits(offline)


def plainly(event, paid, told, *, before):
    """The inputs at an event in plain Python, from nothing but what had happened by then."""
    now, place = event["_time"], (event["_time"], event["_partition"], event["_offset"])
    mine = [
        e for e in paid if (p := (e["_time"], e["_partition"], e["_offset"])) < place or (p == place and not before)
    ]
    known = [e for e in told if e["_time"] <= now]
    card = oracle.features(Cards, mine, (event["card"],), now)[1]
    shop = oracle.features(Shops, known, (event["shop"],), now)[1]
    overall = oracle.features(Overall, known, (1,), now)[1]
    if event["shop"] is None:
        shop = {"frauds_30s": 0, "told_30s": 0}
    amount, spend, rate, spread = event["amount"], card["spend_20s"], overall["rate_lifetime"], card["spread_lifetime"]
    ratio = None if amount is None or (amount == spend == 0) else amount / spend if spend else math.inf
    scaled = (amount - card["past_lifetime"]) / spread if amount is not None and spread else None
    risk = None if rate is None else (shop["frauds_30s"] + 4 * rate) / (shop["told_30s"] + 4)
    paid_last = next(value for value in (amount, card["last_lifetime"], 1.0) if value is not None)
    text = f"{event['card']}|{event['shop']}"
    place = sum(pow(256 * i + byte, 5, 2**31 - 1) for i, byte in enumerate(text.encode(), 1)) % 8
    return {
        "cards:spend_20s": spend,
        "ratio": ratio,
        "scaled": scaled,
        "risk": risk,
        "paid": paid_last,
        "paid_missing": amount is None,
        "shop_is_x": event["shop"] == "x",
        "shop_is_y": event["shop"] == "y",
        "shop_is_other": event["shop"] == "z",
        "place": None if event["shop"] is None else place,
        "at_stake": None if risk is None else paid_last * risk,
        "amount": amount,
    }


@settings(max_examples=60, deadline=None)
@given(PAID, TOLD, st.booleans())
def test_inputs_are_what_plain_python_makes_of_the_past_and_never_of_the_future(paid, told, before):
    made = SERVICES[before]
    found = inputs_at(made.feature_set, {"payments": paid, "chargebacks": told}, paid, before=before)
    for event, row in zip(paid.to_dicts(), found.to_dicts(), strict=True):
        wanted = plainly(event, paid.to_dicts(), told.to_dicts(), before=before)
        for name, value in wanted.items():
            assert row[name] == (value if value is None else pytest.approx(float(value), rel=1e-9, abs=1e-9)), name


@settings(max_examples=30, deadline=None)
@given(PAID, TOLD, st.integers(0, 60))
def test_what_is_to_come_changes_no_input(paid, told, second):
    made, now = SERVICES[True], pl.col("_time") <= second * SECOND
    whole = inputs_at(made.feature_set, {"payments": paid, "chargebacks": told}, paid.filter(now), before=True)
    past = {"payments": paid.filter(now), "chargebacks": told.filter(now)}
    assert bits(whole) == bits(inputs_at(made.feature_set, past, paid.filter(now), before=True))


@settings(max_examples=15, deadline=None)
@given(PAID, TOLD, st.sampled_from("abc"), st.sampled_from("xyz"), st.sampled_from([None, 0.1, 3.5]))
def test_over_http_inputs_are_those_of_history_right_before_the_event(paid, told, card, shop, amount):
    made, logs = SERVICES[True], {"payments": paid, "chargebacks": told}
    event = {"id": "new", "card": card, "shop": shop, "amount": amount, "at": LATER}
    asked = checked_events(payments, pl.DataFrame([event], schema={n: TYPES[k] for n, k in payments.schema.items()}))
    asked = asked.with_columns(_offset=pl.lit(1 << 40, pl.Int64))
    both = logs | {"payments": pl.concat([paid, asked]).sort("_partition", "_offset")}
    [wanted] = inputs_at(made.feature_set, both, asked, before=True).to_dicts()
    predicted, served = asyncio.run(over_http(made, logs, event))
    finite = {name: value if value is not None and math.isfinite(value) else None for name, value in wanted.items()}
    assert predicted == finite
    assert served == {name: finite[name] for name in made.inputs if name != "amount"}


async def over_http(made, logs, event):
    """The inputs as /predict and as /get-online-features give them."""
    _, store = await streamed(made, logs, 5)
    reader = FeatureReader(VIEWS, store, TOPICS, lambda: LATER)
    views, services = {each.name: each for each in VIEWS}, {made.name: made}
    server = build_application(views, services, store=store, reader=reader, models=NO_MODELS, now=lambda: LATER)
    body = {
        "feature_service": made.name,
        "entities": {"card": [event["card"]], "shop": [event["shop"]], "all": [1]},
        "request": {"amount": [event["amount"]]},
        "as_of": LATER,
        "full_feature_names": True,
    }
    predicted = await server.answer("POST", f"/predict/{made.name}", json.dumps(event).encode())
    answered = await server.answer("POST", "/get-online-features", json.dumps(body).encode())
    answer = json.loads(answered.body)
    names = [name.replace("__", ":") for name in answer["metadata"]["feature_names"]]
    # What nobody has is not found, which a model takes as the sum over nothing.
    values = [0.0 if vector["statuses"] == ["NOT_FOUND"] else vector["values"][0] for vector in answer["results"]]
    return json.loads(predicted.body)["features"], dict(zip(names[3:], values[3:], strict=True))
