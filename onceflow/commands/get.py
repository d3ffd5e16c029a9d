"""`onceflow get`: an entity's online features."""

from __future__ import annotations

import asyncio
import json as codec
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from featurestore import ConfigError, DataError, Entity, Source, View
from featurestore.expressions import closest
from featurestore.online import connect
from onceflow.modules import Definitions
from onceflow.modules import load as load_module
from onceflow.reading import build_reader
from onceflow.settings import Settings
from onceflow.settings import load as load_settings
from serving.instants import instant, rfc3339
from serving.reader import NOT_FOUND, Key, Lookup

_FAILED = 1
_BOOLS = {"true": True, "false": False}


def run(view: str, keys: list[str], module: str, as_of: str | None, json: bool) -> int:
    """Print the features and return the exit code: 1 when nothing is stored of the entity.

    ConfigError: no such view, or keys and time that cannot be read.
    """
    settings = load_settings(Path.cwd(), os.environ)
    definitions = load_module(module)
    chosen = definitions.views.get(view)
    if chosen is None:
        raise ConfigError(f"there is no view {view!r} in {module!r}; {closest(view, definitions.views)}")
    entity = entity_of(chosen, keys)
    found = asyncio.run(_read(definitions, settings, Lookup(chosen, [entity], _instant(as_of))))
    if found["_status"] == NOT_FOUND:
        typer.echo(f"onceflow: nothing is stored of {chosen.entity.name} {_shown(entity)} in {view}", err=True)
        return _FAILED
    features = {name: _plain(found[name]) for name in chosen.outputs}
    if json:
        keyed = dict(zip(chosen.entity.keys, entity, strict=True))
        head = {"view": view, "entity": keyed, "effective_time": found["_effective"], "status": found["_status"]}
        typer.echo(codec.dumps(head | {"newest_event": found["_newest"], "features": features}))
    else:
        _print(chosen, entity, found, features)
    return 0


def entity_of(view: View, texts: Sequence[str]) -> Key:
    """The entity that the texts name, one a key column, in the types of the columns. Raises ConfigError."""
    return key_of(view.entity, view.source, texts)


def key_of(entity: Entity, source: Source, texts: Sequence[str]) -> tuple[str | int | bool, ...]:
    """The key that the texts are of an entity, in the types of a source's columns. Raises ConfigError."""
    columns = entity.keys
    if len(texts) != len(columns):
        raise ConfigError(f"{entity.name!r} is identified by {', '.join(columns)}: give {len(columns)} value(s)")
    return tuple(_value(source.types[column], column, text) for column, text in zip(columns, texts, strict=True))


def _value(kind: str, column: str, text: str) -> str | int | bool:
    if kind == "str":
        return text
    try:
        return _BOOLS[text.lower()] if kind == "bool" else int(text)
    except (KeyError, ValueError):
        raise ConfigError(f"{column!r} is a {kind}, and {text!r} is none") from None


def _instant(text: str | None) -> int | None:
    try:
        return None if text is None else instant(text)
    except DataError as error:
        raise ConfigError(f"--as-of: {error}") from None


async def _read(definitions: Definitions, settings: Settings, lookup: Lookup) -> dict[str, Any]:
    store = connect(settings.redis)
    try:
        [frame] = await build_reader(definitions, settings, store).read([lookup])
    finally:
        await store.close()
    return frame.row(0, named=True)


def _plain(value: object) -> object:
    """JSON has no NaN and no infinity."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(entity: Key) -> str:
    return ", ".join(repr(value) for value in entity)


def _print(view: View, entity: Key, found: dict[str, Any], features: dict[str, object]) -> None:
    table = Table("feature", "value", title=Text(f"{view.name} of {_shown(entity)}"), title_justify="left")
    for name, value in features.items():
        at_time = view.outputs[name] == "timestamp[ms]" and isinstance(value, int)
        table.add_row(name, Text(rfc3339(value) if at_time else codec.dumps(value, ensure_ascii=False)))  # type: ignore[arg-type]
    console = Console()
    console.print(table)
    console.print(f"as of {rfc3339(found['_effective'])} ({found['_effective']})", highlight=False)
