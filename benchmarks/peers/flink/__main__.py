"""Flink's SQL: hopping windows in memory, without checkpoints, which favours it; results when a window closes.

It takes the events before a time, and at their end all windows close. Needs Java 17 and Maven.
"""

from __future__ import annotations

from benchmarks.peers.jvm import main
from benchmarks.work import START, STEP_MS

if __name__ == "__main__":
    main("flink", "org.apache.flink:flink-table-runtime:2.2.1", lambda events, _: str(START + STEP_MS * events))
