"""`onceflow check`: validate definitions, and show what they come to."""

from __future__ import annotations

import json as codec
from typing import Any

import typer

from featurestore.aggregates import Window
from featurestore.definitions import Feature, View
from featurestore.expressions import roots
from featurestore.formats import check_installed
from featurestore.joined import Joined
from featurestore.plan import compiled
from featurestore.sources import Source
from featurestore.times import ENDLESS
from learner import Service
from onceflow import modules

_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))


def run(*, module: str, json: bool) -> None:
    """Load the module, which checks it, and print sources, views and services.

    ConfigError: what reads the format of a source is not installed.
    """
    found = modules.load(module)
    for source in found.sources.values():
        check_installed(source)
    described = {
        "sources": [_source(source) for source in found.sources.values()],
        "views": [_view(view) for view in found.views.values()],
        "services": [_service(service) for service in found.services.values()],
    }
    typer.echo(codec.dumps(described) if json else _text(described))


def state_bytes(view: View) -> int | None:
    """The most bytes that one entity's state can take on one partition; None where they grow with its events.

    Texts come on top.
    """
    words = compiled(view).state_words
    return None if words is None else words * 8


def state_size(view: View) -> str:
    """The same in words."""
    size, texts = state_bytes(view), ", and its texts" if compiled(view).has_texts else ""
    return ("in proportion to the events in its windows" if size is None else f"at most {size:,} bytes") + texts


def span(milliseconds: int) -> str:
    """A duration as one writes it: "5m"."""
    if milliseconds >= ENDLESS:
        return "lifetime"
    return next(f"{milliseconds // size}{unit}" for unit, size in _UNITS if milliseconds % size == 0)


def _source(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "key": list(source.keys),
        "event_time": source.event_time,
        "columns": source.types,
        "derived": list(source.derived),
        "lateness": source.lateness,
        "max_lead": source.max_lead,
        "joined": _joined(source) if isinstance(source, Joined) else None,
        "repeats": None if source.id is None else {"id": source.id, "dedup": source.dedup},
    }


def _joined(source: Joined) -> dict[str, Any]:
    return {"of": [side.name for side in source.sides], "within": span(source.within_ms)}


def _view(view: View) -> dict[str, Any]:
    return {
        "name": view.name,
        "doc": view.doc,
        "version": view.version,
        "fingerprint": view.fingerprint,
        "entity": list(view.entity.keys),
        "source": view.source.name,
        "state_bytes_per_entity": state_bytes(view),
        "state_size": state_size(view),
        "features": [_feature(feature) for feature in view.features.values()],
    }


def _feature(feature: Feature) -> dict[str, Any]:
    made = {"name": feature.name, "type": feature.type}
    if feature.aggregate is None or feature.window is None:
        return {**made, "aggregate": "derived", "from": roots(feature.expression)}
    return {
        **made,
        "aggregate": type(feature.aggregate).__name__,
        "column": feature.aggregate.column,
        "filtered": feature.aggregate.where is not None,
        "window": feature.window.label,
        "over": _over(feature.window),
    }


def _over(window: Window) -> str:
    """What the window covers, in words."""
    if window.kind == "last":
        return f"the last {window.length} events"
    if window.kind == "session":
        return f"the session, which ends after {span(window.length)} without events"
    if window.length >= ENDLESS:
        return "all time"
    late = f", until {span(window.delay)} ago" if window.delay else ""
    if window.kind == "exact":
        return f"{span(window.length)} to the millisecond{late}"
    return f"{span(window.length)} in {-(-window.length // window.hop) + 1} tiles of {span(window.hop)}{late}"


def _service(service: Service) -> dict[str, Any]:
    return {
        "name": service.name,
        "on": service.on.name,
        "id": service.id,
        "inputs": list(service.inputs),
        "derived": [
            {"name": name, "type": kind, "aggregate": "derived", "from": roots(expression)}
            for name, (expression, kind) in service.feature_set.derived.items()
        ],
        "request": list(service.feature_set.requested),
        "label": {"source": service.label.source.name, "id": service.label.id, "wait": service.label.wait},
        "batch": service.batch,
    }


def _text(described: dict[str, Any]) -> str:
    lines = []
    for source in described["sources"]:
        columns = ", ".join(f"{name} {kind}" for name, kind in source["columns"].items())
        lines += [f"source {source['name']}, keyed by {', '.join(source['key'])}, time {source['event_time']}"]
        if joined := source["joined"]:
            lines += [f"  pairs of {' and '.join(joined['of'])} within {joined['within']}, made by a worker"]
        lines += [f"  {columns}", f"  late after {source['lateness']}, refused more than {source['max_lead']} ahead"]
        if told := source["repeats"]:
            lines += [f"  left out where one of {told['dedup']:,} records before has the same {told['id']}"]
    for view in described["views"]:
        entity = ", ".join(view["entity"])
        lines += ["", f"view {view['name']} v{view['version']} @{view['fingerprint']}: {entity} from {view['source']}"]
        lines += [f"  state of an entity on a partition: {view['state_size']}"]
        lines += [f"  {_feature_text(feature)}" for feature in view["features"]]
    for service in described["services"]:
        label = service["label"]
        lines += ["", f"service {service['name']} on {service['on']}, {len(service['inputs'])} inputs"]
        lines += [f"  {', '.join(service['inputs'])}", *(f"  {_feature_text(each)}" for each in service["derived"])]
        lines += [
            f"  labels from {label['source']} by {label['id']}, within {label['wait']}; learns {service['batch']}"
        ]
    return "\n".join([*lines, "", "All definitions can work."])


def _feature_text(feature: dict[str, Any]) -> str:
    head = f"{feature['name']:<24} {feature['type']:<14}"
    if feature["aggregate"] == "derived":
        return f"{head} derived from {', '.join(feature['from'])}"
    where = " where ..." if feature["filtered"] else ""
    return f"{head} {feature['aggregate']}({feature['column']}){where} over {feature['over']}"
