"""Files that are there whole or not at all, and locks."""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from featurestore.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator
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


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Be the only one, of all threads and processes of the machine, who holds the lock file `path`, which stays there.

    Without `wait`, BlockingIOError says that another one holds it. Who dies lets go of it. Raises `StateError` when the
    file cannot be made.
    """
    with ExitStack() as held:
        try:
            file = held.enter_context(path.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            raise StateError(f"cannot lock {path}: {error.strerror or error}; check the disk") from error
        yield


def sync_directory(directory: Path) -> None:
    """Make renames within `directory` durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
