"""Faust with its own windowed tables, in memory, with changelog topics: what one writes in Faust without onceflow."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.peers import HOPS_S, NOTHING, TOPIC, Clock, added, main

REQUIREMENTS = ("faust-streaming==0.15.3", "aiokafka==0.14.0", "cramjam==2.14.0")


def work(kafka: str, clock: Clock, folder: Path) -> None:
    import faust  # noqa: PLC0415 - only in the peer's environment

    options: dict[str, Any] = {"store": "memory://", "datadir": folder, "topic_partitions": 4, "web_enabled": False}
    app = faust.App(f"faust-{folder.name}", broker=f"kafka://{kafka}", **options)
    tables = [
        app.Table(f"of-{length}", default=lambda: NOTHING).hopping(length, slide, expires=timedelta(seconds=length))
        for length, slide in HOPS_S
    ]

    async def fold(events: Any) -> None:  # noqa: ANN401 - Faust has no types
        async for event in events:
            for table in tables:
                table[event["card_id"]].apply(added, event["amount"])
            if clock.tick():
                await worker.stop()

    app.agent(app.topic(TOPIC, value_serializer="json"))(fold)
    worker = faust.Worker(app, loglevel="error")
    with suppress(SystemExit):  # with which it ends in any case; without a last event there is no report
        worker.execute_from_commandline()


if __name__ == "__main__":
    main("faust_tables", REQUIREMENTS, work)
