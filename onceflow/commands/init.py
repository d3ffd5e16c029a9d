"""`onceflow init`: a new project."""

from __future__ import annotations

import json as codec
from importlib.resources import files
from pathlib import Path

import typer

from featurestore.errors import ConfigError

NAMES = ("README.md", "features.py", "sample.py", "onceflow.toml", "docker-compose.yml")


def run(*, directory: Path, json: bool) -> None:
    """Write the templates. ConfigError: a file of one of their names is there already; then nothing is written."""
    there = [name for name in NAMES if (directory / name).exists()]
    if there:
        raise ConfigError(f"{directory} has {', '.join(there)} already: choose a new directory; nothing was written")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            (directory / name).write_bytes((files("onceflow") / "templates" / name).read_bytes())
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror}") from None
    if json:
        typer.echo(codec.dumps({"directory": str(directory), "files": NAMES}))
    else:
        typer.echo(f"A new project is in {directory}. Next:\n\n  cd {directory}\n  onceflow check -m features")
