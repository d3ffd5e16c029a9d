import os
import random
import signal
import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from featurestore import FormatError
from learner import snapshot

PAYLOAD = {"numbers": np.arange(6.0).reshape(2, 3), "name": "late", "positions": [["t", 0, 7]], "model": b"\x00\xff"}

tables = st.sampled_from(["<f8", "<i8"]).flatmap(
    lambda d: arrays.arrays(d, arrays.array_shapes(min_dims=1, min_side=0))
)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)


def damaged(path, data):
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        snapshot.read(path)
    assert path.read_bytes() == data
    assert str(path) in str(caught.value)
    return str(caught.value)


@settings(deadline=None)
@given(st.dictionaries(st.text(), values, max_size=5), tables)
def test_values_and_arrays_come_back_as_they_were(payload, table):
    back = snapshot.decode(snapshot.encode(payload | {"table": table}), "memory")
    kept = back.pop("table")
    assert (kept.dtype, kept.shape, kept.tobytes()) == (table.dtype, table.shape, table.tobytes())
    assert kept.flags.writeable
    assert back == {key: value for key, value in payload.items() if key != "table"}


def test_same_payload_gives_the_same_bytes():
    assert snapshot.encode(PAYLOAD) == snapshot.encode(snapshot.decode(snapshot.encode(PAYLOAD), "memory"))


@pytest.mark.parametrize(
    "value", [object(), {1, 2}.__iter__(), np.zeros(2, np.float32), np.array(["a"]), np.array([None])]
)
def test_what_a_snapshot_cannot_hold_is_refused_when_it_is_written(value):
    with pytest.raises(TypeError, match="cannot hold"):
        snapshot.encode({"value": value})


def test_nothing_there_is_nothing(tmp_path):
    assert snapshot.read(tmp_path / "snapshot") is None


def test_written_file_is_read_and_replaced(tmp_path):
    path = tmp_path / "snapshot"
    for version in (1, 2):
        snapshot.write(path, PAYLOAD | {"version": version})
        assert snapshot.read(path)["version"] == version
    assert [each.name for each in tmp_path.iterdir()] == ["snapshot"]


def test_every_truncation_is_noticed(tmp_path):
    data = snapshot.encode(PAYLOAD)
    for length in range(len(data)):
        assert "torn" in damaged(tmp_path / "snapshot", data[:length])
    assert "torn" in damaged(tmp_path / "snapshot", data + b"x")


def test_every_flipped_byte_is_noticed(tmp_path):
    data = snapshot.encode(PAYLOAD)
    for at in range(len(data)):
        damaged(tmp_path / "snapshot", data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])


def test_foreign_files_and_other_formats_are_told_apart(tmp_path):
    path = tmp_path / "snapshot"
    assert "not written by onceflow" in damaged(path, b"PAR1" + bytes(200))
    data = bytearray(snapshot.encode(PAYLOAD))
    data[19] += 1
    assert "has format 2 and this onceflow reads format 1" in damaged(path, bytes(data))


@pytest.mark.parametrize(
    "parts", [["<f8", [2], b"short"], ["|O", [1], bytes(8)], ["<f8", [-1], b""], ["<f8", [2**62, 4], b""], 3]
)
def test_arrays_that_do_not_fit_their_bytes_are_refused(parts, tmp_path):
    extension = msgspec.msgpack.Ext(1, msgspec.msgpack.encode(parts))
    assert "cannot be read" in damaged(tmp_path / "snapshot", snapshot.encode({"rows": extension}))
    assert "cannot be read" in damaged(tmp_path / "snapshot", snapshot.encode({"rows": msgspec.msgpack.Ext(9, b"")}))


WRITER = """
import sys, itertools, numpy as np
from pathlib import Path
from learner import snapshot
for version in itertools.count(int(sys.argv[2])):
    snapshot.write(Path(sys.argv[1]), {"version": version, "rows": np.full((2_000, 45), float(version))})
    print(version, flush=True)
"""


def test_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path):
    path, chance, version = tmp_path / "snapshot", random.Random(1), 0
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(version)], stdout=subprocess.PIPE
        ) as writer:
            writer.stdout.readline()
            time.sleep(chance.random() * 0.05)
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged = [int(line) for line in writer.stdout.read().split()]
        read = snapshot.read(path)
        assert read["version"] >= max(acknowledged, default=version)
        assert (read["rows"] == read["version"]).all()
        version = read["version"] + 1
    snapshot.write(path, PAYLOAD)
    assert [each.name for each in tmp_path.iterdir()] == ["snapshot"]


DYING = """
import os, resource, signal, sys
from pathlib import Path
from learner import snapshot
step, path, payload = sys.argv[2], Path(sys.argv[1]), {"version": 2, "rows": bytes(100_000)}
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if step == "write":
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
else:
    setattr({"fsync": os, "replace": Path, "sync_folder": snapshot}[step], step, die)
snapshot.write(path, payload)
"""


@pytest.mark.parametrize(("step", "version"), [("write", 1), ("fsync", 1), ("replace", 1), ("sync_folder", 2)])
def test_writer_that_dies_at_a_step_leaves_a_whole_file(step, version, tmp_path):
    path = tmp_path / "snapshot"
    snapshot.write(path, {"version": 1})
    died = subprocess.run([sys.executable, "-c", DYING, str(path), step], check=False)
    assert died.returncode in (-signal.SIGKILL, -signal.SIGXFSZ)
    assert snapshot.read(path)["version"] == version
    left_over = [each for each in tmp_path.iterdir() if each != path]
    assert len(left_over) == 2 - version
    snapshot.write(path, {"version": 3})
    assert snapshot.read(path)["version"] == 3
    assert list(tmp_path.iterdir()) == [path]
