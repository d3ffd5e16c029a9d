"""Parquet on the offset grid: whole, once, and byte for byte the same whatever was killed or cut."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.errors import DataError, FencedError, FormatError, GapError, StateError
from featurestore.offline import GridWriter, read_table, scan

SIZE = 10


def rows(begin, end, partition=0, step=1):
    """Rows of the offsets `begin`..`end`, every value a function of its offset; every third has text, some are null."""
    offsets = list(range(begin, end, step))
    return pa.table(
        {
            "_partition": pa.array([partition] * len(offsets), pa.int32()),
            "_offset": pa.array(offsets, pa.int64()),
            "amount": pa.array([None if o % 7 == 0 else o / 3 for o in offsets], pa.float64()),
            "name": pa.array(["" if o % 3 else f"n{o % 11}" for o in offsets], pa.string()),
        }
    )


def files(directory):
    """Content of every file that a reader can see."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*.parquet"))}


def written(directory, upto, cuts=(), partition=0):
    """Write the offsets 0..upto, cut into batches at `cuts`."""
    writer = GridWriter(directory, partition, SIZE)
    for begin, end in zip([0, *cuts], [*cuts, upto], strict=True):
        writer.append(rows(begin, end, partition), end)
    writer.flush()
    return writer


def held(directory):
    return read_table(directory)["_offset"].to_pylist()


def test_each_file_holds_the_offsets_of_its_cell(tmp_path):
    written(tmp_path, 25)
    assert {name: pq.read_table(tmp_path / name)["_offset"].to_pylist() for name in files(tmp_path)} == {
        "partition=0/000000000000.parquet": list(range(10)),
        "partition=0/000000000001.parquet": list(range(10, 20)),
        "partition=0/000000000002.parquet": list(range(20, 25)),
    }


def test_complete_cells_are_written_at_once_and_the_open_one_when_flushed(tmp_path):
    writer = GridWriter(tmp_path, 0, SIZE)
    writer.append(rows(0, 13), 13)
    assert held(tmp_path) == list(range(10))
    writer.flush()
    assert held(tmp_path) == list(range(13))


def test_a_writer_goes_on_where_the_last_one_was_killed(tmp_path):
    written(tmp_path, 13)
    GridWriter(tmp_path, 0, SIZE).append(rows(13, 17), 17)  # never flushed
    writer = GridWriter(tmp_path, 0, SIZE)
    assert (writer.next, writer.feed) == (13, None)
    writer.append(rows(11, 32), 32)
    writer.flush()
    written(tmp_path / "whole", 32)
    assert files(tmp_path / "whole") == {k: v for k, v in files(tmp_path).items() if not k.startswith("whole")}


STEPS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(-3, 15), st.sampled_from(["go on", "flush", "flush, restart"])),
    min_size=1,
    max_size=10,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_the_same_rows_give_the_same_bytes_however_they_were_cut(tmp_path, steps):
    shutil.rmtree(tmp_path)
    writer = GridWriter(tmp_path / "cut", 0, SIZE)
    for back, ahead, then in steps:
        begin = max(0, writer.next - back)
        end = max(begin, writer.next + ahead)
        writer.append(rows(begin, end), end)
        if then != "go on":
            writer.flush()
        if then == "flush, restart":
            writer = GridWriter(tmp_path / "cut", 0, SIZE)
    writer.flush()
    written(tmp_path / "whole", writer.next)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    present=st.sets(st.integers(0, 60)),
    cuts=st.lists(st.integers(0, 60), max_size=6).map(sorted),
    flushes=st.booleans(),
)
def test_offsets_that_the_source_lacks_give_the_same_bytes_too(tmp_path, present, cuts, flushes):
    shutil.rmtree(tmp_path)
    table = rows(0, 61).filter(pa.array([o in present for o in range(61)]))

    def write(directory, cuts, flushes):
        writer = GridWriter(directory, 0, SIZE)
        for begin, end in zip([0, *cuts], [*cuts, 61], strict=True):
            part = table.filter((pc.field("_offset") >= begin) & (pc.field("_offset") < end))
            writer.append(part, end, start=writer.next)
            if flushes:
                writer.flush()
        writer.flush()
        return writer

    write(tmp_path / "cut", cuts, flushes)
    write(tmp_path / "whole", [], False)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    if present:
        assert held(tmp_path / "cut") == sorted(present)
        assert GridWriter(tmp_path / "cut", 0, SIZE).next == 61


def test_a_source_that_begins_late_has_no_empty_files_before(tmp_path):
    writer = GridWriter(tmp_path, 0, SIZE)
    with pytest.raises(GapError):
        writer.append(rows(75, 83), 83)
    writer.append(rows(75, 83), 83, start=0)
    writer.flush()
    assert list(files(tmp_path)) == ["partition=0/000000000007.parquet", "partition=0/000000000008.parquet"]


def test_one_offset_may_have_several_rows(tmp_path):
    twice = pa.concat_tables([rows(0, 12), rows(0, 12)]).sort_by("_offset")
    for directory, cuts in [(tmp_path / "one", [12]), (tmp_path / "two", [4, 12])]:
        writer = GridWriter(directory, 0, SIZE)
        for end in cuts:
            writer.append(twice.filter(pc.field("_offset") < end), end)
        writer.flush()
    assert held(tmp_path / "one") == sorted([*range(12), *range(12)])
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize(("table", "upto", "start"), [(rows(6, 8), 8, None), (rows(0, 0), 8, None), (rows(6, 8), 8, 6)])
def test_rows_that_would_leave_a_gap_are_refused(tmp_path, table, upto, start):
    writer = written(tmp_path, 5)
    with pytest.raises(GapError, match=r"offset [68], the files end before offset 5"):
        writer.append(table, upto, start=start)
    assert writer.next == 5


@pytest.mark.parametrize(
    "table",
    [
        rows(0, 9),
        rows(0, 5).sort_by([("_offset", "descending")]),
        rows(-1, 3),
        rows(0, 3).cast(rows(0, 0).schema.set(1, pa.field("_offset", pa.int32()))),
    ],
)
def test_rows_that_are_not_what_was_announced_are_refused(tmp_path, table):
    writer = GridWriter(tmp_path, 0, SIZE)
    with pytest.raises(DataError, match="_offset"):
        writer.append(table, 5)
    assert writer.next == 0


def test_frames_of_any_library_give_the_same_bytes(tmp_path):
    plain = rows(0, 13)
    views = pl.DataFrame(plain).to_arrow(compat_level=pl.CompatLevel.newest())
    coded = plain.set_column(3, "name", plain["name"].dictionary_encode()).replace_schema_metadata({"pandas": "x"})
    for name, table in [("plain", plain), ("views", views), ("coded", coded)]:
        writer = GridWriter(tmp_path / name, 0, SIZE)
        writer.append(table, 13)
        writer.flush()
    assert files(tmp_path / "plain") == files(tmp_path / "views") == files(tmp_path / "coded")


def test_lists_and_maps_are_columns_of_their_own_types_whatever_library_made_them(tmp_path):
    counts = pa.list_(pa.struct([("value", pa.string()), ("count", pa.int64())]))
    columns = {
        "numbers": pa.array([[0.5, float("nan")], [], None, [None]], pa.list_(pa.float64())),
        "tops": pa.array([[("a", 2), ("", 1)], [], None, [(None, 3)]], counts),
        "by": pa.array([[("b", 1), ("a", None)], [], None, [("", 0)]], pa.map_(pa.string(), pa.int64())),
    }
    plain = rows(0, 4).append_column("numbers", columns["numbers"])
    plain = plain.append_column("tops", columns["tops"]).append_column("by", columns["by"])
    views = pl.DataFrame(plain).to_arrow(compat_level=pl.CompatLevel.newest())
    for name, table in [("plain", plain), ("views", views)]:
        writer = GridWriter(tmp_path / name, 0, SIZE)
        writer.append(table[:2], 2)
        writer.flush()
        writer = GridWriter(tmp_path / name, 0, SIZE)  # which takes the open file up
        writer.append(table[2:], 4)
        writer.flush()
    assert files(tmp_path / "plain") == files(tmp_path / "views")
    read = read_table(tmp_path / "plain")
    for name, column in columns.items():
        assert read.schema.field(name).type.equals(column.type), name
        assert repr(read[name].to_pylist()) == repr(column.to_pylist())
    scanned = scan(tmp_path / "plain").collect()
    assert scanned.equals(pl.DataFrame(read), null_equal=True)
    assert scanned.schema["by"] == pl.Map(pl.String(), pl.Int64())


def test_the_position_in_the_feed_is_stored_with_the_rows_it_led_to(tmp_path):
    writer = GridWriter(tmp_path, 0, SIZE)
    writer.append(rows(0, 4), 4, 100)
    writer.flush()
    assert (GridWriter(tmp_path, 0, SIZE).next, GridWriter(tmp_path, 0, SIZE).feed) == (4, 100)
    writer.append(rows(4, 23), 23, 101)  # completes cells, so that the old position is gone
    assert (GridWriter(tmp_path, 0, SIZE).next, GridWriter(tmp_path, 0, SIZE).feed) == (23, 101)
    writer.append(rows(23, 30), 30, 102)
    resumed = GridWriter(tmp_path, 0, SIZE)
    assert (resumed.next, resumed.feed) == (30, 102)
    resumed.append(rows(30, 31), 31, 103)
    resumed.flush()
    assert held(tmp_path) == list(range(31))


def test_complete_files_do_not_depend_on_how_the_feed_was_cut(tmp_path):
    for name, cuts in [("one", [25]), ("two", [7, 10, 20, 25])]:
        writer = GridWriter(tmp_path / name, 0, SIZE)
        for feed, end in enumerate(cuts):
            writer.append(rows(writer.next, end), end, feed)
    complete = [name for name in files(tmp_path / "one") if "2.parquet" not in name]
    assert len(complete) == 2
    assert [files(tmp_path / "one")[name] for name in complete] == [files(tmp_path / "two")[name] for name in complete]


def test_a_writer_left_behind_cannot_undo_what_its_successor_wrote(tmp_path):
    zombie = GridWriter(tmp_path, 0, SIZE)
    zombie.append(rows(0, 4), 4)
    written(tmp_path, 17)
    before = files(tmp_path)
    with pytest.raises(FencedError, match="another one writes here"):
        zombie.flush()
    assert files(tmp_path) == before


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-20] + b"\0" * 20])
def test_a_torn_last_file_is_refused_with_advice(tmp_path, damage):
    written(tmp_path, 13)
    last = tmp_path / "partition=0/000000000001.parquet"
    last.write_bytes(damage(last.read_bytes()))
    with pytest.raises(FormatError, match=r"000000000001\.parquet is torn .* move it away"):
        GridWriter(tmp_path, 0, SIZE)
    with pytest.raises(FormatError, match="move it away"):
        read_table(tmp_path)
    last.unlink()
    assert GridWriter(tmp_path, 0, SIZE).next == 10


def test_parquet_of_another_program_or_another_size_is_refused(tmp_path):
    written(tmp_path, 13)
    with pytest.raises(FormatError, match="size 10, not 20"):
        GridWriter(tmp_path, 0, 20)
    pq.write_table(rows(20, 25), tmp_path / "partition=0/000000000002.parquet")
    with pytest.raises(FormatError, match="not written by onceflow"):
        GridWriter(tmp_path, 0, SIZE)


def test_leftovers_of_a_killed_writer_are_neither_read_nor_kept(tmp_path):
    written(tmp_path, 13)
    leftover = tmp_path / "partition=0/.000000000001.parquet.0a1b2c3d.tmp"
    leftover.write_bytes(b"torn")
    assert held(tmp_path) == list(range(13))
    assert GridWriter(tmp_path, 0, SIZE).next == 13
    assert leftover.exists()  # it may be being written
    os.utime(leftover, (0, 0))
    assert GridWriter(tmp_path, 0, SIZE).next == 13
    assert not leftover.exists()


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is tidied up."""


@pytest.mark.parametrize("feed", [None, 7])
def test_killed_at_any_step_nothing_torn_is_seen_and_the_bytes_come_out_the_same(tmp_path, monkeypatch, feed):
    def work(directory):
        writer = GridWriter(directory, 0, SIZE)
        while writer.next < 35:
            begin, end = max(0, writer.next - 3), min(35, writer.next + 6)
            writer.append(rows(begin, end), end, feed)
            writer.flush()

    monkeypatch.setattr("featurestore.offline.ABANDONED_SECONDS", -1.0)
    work(tmp_path / "whole")
    steps = ["open", "fsync", "replace"]
    at = killed = 0
    while True:
        directory = tmp_path / str(at)
        with monkeypatch.context() as patch:
            countdown = Countdown(at)
            patch.setattr(os, "fsync", countdown.before(os.fsync))
            patch.setattr(Path, "replace", countdown.before(Path.replace))
            patch.setattr(Path, "open", countdown.before(Path.open))
            try:
                work(directory)
                break
            except Killed:
                killed += 1
        if list(directory.rglob("*.parquet")):
            seen = held(directory)
            assert seen == list(range(len(seen)))
        work(directory)
        assert files(directory) == files(tmp_path / "whole")
        assert not list(directory.rglob("*.tmp"))
        at += 1
    assert killed > 8 * len(steps)


class Countdown:
    """Kills before the step of that number."""

    def __init__(self, steps):
        self._left = steps

    def before(self, step):
        def killing(*args, **kwargs):
            if self._left == 0:
                raise Killed
            self._left -= 1
            return step(*args, **kwargs)

        return killing


CHILD = """
import random, sys
from pathlib import Path
import pyarrow as pa
from featurestore.offline import GridWriter
directory, upto, cuts = Path(sys.argv[1]), int(sys.argv[2]), random.Random(sys.argv[3])
writer = GridWriter(directory, 0, 10)
print("ready", flush=True)
while writer.next < upto:
    begin = max(0, writer.next - cuts.randrange(6))
    end = min(upto, writer.next + cuts.randrange(1, 9))
    writer.append(pa.table({"_offset": pa.array(range(begin, end), pa.int64())}), end)
    writer.flush()
print("done", flush=True)
"""


@pytest.mark.slow
def test_sigkill_at_random_moments_loses_and_repeats_nothing(tmp_path):
    moments = random.Random(3)
    command = [sys.executable, "-c", CHILD, str(tmp_path / "killed"), "1000"]
    for kill in range(6):
        with subprocess.Popen([*command, str(kill)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout.readline() == "ready\n"
            time.sleep(moments.uniform(0.01, 0.08))
            child.kill()
            assert "done" not in child.stdout.read()
        seen = held(tmp_path / "killed") if files(tmp_path / "killed") else []  # killed before the first file
        assert seen == list(range(len(seen)))
    subprocess.run([*command, "last"], check=True, capture_output=True)
    writer = GridWriter(tmp_path / "whole", 0, SIZE)
    writer.append(rows(0, 1000).select(["_offset"]), 1000)
    writer.flush()
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_full_disk_is_an_error_that_leaves_what_was_there_and_can_be_repeated(tmp_path):
    writer = GridWriter(tmp_path, 0, 1000)
    writer.append(rows(0, 50), 50)
    writer.flush()
    before = files(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
        with pytest.raises(StateError, match=r"cannot write .*free space"):
            writer.append(rows(50, 2500), 2500)
        assert files(tmp_path) == before
        assert not list(tmp_path.rglob("*.tmp"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    writer.append(rows(writer.next, 2500), 2500)
    writer.flush()
    assert held(tmp_path) == list(range(2500))


def test_a_column_may_be_added_but_not_change_its_type(tmp_path):
    writer = written(tmp_path, 13)
    more = rows(13, 24).append_column("extra", pa.array(range(11), pa.int64()))
    writer.append(more, 24)
    writer.flush()
    for table in (read_table(tmp_path), scan(tmp_path).collect().to_arrow()):
        assert table["_offset"].to_pylist() == list(range(24))
        assert table["extra"].to_pylist() == [None] * 13 + list(range(11))
    writer.append(rows(24, 26).append_column("extra", pa.array(["a", "b"])), 26)
    with pytest.raises(FormatError, match="changed its type"):
        writer.flush()


def test_every_reader_sees_the_partitions_in_order(tmp_path):
    root = tmp_path / "env=prod" / "events"  # a folder of the user's that looks like a partition
    for partition in (10, 0, 2):
        written(root, 15, partition=partition)
    expected = [(p, o) for p in (0, 2, 10) for o in range(15)]
    table = read_table(root)
    assert list(zip(table["partition"].to_pylist(), table["_offset"].to_pylist(), strict=True)) == expected
    frame = scan(root).collect()
    assert frame.select("partition", "_offset").rows() == expected
    assert frame["partition"].dtype == pl.Int32
    assert frame.equals(pl.DataFrame(table))
    ours = pc.field("partition") == 10
    assert read_table(root, ["name", "_offset"], ours & (pc.field("_offset") > 12)).to_pydict() == {
        "name": ["", ""],
        "_offset": [13, 14],
    }
    assert scan(root).filter(pl.col("partition") == 2, pl.col("_offset") < 2).collect().height == 2
    sql = f"select partition, _offset from read_parquet('{root}/**/*.parquet', hive_partitioning=true) order by all"
    assert duckdb.sql(sql).fetchall() == expected
    assert pl.read_parquet(root, hive_partitioning=True)["partition"].n_unique() == 3
    assert pq.read_table(root).num_rows == 45


def test_a_column_called_partition_is_the_users_own(tmp_path):
    writer = GridWriter(tmp_path, 4, SIZE)
    writer.append(rows(0, 3).append_column("partition", pa.array(["x", "y", "z"])), 3)
    writer.flush()
    assert read_table(tmp_path)["partition"].to_pylist() == ["x", "y", "z"]
    assert scan(tmp_path).collect()["partition"].to_list() == ["x", "y", "z"]


def test_an_empty_folder_is_an_error_that_says_so(tmp_path):
    GridWriter(tmp_path, 0, SIZE).flush()
    for read in (read_table, scan):
        with pytest.raises(DataError, match="no rows under"):
            read(tmp_path)
