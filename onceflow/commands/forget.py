"""`onceflow forget`: erase an entity, from the stream on."""

from __future__ import annotations

import asyncio
import json as codec
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from featurestore.errors import ConfigError
from featurestore.online import connect
from featurestore.registry import Registry
from onceflow import modules, settings
from onceflow.escaping import escaped
from onceflow.forget import Target, erase_older, records, send, targets
from onceflow.modules import Definitions
from onceflow.reading import topic_partitions
from onceflow.runtime import views_of
from onceflow.settings import Settings
from streams.messages import Message


def run(*, entity: str, keys: list[str], module: str, yes: bool, json: bool) -> int:
    """Show the records that erase the entity and, with `yes`, send them."""
    definitions, chosen = modules.load(module), settings.load(Path.cwd(), os.environ)
    found = targets(definitions, entity, keys)
    partitions = topic_partitions(chosen.kafka)
    messages = records(entity, found, partitions)
    if not messages:
        names = ", ".join(each.source.name for each in found)
        raise ConfigError(f"Kafka at {chosen.kafka} has none of the topics {names}: there is nothing to erase yet")
    offsets: Sequence[int | None] = [None] * len(messages)
    older = 0
    if yes:
        offsets = asyncio.run(send(chosen.kafka, messages))
        older = asyncio.run(_erase_older(definitions, chosen, entity, found, partitions))
    if json:
        typer.echo(codec.dumps(_plain(entity, keys, found, messages, offsets) | {"older_states": older}))
    else:
        typer.echo(_text(entity, keys, found, messages, offsets, older))
    return 0


async def _erase_older(
    definitions: Definitions, chosen: Settings, entity: str, found: Sequence[Target], partitions: Mapping[str, int]
) -> int:
    entries = Registry(chosen.data / "registry").entries()
    store = connect(chosen.redis)
    try:
        return await erase_older(entity, found, views_of(definitions), entries, partitions, store)
    finally:
        await store.close()


def _plain(
    entity: str,
    keys: Sequence[str],
    found: Sequence[Target],
    messages: Sequence[Message],
    offsets: Sequence[int | None],
) -> dict[str, object]:
    lines = [
        {"topic": each.topic, "partition": each.partition, "offset": offset}
        for each, offset in zip(messages, offsets, strict=True)
    ]
    kept = {each.source.name: list(each.kept) for each in found if each.kept}
    return {"entity": entity, "key": list(keys), "sent": offsets[0] is not None, "records": lines, "kept": kept}


def _text(
    entity: str,
    keys: Sequence[str],
    found: Sequence[Target],
    messages: Sequence[Message],
    offsets: Sequence[int | None],
    older: int,
) -> str:
    lines = []
    for each in found:
        mine = [at for message, at in zip(messages, offsets, strict=True) if message.topic == each.source.name]
        told = "" if None in mine else f", at offsets {', '.join(map(str, mine))}"
        lines.append(f"{each.source.name}: a record to each of {len(mine)} partitions{told}")
        if each.kept:
            names = ", ".join(each.kept)
            lines.append(f"  its archive goes on holding {names}, which views of other entities read")
    lines += [f"{older:,} states of older definitions deleted"] if older else []
    who = escaped(f"{entity} {' '.join(keys)}")
    if None in offsets:
        return "\n".join([f"This would erase {who}:", *lines, "Nothing was sent. Give --yes to do it."])
    return "\n".join([f"Erasing {who}, as the workers come to it:", *lines])
