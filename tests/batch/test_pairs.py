from __future__ import annotations

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from batch.backfill import after_events
from batch.events import read_events
from batch.pairs import pairs_of
from tests.streams.meetings import features, history, meetings, pairs
from tests.streams.shop import logs as frames_of


def sides(definitions, records):
    """The event frames of both logs."""
    frames, _ = frames_of(definitions, records)
    return [pl.concat([frames[source.name, p] for p in (0, 1)]) for source in definitions.joins[0].sides]


@settings(max_examples=15)
@given(st.integers(0, 1_000), st.integers(1, 120))
def test_pairs_of_history_are_those_that_an_oracle_finds(seed, count):
    records = history("h", count, seed=seed)
    definitions = meetings("h")
    found = pairs_of(definitions.joins[0], *sides(definitions, records))
    assert {row["pair_id"]: row for row in found.drop("_partition", "_offset").to_dicts()} == pairs(records)[0]


def test_a_backfill_reads_them_as_a_log(tmp_path):
    definitions, records = meetings("h"), history("h", 300)
    (joined,) = definitions.joins
    pairs_of(joined, *sides(definitions, records)).write_parquet(tmp_path / "pairs.parquet")
    view = definitions.views["meetingsh"]
    rows = after_events(view, read_events(joined, tmp_path / "pairs.parquet"))
    expected = pairs(records)[0]
    assert len(rows) == len(expected)
    for card, count in rows.group_by("card").agg(pl.col("n_lifetime").max()).iter_rows():
        assert count == features(expected, card, 0)["n_lifetime"]
