"""What is written down of erasures, and files rewritten by it: whole at every step, and in the end the same."""

from __future__ import annotations

import gc
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import Count, Distinct, Entity, Source, col, offline
from featurestore.erasures import naming
from featurestore.errors import FormatError
from featurestore.files import publish
from featurestore.forgotten import (
    Forgotten,
    Known,
    archive_revision,
    erased_from,
    hidden_from,
    known,
    masked_events,
    may_have_known,
    mirror_revision,
    prediction_revision,
    remember,
    without_rows,
)
from featurestore.offline import GridWriter
from tests.featurestore.helpers import SOURCE, event, frame_of, made
from tests.featurestore.test_offline import Countdown, Killed, files
from tests.streams.working import table

SIZE = 10
RIDES = Source(
    "rides",
    schema={"city": str, "stop": str, "who": str, "at": "timestamp[ms]"},
    event_time="at",
    key="city",
    derive={"line": col("stop").str.slice(0, 2)},
)
A = Forgotten("key", "sa", ("k",), ("k",), 12, 15)
B = Forgotten("key", "sb", ("k",), ("k",), 25, 25)
VIEW = made({"n": Count()}, windows=["1h"])  # keyed as its topic is
APART = made({"n": Count()}, source=replace(SOURCE, partitioner="murmur2"), windows=["1h"])
GROWN = made({"n": Count()}, source=replace(SOURCE, partitioner="murmur2", grown_from=[1]), windows=["1h"])
SPREAD = made({"n": Count()}, entity=Entity("key", key="s"), windows=["1h"])


def folder_of(path):
    return path / "events" / SOURCE.name / "partition=0"


def test_what_is_written_down_grows_and_is_told_by_a_version(tmp_path):
    assert known(tmp_path) == (0, (), {})
    remember(tmp_path / "new", [A])
    first = known(tmp_path / "new")
    assert first[1:] == ([A], {("key", "sa"): 12})
    remember(tmp_path / "new", [A, B])
    second = known(tmp_path / "new")
    assert second[1:] == ([A, B], {("key", "sa"): 12, ("key", "sb"): 25})
    assert len({0, first.version, second.version}) == 3
    remember(tmp_path / "new", [B, A])
    assert known(tmp_path / "new").version == second.version
    remember(
        tmp_path / "new", [Forgotten("key", "sa", ("k",), (), 0, 40), Forgotten("key", "sa", ("k",), (), 0, 0, 50)]
    )
    found = known(tmp_path / "new").entries[0]
    assert found == Forgotten("key", "sa", ("k",), (), 12, 40, 50)
    assert [found.below(what) for what in ("events", "rows", "predictions")] == [12, 40, 50]
    assert [B.below(what) for what in ("events", "rows", "predictions")] == [25, 25, 25]


def test_of_what_was_known_only_the_newest_is_kept_in_memory(tmp_path):
    versions = []
    for at in range(5):
        remember(tmp_path, [replace(A, key=f"s{at}")])
        versions.append(known(tmp_path).version)
    assert known(tmp_path) is known(tmp_path)
    alive = {each.version for each in gc.get_objects() if isinstance(each, Known)}
    assert [version in alive for version in versions] == [False] * 4 + [True]


def test_what_several_write_down_at_once_is_all_there(tmp_path):
    each = [[Forgotten("key", f"i{i}", ("k",), (), i, i) for i in range(at, 64, 8)] for at in range(8)]

    def write(mine):
        for one in mine:
            remember(tmp_path, [one])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, each))
    assert {one.offset for one in known(tmp_path).entries} == set(range(64))


def test_a_version_never_stands_for_two_things(tmp_path):
    remember(tmp_path, [A])
    before = (tmp_path / "forgotten.json").read_bytes()
    remember(tmp_path, [B])
    one = known(tmp_path).version
    (tmp_path / "forgotten.json").write_bytes(before)  # as from a copy
    remember(tmp_path, [replace(B, offset=26)])
    assert known(tmp_path).version != one


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": 1}', '{"format": 9}', '{"format": 1, "version": 1, "forgotten": [{"key": 1}]}']
)
def test_what_cannot_be_read_is_never_taken_for_nothing(tmp_path, text):
    (tmp_path / "forgotten.json").write_text(text)
    with pytest.raises(FormatError, match=r"forgotten\.json"):
        known(tmp_path)


def archive_of(path, upto=35, revised=True):
    frame = frame_of(SOURCE, [event(i, offset=i, k="abc"[i % 3], i=i) for i in range(upto)])
    revision = archive_revision(path / "events", SOURCE, 0) if revised else None
    writer = GridWriter(path / "events" / SOURCE.name, 0, SIZE, revision=revision)
    columns = ["_partition", "_offset", "_timestamp", *SOURCE.schema]
    writer.append(frame.select(columns).filter(pl.col("_offset") >= writer.next).to_arrow(), upto)
    writer.flush()
    return writer


def erase(path):
    """What the next run does."""
    writer = archive_of(path)
    writer.sweep()
    writer.flush()


def test_killed_at_any_step_of_rewriting_files_are_whole_and_the_next_run_finishes(tmp_path, monkeypatch):
    remember(folder_of(tmp_path / "whole"), [A, B])
    archive_of(tmp_path / "whole")  # knows it from the beginning
    at = 0
    while True:
        path = tmp_path / str(at)
        archive_of(path)
        remember(folder_of(path), [A, B])
        with monkeypatch.context() as patch:
            countdown = Countdown(at)
            patch.setattr(os, "fsync", countdown.before(os.fsync))
            patch.setattr(Path, "replace", countdown.before(Path.replace))
            try:
                erase(path)
                break
            except Killed:
                assert table(path / "events" / SOURCE.name)["_offset"].to_list() == list(range(35))
        erase(path)
        assert files(path) == files(tmp_path / "whole")
        at += 1
    assert at > 10
    assert files(path) == files(tmp_path / "whole")


def test_a_sweep_that_is_left_off_is_finished_by_the_next(tmp_path):
    writers = {name: archive_of(tmp_path / name) for name in ("left", "whole")}
    before, asked = files(tmp_path / "left"), []
    for name in writers:
        remember(folder_of(tmp_path / name), [A, B])
    writers["left"].sweep(lambda: bool(asked) or bool(asked.append(None)))  # after the first file
    assert sum(each != before[name] for name, each in files(tmp_path / "left").items()) == 1
    for writer in writers.values():
        writer.sweep()
    assert files(tmp_path / "left") == files(tmp_path / "whole")


def test_a_sweep_reads_files_again_only_when_more_is_forgotten(tmp_path, monkeypatch):
    writer = archive_of(tmp_path)
    writer.sweep()
    remember(folder_of(tmp_path), [A])
    writer.sweep()
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.ParquetFile", None)
        writer.sweep()
    remember(folder_of(tmp_path), [B])
    writer.sweep()
    assert files(tmp_path) != before
    rows = table(tmp_path / "events" / SOURCE.name)
    assert set(rows.filter(pl.col("_offset") < 12)["k"]) == {"c", None}


def test_a_file_that_becomes_complete_while_an_erasure_is_written_down_follows_it(tmp_path, monkeypatch):
    folder, waiting = folder_of(tmp_path), [A]
    sweeper = GridWriter(folder.parent, 0, SIZE, revision=archive_revision(tmp_path / "events", SOURCE, 0))

    def late(path, payload):
        if waiting:
            remember(folder, [waiting.pop()])
            sweeper.sweep()
        publish(path, payload)

    monkeypatch.setattr(offline, "publish", late)
    archive_of(tmp_path, upto=SIZE)
    sweeper.sweep()
    assert "a" not in set(table(tmp_path / "events" / SOURCE.name)["k"])


def test_the_open_file_follows_with_the_next_flush(tmp_path):
    writer = archive_of(tmp_path)
    late = Forgotten("key", "sa", ("k",), ("k",), 34, 34)
    remember(folder_of(tmp_path), [late])
    writer.flush()
    assert "a" not in set(table(tmp_path / "events" / SOURCE.name).filter(pl.col("_offset") >= 30)["k"])
    again = archive_of(tmp_path)
    again.flush()
    assert again.next == 35


def test_a_mirror_loses_rows_by_the_erasure_or_where_partitions_are_merged_by_what_was_shown(tmp_path):
    frame = frame_of(SOURCE, [event(i, offset=i, k="a", s="a") for i in range(20)])
    rows = frame.select("_partition", "_offset", "_time", "k", "s").to_arrow()
    remember(folder_of(tmp_path), [A])
    for chosen, first in ((APART, 12), (VIEW, 15), (GROWN, 15), (SPREAD, 15)):
        revised = mirror_revision(tmp_path / "events", chosen, 0)(rows)
        assert revised["_offset"].to_pylist() == list(range(first, 20))
        assert without_rows(chosen, pl.DataFrame(rows), {0: [A], 3: [B]})["_offset"].to_list() == list(range(first, 20))
    other = mirror_revision(tmp_path / "events", VIEW, 1)
    assert other(rows) is rows
    assert without_rows(VIEW, pl.DataFrame(rows), {}).equals(pl.DataFrame(rows))


def test_predictions_are_gone_where_the_archive_says_whose_event_it_was(tmp_path):
    writer = archive_of(tmp_path)
    predictions = pa.table({"_offset": pa.array(range(0, 35, 2), pa.int64())})

    def left(*views):
        revised = prediction_revision(tmp_path / "events", SOURCE, views, SIZE, 0)(predictions)
        return predictions["_offset"].to_pylist() if revised is predictions else revised["_offset"].to_pylist()

    assert left(VIEW) == list(range(0, 35, 2))
    remember(folder_of(tmp_path), [Forgotten("key", "sa", ("k",), ("k",), 12, 12, 20)])
    wanted = [offset for offset in range(0, 35, 2) if offset >= 20 or offset % 3]
    assert left(VIEW) == wanted
    writer.sweep()
    writer.flush()
    assert left(VIEW) == wanted
    assert left() == left(made({"n": Count()}, entity=Entity("other", key="s"), windows=["1h"])) != wanted


@given(st.lists(st.tuples(st.sampled_from(["x1", "y2", "zz", None]), st.sampled_from("ab")), max_size=30))
def test_events_lose_what_a_derived_key_is_made_of(events):
    rows = [{"city": c, "stop": s, "who": None, "at": i} for i, (s, c) in enumerate(events)]
    meta = [{"_partition": 0, "_offset": i, "_timestamp": i, "_time": i} for i in range(len(rows))]
    frame = frame_of(RIDES, [one | two for one, two in zip(rows, meta, strict=True)])
    gone = masked_events(RIDES, frame, [Forgotten("line", "sx1", ("line",), ("stop",), 7, 7)])
    wanted = [None if s == "x1" and i < 7 else s for i, (s, _) in enumerate(events)]
    assert gone["stop"].to_list() == wanted
    assert gone.drop("stop").equals(frame.drop("stop"))


def test_a_view_does_not_see_what_the_archive_must_go_on_holding():
    frame = frame_of(SOURCE, [event(i, offset=i, k="ab"[i % 2], g=i % 2) for i in range(6)])
    pair = made({"n": Count()}, entity=Entity("pair", key=["k", "g"]), windows=["1h"])
    entry = Forgotten("pair", "sa,i0", ("k", "g"), (), 4, 4)
    assert hidden_from(pair, frame, {0: [entry]})["k"].to_list() == [None, "b", None, "b", "a", "b"]
    assert hidden_from(VIEW, frame, {0: [entry]}) is frame
    assert erased_from(pair, [entry], 4) == [b"sa,i0"]
    assert erased_from(pair, [entry], 5) == erased_from(VIEW, [entry], 0) == []


def test_events_at_which_a_read_may_have_known_more_are_those_shown_and_those_masked():
    frame = frame_of(SOURCE, [event(i, offset=i, k=k) for i, k in enumerate(["a", None, "b", "a", None, "a"])])
    entry = Forgotten("key", "sa", ("k",), ("k",), 3, 5)
    assert np.flatnonzero(may_have_known(VIEW, frame, {0: [entry]})).tolist() == [0, 1, 3]
    assert not may_have_known(VIEW, frame, {1: [entry]}).any()


def test_columns_that_name_an_entity_are_masked_unless_others_need_them():
    def of(name, key, **features):
        return made({"n": Count(), **features}, source=RIDES, entity=Entity(name, key=key), windows=["1h"])

    person, line, city = of("person", "who"), of("line", ["city", "line"]), of("city", "city")
    assert naming(RIDES, "person", [person]) == (("who",), ())
    assert naming(RIDES, "line", [person, line]) == (("city", "stop"), ())
    assert naming(RIDES, "line", [person, line, city]) == (("stop",), ("city",))
    assert naming(RIDES, "person", [person, of("city", "city", people=Distinct("who"))]) == ((), ("who",))
    elsewhere = made(
        {"n": Count()},
        entity=Entity("guest", key="who"),
        source=Source("stays", schema={"who": str, "at": "timestamp[ms]"}, event_time="at", key="who"),
        windows=["1h"],
    )
    assert naming(RIDES, "person", [person], [(elsewhere, "rides")]) == ((), ("who",))
    assert naming(RIDES, "guest", [city], [(elsewhere, "rides")]) == (("who",), ())


def test_the_file_says_its_format(tmp_path):
    remember(tmp_path, [A])
    assert json.loads((tmp_path / "forgotten.json").read_text())["format"] == 1
