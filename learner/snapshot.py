"""Snapshots: plain values and arrays in one file that is either whole or not there.

A file is a header (magic, format, payload length, SHA-256 of the payload) and a MessagePack payload, in which an array
is an extension of its type, shape and bytes. Nothing in it is ever run, whatever the file says.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from featurestore.errors import FormatError

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1

_MAGIC = b"onceflow-learner"
_HEADER = struct.Struct(">16sIQ32s")
_ARRAY = 1
_DTYPES = ("<f8", "<i8")


def encode(payload: dict[str, Any]) -> bytes:
    """The bytes of a file that holds `payload`: None, bools, int64, floats, str, bytes, lists, dicts, numpy arrays."""
    body = msgspec.msgpack.encode(payload, enc_hook=_to_extension)
    return _HEADER.pack(_MAGIC, FORMAT, len(body), hashlib.sha256(body).digest()) + body


def decode(data: bytes, where: object) -> dict[str, Any]:
    """The payload of `encode`d bytes; `where` is named in the FormatError raised when they are anything else."""
    advice = "restore a copy of the file, or move it away to start anew by a replay"
    if data[: len(_MAGIC)] != _MAGIC[: len(data)]:
        raise FormatError(f"{where} was not written by onceflow's learner: move it away, or name another file")
    if len(data) < _HEADER.size:
        raise FormatError(f"{where} is torn: it has {len(data)} bytes, less than its header; {advice}")
    _, written, length, checksum = _HEADER.unpack_from(data)
    if written != FORMAT:
        raise FormatError(
            f"{where} has format {written} and this onceflow reads format {FORMAT}: use the onceflow that wrote it, or "
            "move it away to start anew by a replay"
        )
    body = memoryview(data)[_HEADER.size :]
    if len(body) != length:
        raise FormatError(f"{where} is torn: it holds {len(body)} of {length} bytes; {advice}")
    if hashlib.sha256(body).digest() != checksum:
        raise FormatError(f"{where} is damaged: its bytes do not match their checksum; {advice}")
    try:
        return msgspec.msgpack.decode(body, type=dict[str, Any], ext_hook=_from_extension)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise FormatError(f"{where} cannot be read ({error}); {advice}") from error


def write(path: Path, payload: dict[str, Any]) -> None:
    """Put `payload` at `path`: after a crash at any moment the file is the old one or the new one, whole.

    A snapshot has one writer; what another one left unfinished is swept away.
    """
    write_bytes(path, encode(payload))


def read(path: Path) -> dict[str, Any] | None:
    """What `write` put at `path`, or None when nothing is there.

    Raises FormatError, and leaves the file alone, when it is torn, damaged, not ours or of another format.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return decode(data, path)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file at `path` by `data`, durably, in one step."""
    for left_over in path.parent.glob(f".{path.name}.*.tmp"):
        left_over.unlink(missing_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files behind them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _to_extension(value: object) -> msgspec.msgpack.Ext:
    if not isinstance(value, np.ndarray) or value.dtype.str not in _DTYPES:
        raise TypeError(f"a snapshot cannot hold a {type(value).__name__}")
    parts = [value.dtype.str, list(value.shape), value.tobytes()]
    return msgspec.msgpack.Ext(_ARRAY, msgspec.msgpack.encode(parts))


def _from_extension(code: int, data: memoryview) -> np.ndarray[Any, Any]:
    dtype, shape, content = msgspec.msgpack.decode(data, type=tuple[str, list[int], bytes])
    if code != _ARRAY or dtype not in _DTYPES or min(shape, default=0) < 0 or math.prod(shape) * 8 != len(content):
        raise ValueError(f"an array of type {dtype!r} and shape {shape} does not fit its {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape).copy()
