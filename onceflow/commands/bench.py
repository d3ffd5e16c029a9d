"""`onceflow bench`: what this machine makes of it, as ratios to what one would use instead."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from featurestore.errors import ConfigError


def run(*, names: Sequence[str], events: int | None, long: int | None, peers: bool) -> None:
    """Run the benchmarks of the checkout in which the command is given; options are those of `stream`."""
    if not Path("benchmarks/__init__.py").is_file():
        raise ConfigError("the benchmarks are not part of the package: run this in a checkout of onceflow")
    sys.path.insert(0, ".")
    benchmarks = import_module("benchmarks")
    unknown = [name for name in names if name not in benchmarks.NAMES]
    if unknown:
        raise ConfigError(f"there is no benchmark {unknown[0]!r}; there are {', '.join(benchmarks.NAMES)}")
    given = {"events": events, "long": long, "beside_peers": peers or None}
    options = {name: value for name, value in given.items() if value is not None}
    benchmarks.main(*names, **options)
