"""A job's result in parts, so that what was interrupted can go on."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from featurestore.errors import ConfigError
from featurestore.files import publish

_JOB = "_job.json"


class Parts:
    """Parquet files `part-00000.parquet`, ... in the folder `out`, each there whole or not at all.

    `job` is plain data that says all the result depends on; it is kept beside the parts. With `resume`, the parts of
    the same job are kept and need not be computed again; otherwise the folder must be new or empty. ConfigError: it is
    not, or holds the parts of another job.
    """

    def __init__(self, out: Path, job: Mapping[str, Any], *, resume: bool) -> None:
        self._out = out
        said = json.dumps(job, indent=2, sort_keys=True, default=str).encode()
        there = out / _JOB
        used = out.is_dir() and any(out.iterdir())
        if out.is_file() or (used and not (resume and there.exists())):
            raise ConfigError(f"{out} is not empty: choose a new folder for --out, or go on in it with --resume")
        if there.exists() and there.read_bytes() != said:
            raise ConfigError(f"{out} holds parts of another job (see {there.name} in it): choose a new folder")
        out.mkdir(parents=True, exist_ok=True)
        publish(there, said)

    def has(self, part: int) -> bool:
        """Whether the part is there already."""
        return self._path(part).exists()

    def write(self, part: int, frame: pl.DataFrame) -> None:
        """Write a part, durably."""
        sink = io.BytesIO()
        frame.write_parquet(sink)
        publish(self._path(part), sink.getbuffer())

    def _path(self, part: int) -> Path:
        return self._out / f"part-{part:05d}.parquet"
