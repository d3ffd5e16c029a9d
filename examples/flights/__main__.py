"""Write the flights to files, for `onceflow produce`: python -m examples.flights FOLDER [DAYS]."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl

from examples.flights.data import topics

_DAY_MS = 86_400_000


def main(folder: Path, days: int | None) -> None:
    """Write one Parquet file a topic."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = topics()
    start = min(int(frame["at"].to_numpy().min()) for frame in frames.values())
    for name, frame in frames.items():
        chosen = frame if days is None else frame.filter(pl.col("at") < start + days * _DAY_MS)
        chosen.write_parquet(folder / f"{name}.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
