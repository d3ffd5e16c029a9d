"""`onceflow apply`: register definitions, and say what changes and what it costs."""

from __future__ import annotations

import json as codec
import os
import time
from pathlib import Path

import typer

from featurestore.definitions import View
from featurestore.errors import DefinitionError
from featurestore.grafting import graft_of
from featurestore.registry import Change, Entry, Registry
from onceflow import modules, settings
from onceflow.commands.check import state_size


def run(*, module: str, json: bool) -> None:
    """Register every view of the module; views that it no longer has are no longer current."""
    views = modules.load(module).views
    registry = Registry(settings.load(Path.cwd(), os.environ).data / "registry")
    before = {name: entry for name in views if (entry := registry.current(name)) is not None}
    changes = registry.diff([view.spec() for view in views.values()])
    now = time.time_ns() // 1_000_000
    for change in changes:
        if change.kind == "removed":
            registry.remove(change.view)
        else:
            registry.register(views[change.view].spec(), now)
    told = [_told(change, views.get(change.view), before.get(change.view)) for change in changes]
    typer.echo(codec.dumps({"changes": told}) if json else _text(told))


def _told(change: Change, view: View | None, before: Entry | None) -> dict[str, object]:
    return {
        "view": change.view,
        "kind": change.kind,
        "reasons": list(change.reasons),
        "fingerprint": view.fingerprint if view else None,
        "cost": _cost(change, view, before),
    }


def _cost(change: Change, view: View | None, before: Entry | None) -> str:
    if view is None:
        return "its states stay in Redis until their windows have passed"
    if change.kind == "unchanged":
        return "nothing"
    if before is not None and before.fingerprint == view.fingerprint:
        return "nothing: the state is the same"
    return (
        f"a new state, of an entity on a partition {state_size(view)}; it starts empty, unless filled by: "
        f"onceflow backfill --view {view.name} --events <archive of {view.source.name}> --online{_kept(view, before)}"
    )


def _kept(view: View, before: Entry | None) -> str:
    """What a backfill takes from the states of the definition before."""
    if before is None:
        return ""
    try:
        graft = graft_of(before.spec, view)
    except DefinitionError as error:
        return f", all of it from history: {error}"
    anew = ", ".join(feature.name for feature in graft.anew)
    needs = f"; only {anew} {'needs' if ',' not in anew else 'need'} history" if anew else ", and none needs history"
    return f", which keeps {len(graft.kept)} of {len(view.stored)} features from {graft.old.view.key}{needs}"


def _text(told: list[dict[str, object]]) -> str:
    lines = []
    for each in told:
        lines.append(f"{each['kind']:<10} {each['view']}")
        if each["kind"] != "unchanged":
            reasons = each["reasons"]
            assert isinstance(reasons, list)
            lines += [f"             {reason}" for reason in reasons]
            lines.append(f"             costs {each['cost']}")
    return "\n".join(lines)
