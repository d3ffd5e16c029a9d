"""What the benchmarks of the stream run on."""

import os
import shutil
import sys
from pathlib import Path

from benchmarks.rig import own_redis


def made_redis(folder: Path) -> Path:
    """A program of that name in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


def test_the_redis_of_an_active_environment_is_not_what_is_measured(tmp_path, monkeypatch):
    in_environment, own = made_redis(tmp_path / "env" / "bin"), made_redis(tmp_path / "usr")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, (in_environment.parent, own.parent))))
    assert shutil.which("redis-server") == str(in_environment)
    assert own_redis() == str(own)


def test_without_a_redis_of_its_own_the_machine_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(made_redis(tmp_path / "bin").parent))
    assert own_redis() is None


def test_the_redis_beside_a_python_of_the_machine_is_the_machines(tmp_path, monkeypatch):
    beside = made_redis(tmp_path / "bin")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(beside.parent))
    assert own_redis() == str(beside)
