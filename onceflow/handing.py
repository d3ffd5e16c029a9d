"""`onceflow backfill --online`: states into Redis, those of an older definition taken over."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from rich.progress import Progress

from batch.grafts import Kept, Older, older, take_over
from batch.handover import hand_over
from featurestore.definitions import View
from featurestore.forgotten import Forgotten
from featurestore.online import connect
from featurestore.registry import Registry
from featurestore.stores import OnlineStore
from onceflow import settings

_T = TypeVar("_T")


def find_older(view: View, ends: Mapping[int, int]) -> Older:
    """Look for an older definition of the view: registered, and with states in Redis."""
    entries = Registry(settings.load(Path.cwd(), os.environ).data / "registry").entries()
    specs = [entry.spec for entry in entries if entry.view == view.name]
    return _with_store(lambda store: older(view, specs, max(ends, default=0) + 1, store))


def hand_over_online(
    view: View,
    older_one: Older,
    events: pl.DataFrame,
    ends: Mapping[int, int],
    forgotten: Mapping[int, Sequence[Forgotten]],
    progress: Progress,
) -> dict[str, Any]:
    """Write the view's states, and say what was written, kept and folded anew."""
    task = progress.add_task(f"{view.name} -> Redis", total=len(events))
    owner, now = secrets.token_hex(16), time.time_ns() // 1_000_000

    async def work(store: OnlineStore) -> dict[str, Any]:
        kept: Kept | str = older_one.reason
        if older_one.graft is not None:
            kept = await take_over(older_one.graft, events, ends, store, owner=owner, now=now, forgotten=forgotten)
        done = await hand_over(
            view,
            events,
            ends,
            store,
            owner=owner,
            now=now,
            forgotten=forgotten,
            progress=lambda count: progress.update(task, completed=count),
        )
        if isinstance(kept, str):
            return {**vars(done), "kept": None, "reason": kept}
        return {**vars(done), "states": kept.states + done.states, "kept": vars(kept), "reason": ""}

    return _with_store(work)


def told(online: Mapping[str, Any]) -> list[str]:
    """What was done, in words."""
    lines, kept = [], online["kept"]
    if kept:
        count = len(kept["features"])
        lines.append(f"kept {count} of {count + len(kept['anew'])} features from {kept['of']}")
        anew = f"folded anew: {', '.join(kept['anew'])}"
        since = [f"offset {offset} of partition {partition}" for partition, offset in kept["since"].items()]
        lines += [anew + (f", from {', '.join(since)} on" if since else "")] if kept["anew"] else []
    elif online["reason"]:
        lines.append(f"nothing taken from an older definition: {online['reason']}")
    return [*lines, f"{online['states']:,} states written to Redis; the stream goes on from there"]


def _with_store(work: Callable[[OnlineStore], Awaitable[_T]]) -> _T:
    async def run() -> _T:
        store = connect(settings.load(Path.cwd(), os.environ).redis)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())
