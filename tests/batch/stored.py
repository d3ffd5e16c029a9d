"""What a worker leaves behind after a replay of a small random history: archive, states, mirror, prediction logs."""

from __future__ import annotations

import numpy as np
import polars as pl

from batch.events import chunks, logs_of
from batch.logged import Logged
from featurestore import Count, CountBy, Entity, Last, LastN, Mean, Source, Sum, SumBy, TopK, col, derived, view
from featurestore.featureset import FeatureSet
from featurestore.flow import Flow, Read
from featurestore.frames import checked_events
from featurestore.memory import MemoryStore
from featurestore.offline import GridWriter
from featurestore.stores import Commit

PARTITIONS = 2
GRID = 64
SECOND = 1_000

payments = Source(
    "payments",
    schema={"id": str, "shop": str, "card": str, "amount": float, "at": "timestamp[ms]"},
    event_time="at",
    key="card",
    lateness="5s",
    derive={"doubled": col("amount") * 2},
)
requests = Source(
    "requests",
    schema={"id": str, "shop": str, "card": str, "hour": int, "at": "timestamp[ms]"},
    event_time="at",
    key="id",
)
shop, card = Entity("shop", key="shop"), Entity("card", key="card")


@view(entity=card, source=payments, windows=["20s", "lifetime"])
class CardPayments:
    """Keyed as its topic is."""

    n = Count()
    spent = Sum("doubled")
    last = Last("amount", windows=["20s"])


@view(entity=shop, source=payments, windows=["30s"])
class ShopPayments:
    """Spread over the partitions."""

    n = Count()
    big = Count(where=col("amount") > 0.5)
    mean = Mean("amount")
    cards = CountBy("card", bound=3)
    spent = SumBy("amount", by="card", bound=3)
    recent = LastN("amount", n=3)
    regulars = TopK("card", k=2)
    share = derived(col("big_30s") / col("n_30s"))


@view(entity=shop, source=requests, windows=["1m"])
class ShopRequests:
    """Of the topic on which the service predicts."""

    n = Count()


VIEWS = [CardPayments, ShopPayments, ShopRequests]
INPUTS = FeatureSet(
    requests,
    [
        CardPayments.spent_20s,
        ShopPayments.mean_30s,
        ShopPayments.share,
        ShopRequests.n_1m,
        "hour",
        derived(col("hour") * col("card_payments:n_20s") / col("shop_payments:n_30s"), name="busy"),
    ],
)
SERVICE = Logged("risky", INPUTS)


def history(count=400, *, disorder=0, seed=3):
    """Events of both topics, as their topics hold them, by name."""
    rng = np.random.default_rng(seed)
    names = {"shop": list("xyz"), "card": [f"c{i}" for i in range(9)]}
    out = {}
    for source in (payments, requests):
        times = np.sort(rng.integers(0, 120 * SECOND, count))
        times = np.maximum(times - rng.integers(0, disorder + 1, count), 0)
        columns = {
            "id": [f"{source.name}{i}" for i in range(count)],
            **{name: rng.choice(values, count).tolist() for name, values in names.items()},
            "amount": rng.random(count),
            "hour": rng.integers(0, 24, count),
            "at": times,
        }
        frame = pl.DataFrame(columns).select(*source.schema).with_row_index("i")
        frame = frame.with_columns(
            (pl.col(source.keys[0]).rank("dense") % PARTITIONS).cast(pl.Int32).alias("_partition")
        )
        offsets = pl.int_range(pl.len()).over("_partition").alias("_offset")
        out[source.name] = checked_events(source, frame.with_columns(offsets, pl.col("at").alias("_timestamp")))
    return out


async def run(folder, events, store=None):
    """Do what a worker does, from the beginning, and return the store."""
    store = store or MemoryStore()
    _archive(folder, events)
    reads = [Read(made, "requests", made.entity.keys) for made in VIEWS]
    flow = Flow(VIEWS, reads, dict.fromkeys(events, PARTITIONS))
    for made in VIEWS:
        for partition in range(PARTITIONS):
            await store.claim(made.key, made.source.name, partition, "me")
            flow.begin(made.key, (made.source.name, partition), None)
    logs = {place: frame for topic, frame in events.items() for place, frame in logs_of(topic, frame).items()}
    rows, predictions = {made.name: [] for made in VIEWS}, []
    for chunk in chunks(logs, {"payments": 0, "requests": 1}, 37):
        flow.lookups(chunk, {("requests", partition): 0 for partition in range(PARTITIONS)})
        outputs = flow.run(chunk)
        await store.commit(commits(flow, chunk.spans))
        for made in VIEWS:
            rows[made.name].append(outputs[made.key].events)
        if "requests" in chunk.frames:
            predictions.append(_predictions(chunk.frames["requests"], outputs))
    for name, parts in rows.items():
        write(folder / "features" / name, pl.concat(part for part in parts if part.width))
    write(folder / "predictions" / "risky", pl.concat(predictions))
    return store


def commits(flow, spans, owner="me"):
    """What brings a store to the spans' ends."""
    changes = {(key, c.partition): c for key, changed in flow.changes().items() for c in changed}
    out = []
    for key, made in flow.views.items():
        for (topic, partition), (start, end) in spans.items():
            if topic == made.source.name:
                change, clock = changes.get((key, partition)), flow.states[key].clock(partition)
                states = (change.entities, change.blobs) if change else ([], [])
                out.append(Commit(key, topic, partition, owner, start, end, clock or 0, *states, first=start == 0))
    return out


def write(folder, rows):
    """Rows onto the grid, in order of offset."""
    for partition in range(PARTITIONS):
        mine = rows.filter(pl.col("_partition") == partition).sort("_offset")
        writer = GridWriter(folder, partition, GRID)
        if len(mine):
            writer.append(mine.to_arrow(), int(mine["_offset"][-1]) + 1, start=0)
        writer.flush()


def _archive(folder, events):
    for source in (payments, requests):
        frame = events[source.name]
        write(folder / "events" / source.name, frame.select("_partition", "_offset", "_timestamp", *source.schema))


def _predictions(asked, outputs):
    reads = {read.view: found for output in outputs.values() for read, found in output.reads.items()}
    inputs = INPUTS.inputs(asked, {made: reads[made] for made in VIEWS}).fill_nan(None)
    meta = asked.select("_partition", "_offset", "_time", pl.col("_time").alias("_effective"), "id")
    return meta.with_columns(prediction=pl.lit(True), probability=pl.lit(0.5)).hstack(inputs)
