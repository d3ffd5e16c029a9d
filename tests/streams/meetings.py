"""Payments and logins of cards, joined, for the tests of joins: definitions, events, and the pairs that they make."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict

from featurestore import Count, CountBy, Entity, Last, Source, Sum, col, view
from onceflow.modules import Definitions
from tests.streams.shop import MINUTE, SECOND, START, Log, hash_of, send

PARTITIONS = 2
WITHIN, LATENESS = 2 * MINUTE, {"payments": MINUTE, "logins": 30 * SECOND}


def meetings(tag, *, within="2m"):
    """The definitions. Topics and views carry the tag: tests share a broker."""
    shared = {"event_time": "at", "key": "card"}
    payments = Source(
        f"payments-{tag}",
        schema={"card": str, "amount": int, "at": "timestamp[ms]"},
        lateness="1m",
        derive={"large": col("amount") > 50},
        **shared,
    )
    logins = Source(
        f"logins-{tag}", schema={"card": str, "device": str, "at": "timestamp[ms]"}, lateness="30s", **shared
    )
    both = payments.join(logins, on="card", within=within)
    made = {"n": Count(), "paid": Sum("amount"), "large": Count(where=col("large")), "on": CountBy("device")}
    made["last"] = Last("amount")
    paired = view(entity=Entity("card", key="card"), source=both, windows=["lifetime", "5m"])
    simple = view(entity=Entity("card", key="card"), source=payments, windows=["lifetime"])
    views = [paired(type(f"Meetings{tag}", (), made)), simple(type(f"Payments{tag}", (), {"n": Count()}))]
    return Definitions({each.name: each for each in (payments, logins, both)}, {v.name: v for v in views}, {})


def history(tag, count, *, seed=0, partitions=PARTITIONS, shuffled=True):
    """Records in the order in which they are produced; where they are `shuffled` some are late."""
    rng, out, time = random.Random(seed), [], START
    for number in range(count):
        time += rng.choice([0, SECOND, SECOND, 5 * SECOND])
        late = rng.choice([0, 0, 0, 20 * SECOND, 3 * MINUTE if rng.random() < 0.1 else 0]) * shuffled
        card = f"c{rng.randrange(20)}"
        event = {"card": card, "at": time - late}
        kind = rng.choice(["payments", "logins"])
        event |= {"amount": rng.randrange(100)} if kind == "payments" else {"device": f"d{rng.randrange(3)}"}
        place = hash_of(card) % partitions
        out.append(Log(f"{kind}-{tag}", place, time, json.dumps(event).encode(), event))
        if number % 50 == 20:
            out.append(Log(f"{kind}-{tag}", place, time, b"{", None, "malformed"))
    return out


def pairs(records):
    """All pairs that records make, by id, and by topic how many events are late: by looking at every two events."""
    newest, ends, sides = defaultdict(int), defaultdict(int), {"payments": [], "logins": []}
    late = defaultdict(int)
    for record in records:
        kind, log = record.topic.partition("-")[0], (record.topic, record.partition)
        if record.event is not None:
            if record.event["at"] >= newest[log] - LATENESS[kind]:
                sides[kind].append((record.partition, ends[log], record.event))
            else:
                late[record.topic] += 1
            newest[log] = max(newest[log], record.event["at"])
        ends[log] += 1
    out = {}
    for partition, left, payment in sides["payments"]:
        for other, right, login in sides["logins"]:
            apart = abs(payment["at"] - login["at"])
            if (partition, payment["card"]) == (other, login["card"]) and apart <= WITHIN:
                both = {"at_right": login["at"], "device": login["device"], "large": payment["amount"] > 50}
                pair = {"pair_id": f"{partition}:{left}:{right}", "pair_at": max(payment["at"], login["at"])}
                out[pair["pair_id"]] = pair | payment | both
    return out, late


def produce(kafka, tag, records, *, partitions=PARTITIONS):
    """Send records to their partitions."""
    send(kafka, [f"{kind}-{tag}" for kind in LATENESS], records, partitions=partitions)


def features(pairs, card, as_of):
    """What the view of pairs has of a card, by looking at all of them."""
    mine = [each for each in pairs.values() if each["card"] == card]
    hop = 5 * SECOND
    recent = [each for each in mine if each["pair_at"] // hop >= (as_of - 5 * MINUTE + 1) // hop]
    out = {}
    for window, some in (("lifetime", mine), ("5m", recent)):
        out[f"n_{window}"], out[f"paid_{window}"] = len(some), sum(each["amount"] for each in some)
        out[f"large_{window}"] = sum(each["large"] for each in some)
        out[f"on_{window}"] = dict(Counter(each["device"] for each in some))
    return out
