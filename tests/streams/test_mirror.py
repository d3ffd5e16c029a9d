from __future__ import annotations

import asyncio
import random

import duckdb
import numpy as np
import polars as pl
import pytest

from batch.backfill import after_events
from batch.compare import differing
from featurestore import CountBy, Entity, Last, LastN, SumBy, TopK, view
from featurestore.errors import GapError
from streams.messages import feature_messages, prediction_messages
from streams.mirror import Mirror, archive_table, decode_features, predictions_decoder
from streams.transport import Batch
from tests.featurestore.helpers import SOURCE, event, frame_of, numbered
from tests.streams.test_messages import Visits, features, prediction
from tests.streams.working import table

FEED, GRID = "features.visits", 16


class Feed:
    """A partition of a feed: messages, and batches of them from any offset on."""

    def __init__(self, topic=FEED):
        self.topic, self.values = topic, []

    def features(self, start, end, *, every=1):
        """Add what a worker sends of source offsets [start, end), of which it folded one in `every`."""
        frame = features([(0, offset) for offset in range(start, end) if offset % every == 0])
        self.values += [m.value for m in feature_messages(Visits, frame, {("visits", 0): (start, end)})]

    def predictions(self, start, end):
        for offset in range(start, end):
            frame = prediction(_partition=0, _offset=offset, id=str(offset))
            self.values += [m.value for m in prediction_messages("risk", frame)]

    def batch(self, start, end):
        values = self.values[start:end]
        offsets = np.arange(start, start + len(values))
        return Batch(self.topic, 0, start, start + len(values), offsets, offsets, [None] * len(values), values)


def mirror_of(folder):
    feeds = {FEED: ("features/visits", decode_features, GRID)}
    feeds["predictions.risk"] = ("predictions/risk", predictions_decoder(["visits:n_1m", "amount"]), GRID)
    return Mirror(folder, feeds)


async def follow(feed, folder, cuts, *, flush=True):
    """Mirror a feed from where the files say, in batches cut there; without a flush, as one who was killed."""
    mirror = mirror_of(folder)
    start = mirror.position(feed.topic, 0) or 0
    mirror.begin(feed.topic, 0, start)
    for cut in [*sorted(cut for cut in cuts if start < cut < len(feed.values)), len(feed.values)]:
        if cut > start:
            await mirror.take(feed.batch(start, cut))
            start = cut
    assert mirror.done(feed.topic, 0) == start
    if flush:
        await mirror.flush()


def test_a_feed_comes_out_whole_however_often_its_reader_was_killed(tmp_path):
    rng = random.Random(1)
    for attempt in range(20):
        feed, upto, folder = Feed(), 0, tmp_path / str(attempt)
        while upto < 200:
            start = max(0, upto - rng.choice([0, 0, 0, 30]))  # a worker that died sends some of it again
            end = max(upto, start + rng.randrange(40))
            feed.features(start, end, every=3)
            upto = end
            cuts = [rng.randrange(len(feed.values) + 1) for _ in range(3)]
            asyncio.run(follow(feed, folder, cuts, flush=rng.random() < 0.3))
        asyncio.run(follow(feed, folder, []))
        assert table(folder / "features/visits")["_offset"].to_list() == [o for o in range(upto) if o % 3 == 0]


def test_predictions_that_were_sent_again_are_there_once(tmp_path):
    feed = Feed("predictions.risk")
    feed.predictions(0, 30)
    feed.predictions(20, 50)
    for cuts in ([], [25, 33], range(60)):
        asyncio.run(follow(feed, tmp_path / str(len(cuts)), cuts))
        found = table(tmp_path / str(len(cuts)) / "predictions/risk")
        assert found["_offset"].to_list() == list(range(50))
        assert found["id"].to_list() == [str(offset) for offset in range(50)]


def test_the_position_in_the_feed_covers_only_what_is_on_disk(tmp_path):
    feed = Feed()
    for start in range(0, 60, 10):
        feed.features(start, start + 10)
    asyncio.run(follow(feed, tmp_path, [3], flush=False))
    kept = mirror_of(tmp_path)
    position = kept.position(FEED, 0)
    on_disk = table(tmp_path / "features/visits")["_offset"].max() + 1
    assert position is None or position * 10 <= on_disk


def test_a_missing_message_stops_the_mirror(tmp_path):
    feed = Feed()
    feed.features(0, 10)
    feed.features(20, 30)
    with pytest.raises(GapError, match="goes on at source offset 20, the mirror ends at 10"):
        asyncio.run(follow(feed, tmp_path, []))


def test_a_feed_may_begin_in_the_middle(tmp_path):
    feed = Feed()
    feed.features(1_000, 1_020)
    asyncio.run(follow(feed, tmp_path, []))
    assert table(tmp_path / "features/visits")["_offset"].to_list() == list(range(1_000, 1_020))


def test_what_comes_from_before_a_rebalance_is_left_out(tmp_path):
    feed = Feed()
    for start in range(0, 40, 10):
        feed.features(start, start + 10)

    async def main():
        mirror = mirror_of(tmp_path)
        await mirror.take(feed.batch(2, 3))  # of a partition that is not ours
        mirror.begin(FEED, 0, 0)
        await mirror.take(feed.batch(0, 2))
        await mirror.take(feed.batch(0, 2))
        with pytest.raises(GapError, match=r"expected offset 2, Kafka gave 3"):
            await mirror.take(feed.batch(3, 4))
        await mirror.forget()
        await mirror.take(feed.batch(2, 4))
        assert mirror.done(FEED, 0) == 0
        assert mirror.position(FEED, 0) in {None, 2}

    asyncio.run(main())


def test_a_span_without_rows_moves_the_mirror_on(tmp_path):
    feed = Feed()
    feed.features(0, 5)
    feed.values += [m.value for m in feature_messages(Visits, pl.DataFrame(), {("visits", 0): (5, 40)})]
    feed.features(40, 45)
    for cuts in ([], [1], [1, 2]):
        asyncio.run(follow(feed, tmp_path / str(len(cuts)), cuts))
        found = table(tmp_path / str(len(cuts)) / "features/visits")
        assert found["_offset"].to_list() == [*range(5), *range(40, 45)]
        assert found["n_1m"].null_count() == 0


def test_any_engine_reads_the_files(tmp_path):
    feed = Feed()
    feed.features(0, 100)
    asyncio.run(follow(feed, tmp_path, [1]))
    files = f"{tmp_path}/features/visits/**/*.parquet"
    query = f"select count(*), max(n_1m), min(partition) from read_parquet('{files}', hive_partitioning=true)"
    assert duckdb.sql(query).fetchall() == [(100, 99, 0)]


@view(entity=Entity("key", key="k"), source=SOURCE, windows=["1m"])
class Listed:
    by = CountBy("s")
    sums = SumBy("x", by="s")
    top = TopK("x", k=2)
    texts = LastN("s", n=2)
    text = Last("s")


def test_lists_and_maps_go_through_the_feed_into_the_files_unchanged(tmp_path):
    rows = enumerate(["shop", "", None, "\u20ac" * 300] * 10)
    events = numbered(event(1_000 * n, s=s, x=[0.5, -0.0, None, 1e300][n % 3]) for n, s in rows)
    frame = after_events(Listed, frame_of(SOURCE, events))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streams.messages.MESSAGE_BYTES", 5_000)
        values = [m.value for m in feature_messages(Listed, frame, {("events", 0): (0, len(events))})]
    assert len(values) > 3
    feed = Feed()
    feed.values = values
    asyncio.run(follow(feed, tmp_path, [1, 2]))
    found = table(tmp_path / "features/visits")
    for name in Listed.outputs:
        assert not differing(found[name], frame[name]).any(), name


def test_the_archive_has_the_sources_columns_and_the_records_place():
    frame = features([(0, 1)]).with_columns(pl.lit(5).alias("_timestamp"), pl.lit(b"x").alias("_raw"))
    assert archive_table(frame, ["who"]).column_names == ["_partition", "_offset", "_timestamp", "who"]
