"""How a worker runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """How a worker runs.

    `replay`: history, as fast as it goes; partitions wait for each other without bound, and event time is the clock.
    `until_end` (with replay): stop where the topics ended when the worker began. `max_wait` is how long (seconds) a
    live worker waits for a silent partition before it goes on without it, `gather` how long brokers may wait until
    there is much to fetch: what that adds to latency at low rates it saves in processor time. `chunk` is how many
    events make a turn, about; `buffer` how many of one partition may wait. Where `archive` is a folder, raw events are
    kept there. `memory` is how many bytes of states are held, about: the online store has them all. In the folder
    `forgotten` it is written down which entities were erased: that of the archive, if there is one.
    """

    replay: bool = False
    until_end: bool = False
    max_wait: float = 0.04
    gather: float = 0.075
    chunk: int = 100_000
    buffer: int = 200_000
    archive: Path | None = None
    forgotten: Path | None = None
    grid: int = 65_536
    memory: int = 2 << 30
