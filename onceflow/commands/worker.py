"""`onceflow worker`: fold events into features, and predict."""

from __future__ import annotations

import json
import os
from pathlib import Path

from onceflow.modules import load as load_module
from onceflow.runtime import build_worker, run_worker
from onceflow.settings import load as load_settings


def run(module: str, mode: str | None, *, until_end: bool) -> None:
    """Run a worker until it is stopped or, with `until_end`, until the topics' present end; then print what it did."""
    settings = load_settings(Path.cwd(), os.environ, mode=mode)
    worker = build_worker(load_module(module), settings, until_end=until_end)
    run_worker(worker, settings)
    if until_end:
        print(json.dumps(worker.stats.summary()))  # noqa: T201 - the command's result
