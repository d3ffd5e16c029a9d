"""Verification finds nothing in what is right, and one changed bit in what is not."""

from __future__ import annotations

import asyncio

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from batch.compare import differing
from batch.verify import verify
from featurestore.memory import MemoryStore
from featurestore.offline import read_table
from featurestore.stores import Commit
from tests.batch import stored
from tests.batch.stored import PARTITIONS, SERVICE, VIEWS, ShopPayments

TOPICS = {"payments": PARTITIONS, "requests": PARTITIONS}


@pytest.fixture
def done(tmp_path):
    """A folder and a store, after a run over a history in order of time."""
    return tmp_path, asyncio.run(stored.run(tmp_path, stored.history()))


def verified(folder, store, **options):
    options = {"merged": True, **options}
    return asyncio.run(verify(VIEWS, [SERVICE], store, folder, TOPICS, **options))


def change(folder, name, alter):
    """Write a folder of rows again, altered."""
    rows = pl.DataFrame(read_table(folder / name))
    for file in (folder / name).rglob("*.parquet"):
        file.unlink()
    stored.write(folder / name, alter(rows))


def nudged(rows, column, row):
    """The rows with the last bit of one float flipped."""
    values = rows[column].to_numpy().copy()
    values.view(np.int64)[row] ^= 1
    return rows.with_columns(pl.Series(column, values))


def test_what_a_replay_left_is_all_right(done):
    report = verified(*done)
    assert report.good
    assert (report.examples, report.missing, report.notes) == ([], [], [])
    assert report.parity_compared > 20
    assert report.mirror_compared == 3 * 400
    assert report.logged_features_compared == 400 * len(SERVICE.features.names)
    assert (report.parity_mismatched, report.mirror_mismatched, report.logged_features_mismatched) == (0, 0, 0)


def test_states_and_mirror_are_right_for_a_history_out_of_order_too(tmp_path):
    store = asyncio.run(stored.run(tmp_path, stored.history(disorder=40_000)))
    report = verified(tmp_path, store)
    assert (report.parity_mismatched, report.mirror_mismatched) == (0, 0)
    assert report.mirror_compared > 1_000


async def _shelves(store, alter):
    """A copy of the store, each view's states and position on each partition altered."""
    out = MemoryStore()
    for made in VIEWS:
        for partition, position in enumerate(await store.positions(made.key, made.source.name, PARTITIONS)):
            states = {e: b async for e, b in store.scan(made.key, made.source.name, partition)}
            states, upto, clock = alter(made, partition, states, position.next, position.clock)
            place = (made.key, made.source.name, partition)
            await out.claim(*place, "me")
            await out.commit([Commit(*place, "me", 0, upto, clock, list(states), list(states.values()), first=True)])
    return out


def altered(store, alter):
    return asyncio.run(_shelves(store, alter))


def only_first(alter):
    """The alteration of one view's first partition alone."""

    def chosen(made, partition, states, upto, clock):
        return alter(states, upto, clock) if made is ShopPayments and partition == 0 else (states, upto, clock)

    return chosen


@pytest.mark.parametrize(
    ("alter", "text"),
    [
        (lambda s, upto, clock: ({**s, b"sx": s[b"sx"][:-1] + b"?"}, upto, clock), "state of sx differs from a replay"),
        (lambda s, upto, clock: ({**s, b"snew": s[b"sx"]}, upto, clock), "state of snew is not in a replay"),
        (lambda s, upto, clock: ({e: b for e, b in s.items() if e != b"sx"}, upto, clock), "state of sx is missing"),
        (lambda s, upto, clock: (s, upto, clock + 1), "its clock is"),
    ],
)
def test_a_changed_state_is_found(done, alter, text):
    folder, store = done
    report = verified(folder, altered(store, only_first(alter)))
    assert report.parity_mismatched == 1
    assert not report.good
    assert text in report.examples[0]
    assert "shop_payments on payments:0" in report.examples[0]


def test_a_store_ahead_of_the_archive_is_named(done):
    folder, store = done
    report = verified(folder, altered(store, only_first(lambda s, upto, clock: (s, upto + 5, clock))))
    assert not report.good
    assert report.parity_mismatched == 0
    assert "shop_payments on payments:0: the store stands at offset" in report.missing[0]


def test_an_empty_store_is_not_taken_for_a_right_one(done):
    report = verified(done[0], MemoryStore())
    assert not report.good
    assert "nothing is stored, though events up to" in report.missing[0]


@pytest.mark.parametrize("made", VIEWS, ids=lambda made: made.name)
def test_a_changed_row_of_the_mirror_is_found(done, made):
    folder, store = done
    column = {"card_payments": "spent_20s", "shop_payments": "mean_30s"}.get(made.name)
    bump = pl.when(pl.int_range(pl.len()) == 17).then(pl.col("n_1m") + 1).otherwise("n_1m") if not column else None
    alter = (lambda rows: nudged(rows, column, 17)) if column else (lambda rows: rows.with_columns(bump.alias("n_1m")))
    change(folder, f"features/{made.name}", alter)
    report = verified(folder, store)
    assert report.mirror_mismatched == 1
    assert not report.good
    assert f"features/{made.name} 0:17: {column or 'n_1m'} is" in report.examples[0]


def changed_list(rows):
    """The rows with the last bit of one float of one list flipped."""
    lists = rows["recent_30s"].to_list()
    lists[17][-1] = float(np.nextafter(lists[17][-1], 2))
    return rows.with_columns(pl.Series("recent_30s", lists))


def longer_list(rows):
    lists = rows["regulars_30s"].to_list()
    lists[17].append({"value": "c1", "count": 1})
    return rows.with_columns(pl.Series("regulars_30s", lists))


def changed_map(rows):
    entries = pl.select(rows["cards_30s"].map.entries()).to_series().to_list()
    entries[17][0]["value"] += 1
    made = pl.Series(entries, dtype=pl.List(pl.Struct({"key": pl.String, "value": pl.Int64}))).to_arrow()
    keys, values = made.flatten().field("key"), made.flatten().field("value")
    return rows.with_columns(
        pl.Series("cards_30s", pa.MapArray.from_arrays(made.offsets.cast(pa.int32()), keys, values))
    )


@pytest.mark.parametrize(
    ("column", "alter"),
    [("recent_30s", changed_list), ("regulars_30s", longer_list), ("cards_30s", changed_map)],
)
def test_a_changed_value_of_a_list_or_map_is_found(done, column, alter):
    folder, store = done
    change(folder, "features/shop_payments", alter)
    report = verified(folder, store)
    assert report.mirror_mismatched == 1
    assert f"features/shop_payments 0:17: {column} is" in report.examples[0]


@pytest.mark.parametrize(
    ("alter", "count"),
    [
        (lambda rows: rows.filter(pl.col("_offset") != 20), 2),
        (lambda rows: rows.filter(pl.col("_offset") < 150), None),
        (lambda rows: rows.drop("n_20s"), 400),
    ],
)
def test_missing_rows_and_columns_of_the_mirror_are_found(done, alter, count):
    folder, store = done
    change(folder, "features/card_payments", alter)
    found = verified(folder, store).mirror_mismatched
    assert found == count if count else found > 50


def test_a_mirror_that_is_gone_is_missed(done):
    folder, store = done
    (folder / "features" / "card_payments").rename(folder / "elsewhere")
    assert verified(folder, store).mirror_mismatched == 400
    assert verified(folder, store, mirrored=False).good


@pytest.mark.parametrize("column", SERVICE.features.names)
def test_a_changed_logged_feature_is_found(done, column):
    folder, store = done
    change(folder, "predictions/risky", lambda rows: nudged(rows, column, 33))
    report = verified(folder, store)
    assert report.logged_features_mismatched == 1
    assert not report.good
    assert f"predictions/risky 0:33: {column} is" in report.examples[0]


def test_a_prediction_on_no_event_is_found(done):
    folder, store = done
    change(folder, "events/requests", lambda rows: rows.filter(pl.col("_offset") != 5))
    assert verified(folder, store).logged_features_mismatched >= 2


def test_in_a_live_run_the_mirror_may_lag_and_what_depends_on_interleaving_is_skipped(done):
    folder, store = done
    change(folder, "features/card_payments", lambda rows: rows.filter(pl.col("_offset") < 150))
    report = verified(folder, store, merged=False)
    assert report.good
    assert 200 < report.mirror_compared < 400
    assert report.skipped == 800
    assert "mirrored rows of shop_payments" in report.notes[0]


def test_a_live_runs_states_may_have_expired(done):
    folder, store = done
    without = only_first(lambda s, upto, clock: ({e: b for e, b in s.items() if e != b"sx"}, upto, clock))
    assert not verified(folder, altered(store, without), merged=False, now=0).good
    report = verified(folder, altered(store, without), merged=False, now=10_000_000)
    assert report.good
    assert any("they have expired" in note for note in report.notes)


def test_a_worker_at_work_is_told_from_a_difference(done):
    folder, store = done

    class Moving(MemoryStore):
        calls = 0

        async def positions(self, *place):
            self.calls += 1
            found = await store.positions(*place)
            return found if self.calls % 2 else [None, *found[1:]]

    assert "a worker writes to it" in verified(folder, Moving()).missing[0]


def test_differing_tells_bits_apart_that_numbers_do_not():
    left = pl.Series([0.0, 1.0, None, float("nan"), None])
    right = pl.Series([-0.0, 1.0, None, float("nan"), 0.0])
    assert differing(left, right).tolist() == [True, False, False, False, True]
    assert differing(pl.Series([1, None]), pl.Series([1, 2])).tolist() == [False, True]
    assert differing(pl.Series([1]), pl.Series([1.0])).tolist() == [True]


NAN = float("nan")
COUNTS = pl.List(pl.Struct({"value": pl.Float64, "count": pl.Int64}))
MAPS = pa.map_(pa.string(), pa.float64())


@pytest.mark.parametrize(
    ("left", "right", "wrong"),
    [
        (pl.Series([[1], [], None, [1, 2]]), pl.Series([[1], [], None, [1, 2]]), []),
        (pl.Series([[1], [], None, [1, 2]]), pl.Series([[2], [], None, [1, 2]]), [0]),
        (pl.Series([[1], [], None, [1, 2]]), pl.Series([[1], None, [], [1]]), [1, 2, 3]),
        (pl.Series([[0.0, NAN], [None, 1.0]]), pl.Series([[0.0, NAN], [None, 1.0]]), []),
        (pl.Series([[0.0, NAN], [None, 1.0]]), pl.Series([[-0.0, NAN], [0.0, 1.0]]), [0, 1]),
        (pl.Series([["a", None], ["b"]]), pl.Series([["a", ""], ["b"]]), [0]),
        (pl.Series([[], None], dtype=pl.List(pl.Int64)), pl.Series([None, []], dtype=pl.List(pl.Int64)), [0, 1]),
        (
            pl.Series([[(0.0, 2)], [(1.0, 1), (2.0, 1)]], dtype=COUNTS),
            pl.Series([[(-0.0, 2)], [(1.0, 1), (2.0, 3)]], dtype=COUNTS),
            [0, 1],
        ),
        (
            pl.Series(pa.array([[("a", 1.0)], [("a", NAN)], None, [], [("a", 1.0), ("b", None)]], MAPS)),
            pl.Series(pa.array([[("b", 1.0)], [("a", NAN)], [], [], [("a", 1.0), ("b", 0.0)]], MAPS)),
            [0, 2, 4],
        ),
        (pl.Series([[1]]), pl.Series([[1.0]]), [0]),
    ],
)
def test_differing_looks_into_lists_and_maps(left, right, wrong):
    assert np.flatnonzero(differing(left, right)).tolist() == wrong
    assert np.flatnonzero(differing(right, left)).tolist() == wrong
    assert not differing(left, left).any()
