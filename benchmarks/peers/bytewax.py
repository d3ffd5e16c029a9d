"""Bytewax: windows in memory, without recovery, which favours it; results when a window closes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.peers import HOPS_S, NOTHING, TOPIC, Clock, Moments, added, check, main

REQUIREMENTS = ("bytewax[kafka]==0.21.1",)


def work(kafka: str, clock: Clock, _: Path) -> None:
    from bytewax import operators  # noqa: PLC0415 - only in the peer's environment
    from bytewax.connectors.kafka import KafkaSource  # noqa: PLC0415
    from bytewax.dataflow import Dataflow  # noqa: PLC0415
    from bytewax.operators import windowing  # noqa: PLC0415
    from bytewax.testing import TestingSink, run_main  # noqa: PLC0415

    def event(message: Any) -> tuple[str, tuple[datetime, float]] | None:  # noqa: ANN401
        if clock.ended:  # the rest of the topic is only read, so that at its end all windows close
            return None
        clock.tick()
        value = json.loads(message.value)
        return value["card_id"], (datetime.fromtimestamp(value["ts"] / 1000, UTC), value["amount"])

    def folded(old: Moments, event: tuple[datetime, float]) -> Moments:
        return added(old, event[1])

    def merged(old: Moments, other: Moments) -> Moments:  # asked for, but only windows that grow ever are
        raise NotImplementedError(old, other)

    counts: list[int] = []
    flow = Dataflow("peer")
    messages = operators.input("payments", flow, KafkaSource([kafka], [TOPIC], tail=False))
    amounts = operators.filter_map("event", messages, event)
    times = windowing.EventClock(lambda event: event[0], wait_for_system_duration=timedelta(minutes=1))
    for length, slide in HOPS_S:
        spans = timedelta(seconds=length), timedelta(seconds=slide)
        hops = windowing.SlidingWindower(*spans, align_to=datetime(2023, 1, 1, tzinfo=UTC))
        how = (times, hops, lambda: NOTHING, folded, merged)
        closed = windowing.fold_window(f"of-{length}", amounts, *how, ordered=False)
        held = operators.map(f"held-{length}", closed.down, lambda closed: closed[1][1][0])
        operators.output(f"to-{length}", held, TestingSink(counts))
    run_main(flow)
    check(clock.events, sum(counts))


if __name__ == "__main__":
    main("bytewax", REQUIREMENTS, work)
