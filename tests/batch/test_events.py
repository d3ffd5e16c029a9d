"""Events come out of archives and of users' files alike, or say why not."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from batch.archive import archived_partitions
from batch.events import chunks, columns_of, is_log, logs_of, reach, read_events
from batch.parts import Parts
from featurestore import ConfigError, DataError
from featurestore.offline import GridWriter
from tests.batch import stored
from tests.batch.stored import PARTITIONS, CardPayments, ShopPayments, payments


@pytest.fixture
def events(tmp_path):
    made = stored.history()
    stored._archive(tmp_path, made)
    return made["payments"]


@pytest.mark.parametrize("where", ["events", "events/payments"])
def test_the_archive_is_read_in_order_of_partition_and_offset(tmp_path, events, where):
    found = read_events(payments, tmp_path / where)
    assert found.equals(events.select(found.columns))
    assert archived_partitions(tmp_path / "events") == {"payments": PARTITIONS, "requests": PARTITIONS}


def test_only_the_columns_that_are_wanted_are_kept(tmp_path, events):
    assert columns_of(ShopPayments) == ["shop", "card", "amount"]
    assert columns_of(CardPayments) == ["card", "amount", "doubled"]
    found = read_events(payments, tmp_path / "events", ["card", "doubled"])
    assert found.columns == ["card", "doubled", "_partition", "_offset", "_timestamp", "_time"]
    assert found["doubled"].equals(events["doubled"])


def test_a_users_files_are_one_partition_in_order_of_their_rows(tmp_path):
    frame = pl.DataFrame({"id": list("abcd"), "shop": "x", "card": "c", "amount": 1.0, "at": [4, 3, 2, 1], "more": 0})
    frame[:3].write_parquet(tmp_path / "2024-01.parquet")
    frame[3:].write_parquet(tmp_path / "2024-02.parquet")
    found = read_events(payments, tmp_path)
    assert found["id"].to_list() == list("abcd")
    assert found["_offset"].to_list() == [0, 1, 2, 3]
    assert not is_log(tmp_path, payments)
    assert read_events(payments, tmp_path / "2024-02.parquet")["_offset"].to_list() == [0]


def test_repeats_in_a_users_files_are_left_out_whichever_columns_are_wanted(tmp_path):
    told = replace(payments, id="id", dedup=2)
    frame = pl.DataFrame({"id": ["a", "b", "a", "a", None, None, "b"], "shop": "x", "card": "c", "amount": 1.0})
    frame = frame.with_columns(at=pl.int_range(pl.len()))
    frame[:2].write_parquet(tmp_path / "2024-01.parquet")
    frame[2:].write_parquet(tmp_path / "2024-02.parquet")
    assert read_events(told, tmp_path)["_offset"].to_list() == [0, 1, 4, 5, 6]
    found = read_events(told, tmp_path, ["card", "amount"])
    assert found["_offset"].to_list() == [0, 1, 4, 5, 6]
    assert found.columns == ["card", "amount", "_partition", "_offset", "_timestamp", "_time"]


def test_an_archive_reaches_beyond_its_last_event(tmp_path, events):
    folder = tmp_path / "events" / "payments"
    last = events.filter(pl.col("_partition") == 1)["_offset"].max()
    assert reach(folder, payments)[1] == last + 1
    writer = GridWriter(folder, 1, stored.GRID)
    writer.append(events[:0].select("_offset").to_arrow(), last + 5, start=last + 1)
    writer.flush()
    assert reach(folder, payments)[1] == last + 5
    assert is_log(folder, payments)
    events.write_parquet(tmp_path / "one.parquet")
    assert reach(tmp_path / "one.parquet", payments)[1] == last + 1


def test_what_cannot_be_read_says_why(tmp_path, events):
    with pytest.raises(ConfigError, match="no Parquet files of 'payments'"):
        read_events(payments, tmp_path / "nowhere")
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_events(payments, tmp_path / "bad.parquet")
    events.drop("shop").write_parquet(tmp_path / "less.parquet")
    with pytest.raises(DataError, match="no column 'shop'"):
        read_events(payments, tmp_path / "less.parquet")
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("a", "b"):
        events.write_parquet(twice / f"{name}.parquet")
    with pytest.raises(DataError, match="offset 0 of partition 0 twice"):
        read_events(payments, twice)


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_chunks_cover_every_event_once_in_the_same_order(size):
    events = stored.history(disorder=20_000)["payments"]
    whole = pl.concat(c.frames["payments"] for c in chunks(logs_of("payments", events), {"payments": 0}, 10_000))
    cut = list(chunks(logs_of("payments", events), {"payments": 0}, size))
    assert pl.concat(c.frames["payments"] for c in cut).drop("_step").equals(whole.drop("_step"))
    for partition in range(PARTITIONS):
        spans = [c.spans["payments", partition] for c in cut if ("payments", partition) in c.spans]
        assert [start for start, _ in spans[1:]] == [end for _, end in spans[:-1]]


def test_parts_of_the_same_job_are_kept_and_those_of_another_are_not_touched(tmp_path):
    out, frame = tmp_path / "out", pl.DataFrame({"a": [1]})
    Parts(out, {"x": 1}, resume=True).write(0, frame)
    again = Parts(out, {"x": 1}, resume=True)
    assert (again.has(0), again.has(1)) == (True, False)
    assert pl.read_parquet(out / "part-*.parquet").equals(frame)
    with pytest.raises(ConfigError, match="not empty"):
        Parts(out, {"x": 1}, resume=False)
    with pytest.raises(ConfigError, match="another job"):
        Parts(out, {"x": 2}, resume=True)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        Parts(tmp_path, {"x": 1}, resume=True)
