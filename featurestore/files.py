"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

from featurestore.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path


def publish(path: Path, payload: bytes | memoryview) -> None:
    """Make `path` hold `payload`, durably: temporary file, fsync, rename, fsync of the folder.

    A reader sees the old content or the new one, never a part. The temporary name is hidden, ends in `.tmp` and is
    unique, so that two writers never share one. Raises `StateError` when the disk refuses; nothing visible has changed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StateError(f"cannot write {path}: {error.strerror or error}; free space or check the disk") from error


def sync_directory(directory: Path) -> None:
    """Make renames within `directory` durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
