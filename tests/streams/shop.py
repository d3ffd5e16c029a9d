"""A small shop for the tests of the worker: definitions, events and bad records, all told apart by a tag.

Orders are predicted on: will they come back? Views are keyed by the topic's key and by another column, the user.
"""

from __future__ import annotations

import json
import random
from typing import NamedTuple

import polars as pl
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from river import linear_model, preprocessing

from featurestore import Count, Entity, Last, Max, Mean, Source, Std, Sum, col, derived, one_hot, view
from featurestore.expressions import TYPES
from featurestore.frames import META, with_derived
from featurestore.keys import encode_entity
from learner import Label, Service
from onceflow.modules import Definitions
from onceflow.produce import ensure_topics

TAG = "SHOP_TAG"
START = 1_700_000_000_000
SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000
PARTITIONS = 2


def shop(tag, *, batch=32, budget=None):
    """The definitions. Topics, views and services carry the tag: tests share a broker."""
    clicks = Source(
        f"clicks-{tag}",
        schema={"user": str, "page": str, "ms": float, "at": "timestamp[ms]"},
        event_time="at",
        key="user",
        lateness="1m",
        derive={"shelf": col("page").str.slice(0, 300)},
    )
    orders = Source(
        f"orders-{tag}",
        schema={"order_id": str, "user": str, "shop": str, "amount": float, "items": int, "at": "timestamp[ms]"},
        event_time="at",
        key="order_id",
        lateness="1m",
        id="order_id",
        dedup=40,
    )
    returns = Source(
        f"returns-{tag}",
        schema={"order_id": str, "returned": bool, "at": "timestamp[ms]"},
        event_time="at",
        key="order_id",
    )
    user, shelf, seller = Entity("user", key="user"), Entity("shelf", key="shelf"), Entity("shop", key="shop")

    def made(name, members, **options):
        return view(**options)(type(f"{name}{tag}", (), members))

    seen = {"n": Count(), "ms": Mean("ms"), "spread": Std("ms"), "long": Count(where=col("ms") > 500)}
    by_user = made("Clicks", seen, entity=user, source=clicks, windows=["30s", "10m"])
    by_shelf = made("Shelves", {"n": Count(), "last": Last("ms")}, entity=shelf, source=clicks, windows=["1m"])
    bought = {"n": Count(), "spent": Sum("amount"), "items": Sum("items"), "most": Max("amount")}
    bought["mean"] = derived(col("spent_5m") / col("n_5m"))
    by_shop = made("Shops", bought, entity=seller, source=orders, windows=["5m", "lifetime"])
    own = made("Users", {"n": Count(), "spent": Sum("amount")}, entity=user, source=orders, windows=["1h"])
    label = Label(returns, id="order_id", value=col("returned"), wait="20m")
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    rich = Service(
        f"returned-{tag}",
        on=orders,
        id="order_id",
        features=[
            by_user,
            by_shop,
            own.n_1h,
            "amount",
            derived(col("amount") / col(f"{by_shop.name}:spent_5m"), name="share"),
            derived(col(f"{by_user.name}:n_10m") / col(f"{own.name}:n_1h"), name="clicks_an_order"),
            derived(one_hot(col("items"), [1, 2]), name="items_are"),
        ],
        label=label,
        model=model,
        batch=batch,
        budget=budget,
    )
    plain = Service(
        f"plain-{tag}",
        on=orders,
        id="order_id",
        features=["amount", "items"],
        label=label,
        model=model,
        batch=batch,
        budget=budget,
    )
    views = {each.name: each for each in (by_user, by_shelf, by_shop, own)}
    sources = {each.name: each for each in (clicks, orders, returns)}
    return Definitions(sources, views, {each.name: each for each in (rich, plain)})


class Log(NamedTuple):
    """One record to produce: `event` is what it says, None where it is no good event; `error` says why."""

    topic: str
    partition: int
    time: int
    value: bytes | None
    event: dict | None
    error: str | None = None
    key: bytes | None = None
    headers: dict[str, bytes] | None = None


def history(tag, orders, *, seed=0, partitions=PARTITIONS, shuffled=True):
    """Good records in the order in which they are produced: about nine times as many as there are orders."""
    rng = random.Random(seed)
    out, time = [], START
    for number in range(orders):
        time += rng.choice([0, 0, SECOND, SECOND, 5 * SECOND])
        jitter = rng.choice([0, 0, 0, 2 * SECOND, 40 * SECOND]) if shuffled else 0
        user, place = f"u{rng.randrange(50)}", number % partitions
        for _ in range(rng.randrange(15)):
            shopper = f"u{rng.randrange(50)}"
            click = {"user": shopper, "page": f"p{rng.randrange(9)}", "ms": rng.choice([None, rng.random() * 1_000])}
            late = rng.choice([0, 0, 0, 5 * SECOND]) if shuffled else 0
            out.append(_record(f"clicks-{tag}", hash_of(shopper) % partitions, {**click, "at": time - late}))
        order = {"order_id": f"o{number}", "user": user, "shop": f"s{rng.randrange(7)}"}
        order |= {"amount": rng.random() * 100, "items": rng.choice([None, 1, 2, 3]), "at": time - jitter}
        out.append(_record(f"orders-{tag}", place, order))
        if rng.random() < 0.9 and number > 20:
            told = {"order_id": f"o{number - rng.randrange(1, 20)}", "returned": rng.random() < 0.3}
            told["at"] = time - (rng.choice([0, 0, 15 * SECOND]) if shuffled else 0)
            out.append(_record(f"returns-{tag}", place, told))
    return out


def with_repeats(records, *, seed=0):
    """The records and, here and there, an order that was sent again, with another amount."""
    rng, orders, out = random.Random(seed), {}, []
    for record in records:
        out.append(record)
        if record.topic.startswith("orders"):
            own = orders.setdefault(record.partition, [])
            own.append(record)
            if rng.random() < 0.2:
                again = rng.choice(own[-20:])
                value = json.dumps(again.event | {"amount": 1_000.0}).encode()
                out.append(again._replace(time=record.time, value=value, event=None, error="repeat"))
    return out


def erasures(tag, topics, time, entity, key, *, partitions=PARTITIONS):
    """What erases an entity, encoded, on all partitions of topics."""
    names = [f"{topic}-{tag}" for topic in topics]
    headers = {"onceflow-forget": entity}
    return [Log(name, p, time, None, None, None, key, headers) for name in names for p in range(partitions)]


ERASED = [
    (["clicks", "orders"], "user", ("u7",)),
    (["clicks"], "shelf", ("p3",)),
    (["orders"], "shop", ("s2",)),
    (["clicks", "orders"], "user", ("u8",)),
    (["clicks", "orders"], "user", ("nobody",)),
]


def with_erasures(tag, records, seed=0):
    """The records with erasures spread over them, one of them given twice."""
    rng, out = random.Random(seed), list(records)
    for topics, entity, key in [*ERASED, ERASED[0]]:
        for record in erasures(tag, topics, 0, entity, encode_entity(key)):
            at = rng.randrange(len(out) // 3, 2 * len(out) // 3)
            out.insert(at, record._replace(time=out[at].time))
    return out


def hash_of(text):
    """A number that is the same in every process."""
    return sum(text.encode())


def _record(topic, partition, event):
    return Log(topic, partition, event["at"], json.dumps(event).encode(), event)


def bad_records(tag, time):
    """A bad record of every kind, for the end of a history at `time`, and good ones that they depend on."""
    order = {"order_id": "x1", "user": "u1", "shop": "s1", "amount": 1.0, "items": 1, "at": time}
    click = {"user": "u1", "page": "p1", "ms": 1.0, "at": time}

    def orders(value, error, partition=0):
        return Log(f"orders-{tag}", partition, time, value, None, error)

    def text(**changes):
        return json.dumps({**order, **changes}).encode()

    huge = {**order, "shop": "huge", "items": 2**62}
    return [
        orders(b'{"order_id": "x1", ', "malformed"),
        orders(b"", "malformed", 1),
        orders(b'{"order_id": "\xff"}', "encoding"),
        orders(b"[1]", "type"),
        orders(text(amount="much"), "type", 1),
        orders(text(at="2024-01-01"), "type"),
        orders(text(order_id=None), "null"),
        orders(b'{"user": "u1"}', "missing", 1),
        orders(text(items=2**63), "range"),
        orders(text(user="u" * 300), "oversized"),
        orders(text(shop="s" * 70_000), "oversized", 1),
        orders(None, "tombstone"),
        orders(b"[" * 40 + b"]" * 40, "depth"),
        Log(f"orders-{tag}", 0, time - 10 * MINUTE, text(), None, "future"),
        Log(f"clicks-{tag}", 1, time, json.dumps({**click, "page": "é" * 200}).encode(), None, "oversized"),
        _record(f"orders-{tag}", 1, {**huge, "order_id": "h1"}),
        _record(f"orders-{tag}", 1, {**huge, "order_id": "h2"})._replace(error="overflow"),
        _record(f"clicks-{tag}", 0, {**click, "at": time - HOUR})._replace(error="late"),
        _record(f"clicks-{tag}", 0, {**click, "page": "e\u0000{}:\n"}),
        _record(f"orders-{tag}", 0, {**order, "shop": None, "user": None, "order_id": "x2"}),
    ]


def produce(kafka, tag, records, *, partitions=PARTITIONS):
    """Send records of the shop to their partitions, with the time of the event as Kafka's."""
    send(kafka, [f"{name}-{tag}" for name in ("clicks", "orders", "returns")], records, partitions=partitions)


def send(kafka, topics, records, *, partitions=PARTITIONS):
    """Make the topics and send records to their partitions, with the time of the event as Kafka's."""
    # The records are old: a broker that keeps only a week would delete them under the worker.
    made = [NewTopic(name, partitions, 1, config={"retention.ms": "-1"}) for name in topics]
    AdminClient({"bootstrap.servers": kafka}).create_topics(made)
    ensure_topics(kafka, dict.fromkeys(topics, partitions))
    options = {"enable.idempotence": True, "linger.ms": 5, "log_level": 0}  # a retry must not change the order
    producer = Producer({"bootstrap.servers": kafka, "queue.buffering.max.messages": 1_000_000, **options})
    for record in records:
        place = {"partition": record.partition, "timestamp": record.time}
        producer.produce(record.topic, record.value, record.key, headers=record.headers, **place)
        producer.poll(0)
    assert producer.flush(30) == 0


def logs(definitions, records, *, partitions=PARTITIONS):
    """The good events of the records as an event frame a partition, as the worker should see them."""
    rows = {(topic, p): [] for topic in definitions.sources for p in range(partitions)}
    offsets = dict.fromkeys(rows, 0)
    for record in records:
        at = (record.topic, record.partition)
        if record.event is not None:
            meta = {"_partition": at[1], "_offset": offsets[at], "_timestamp": record.time, "_time": record.event["at"]}
            rows[at].append(record.event | meta)
        offsets[at] += 1
    out = {}
    for (topic, p), events in rows.items():
        source = definitions.sources[topic]
        kinds = {name: TYPES[kind] for name, kind in source.schema.items()}
        out[topic, p] = with_derived(source, pl.DataFrame(events, schema={**kinds, **META}))
    return out, offsets
