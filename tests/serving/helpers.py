"""Views with states in a store, and what the engine itself says of them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from featurestore import Count, Entity, Last, Max, Mean, Source, Std, Sum, col, derived, view
from featurestore.memory import MemoryStore
from featurestore.stores import Commit
from learner.store import ModelStore
from serving.api import build_application
from serving.reader import FeatureReader
from tests.featurestore.helpers import PARTITIONS, do, event, numbered, state_of

NOW = 1_700_000_000_000
MINUTE, HOUR = 60_000, 3_600_000
NO_MODELS = ModelStore(Path("nowhere"))
TOPICS = {"events": PARTITIONS, "keyed": PARTITIONS}
SCHEMA = {"k": str, "g": int, "i": int, "x": float, "b": bool, "s": str, "at": "timestamp[ms]"}

events = Source("events", schema=SCHEMA, event_time="at", key="k", lateness="10s")
keyed = Source("keyed", schema=SCHEMA, event_time="at", key="k", lateness="10s", partitioner="murmur2")


@view(entity=Entity("card", key="k"), source=events, windows=["5m", "1h"])
class Cards:
    """What a card has done lately."""

    payments = Count()
    spend = Sum("x")
    typical = Mean("x")
    spread = Std("x")
    share = derived(col("spend_5m") / col("spend_1h"))


@view(entity=Entity("group", key="g"), source=events)
class Groups:
    biggest = Max("i", windows=["lifetime"])
    latest = Last("at", windows=["lifetime"])
    flag = Last("b", windows=["lifetime"])


@view(entity=Entity("card", key="k"), source=keyed, windows=["5m"])
class Keyed:
    payments = Count()


@view(entity=Entity("pair", key=("k", "g")), source=events, windows=["1h"])
class Pairs:
    payments = Count()


VIEWS = {made.name: made for made in (Cards, Groups, Keyed, Pairs)}

HISTORY = numbered(
    [
        event(NOW - 40 * MINUTE, partition=0, k="a", g=1, i=3, x=0.1, b=True),
        event(NOW - 4 * MINUTE, partition=0, k="a", g=1, i=5, x=0.2),
        event(NOW - 3 * MINUTE, partition=0, k="b", g=2, i=9_007_199_254_740_993, x=1e300),
        event(NOW - 2 * MINUTE, partition=2, k="a", g=1, i=-4, x=0.30000000000000004, b=False),
        event(NOW - 1, partition=2, k="c", g=3),
        event(NOW - 3 * HOUR, partition=1, k="old", g=4, x=1.0),
    ]
)


class WatchedStore(MemoryStore):
    """A store that remembers what it was asked for, a list a round trip."""

    def __init__(self):
        super().__init__(lambda: NOW)
        self.asked = []

    async def read_many(self, requests):
        self.asked.append(list(requests))
        return await super().read_many(requests)


def folded(made, history=HISTORY):
    """The view's state after the history."""
    state = state_of(made)
    do(state, history)
    return state


async def put(store, state):
    """Store all of a state."""
    made = state.plan.view
    for partition in range(PARTITIONS):
        await store.claim(made.key, made.source.name, partition, "me")
        blobs, clock = state.blobs(partition), state.clock(partition)
        if clock is not None:
            place = (made.key, made.source.name, partition)
            commit = Commit(*place, "me", 0, 9, clock, list(blobs), list(blobs.values()), first=True)
            await store.commit([commit])


async def filled(store, *views):
    for made in views or VIEWS.values():
        await put(store, folded(made))
    return store


def reader_of(store, views=(), **options):
    return FeatureReader(list(views or VIEWS.values()), store, TOPICS, lambda: NOW, **options)


def application_of(store, services=None, models=NO_MODELS, **options):
    reader = reader_of(store, **options)
    return build_application(VIEWS, services or {}, store=store, reader=reader, models=models, now=lambda: NOW)


def first_of(answer):
    """What an answer says of the first entity, by name."""
    values = [vector["values"][0] for vector in answer["results"]]
    return dict(zip(answer["metadata"]["feature_names"], values, strict=True))


@contextlib.asynccontextmanager
async def closing(store):
    try:
        yield store
    finally:
        await store.close()
