"""Quix Streams: windows in RocksDB with changelog topics, which are its defaults; results when a window closes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers import HOPS_S, NOTHING, TOPIC, Clock, added, main

REQUIREMENTS = ("quixstreams==3.28.1",)


def work(kafka: str, clock: Clock, folder: Path) -> None:
    from quixstreams import Application  # noqa: PLC0415 - only in the peer's environment
    from quixstreams.dataframe.windows import Reduce  # noqa: PLC0415

    options = {"broker_address": kafka, "consumer_group": f"quix-{folder.name}", "state_dir": folder}
    app = Application(auto_offset_reset="earliest", loglevel="ERROR", **options)

    def counted(value: dict[str, Any]) -> float:
        if clock.tick():
            app.stop()
        return float(value["amount"])

    amounts = app.dataframe(app.topic(TOPIC, value_deserializer="json")).apply(counted)
    for length, slide in HOPS_S:
        window = amounts.hopping_window(1000 * length, 1000 * slide)
        window.agg(all=Reduce(reducer=added, initializer=lambda amount: added(NOTHING, amount))).final()
    app.run()


if __name__ == "__main__":
    main("quix", REQUIREMENTS, work)
