"""Files are whole or not there: what is written, in which order, and what a refusing disk leaves behind."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from featurestore.errors import StateError
from featurestore.files import locked, publish


def test_content_is_on_disk_before_it_has_its_name_and_then_the_name_is(tmp_path, monkeypatch):
    target, steps = tmp_path / "state.json", []
    fsync, replace = os.fsync, Path.replace

    def recording_fsync(handle):
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"{os.fstat(handle).st_size} bytes"
        steps.append(f"sync {kind}")
        fsync(handle)

    def recording_replace(source, destination):
        steps.append(f"name {Path(destination).name}")
        return replace(source, destination)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(Path, "replace", recording_replace)
    publish(target, b"hello")
    assert steps == ["sync 5 bytes", "name state.json", "sync folder"]
    assert target.read_bytes() == b"hello"


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_refuses_leaves_the_old_content_and_no_leftover(tmp_path, monkeypatch, step, code):
    target = tmp_path / "state.json"
    publish(target, b"old")

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), refuse)
        with pytest.raises(StateError, match=rf"cannot write .*state\.json: {os.strerror(code)}"):
            publish(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert target.read_bytes() == b"old"


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(StateError, match=r"gone.state\.json: No such file"):
        publish(tmp_path / "gone" / "state.json", b"x")


def test_a_lock_is_held_by_one_at_a_time_and_others_wait_or_are_told(tmp_path):
    path, order = tmp_path / "lock", []

    def second():
        with locked(path):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(path):
        with pytest.raises(BlockingIOError), locked(path, wait=False):
            pass
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    with locked(path, wait=False):
        pass


def test_a_lock_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(StateError, match=r"cannot lock .*gone.lock: No such file"), locked(tmp_path / "gone" / "lock"):
        pass
