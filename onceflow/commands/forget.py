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
from onceflow.forget import Older, Target, erase_older, older_definitions, records, send, targets
from onceflow.reading import topic_partitions
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
    older = older_definitions(entity, found, definitions.every_view, Registry(chosen.data / "registry").entries())
    count = 0
    if yes:
        offsets = asyncio.run(send(chosen.kafka, messages))
        count = asyncio.run(_erase_older(older, partitions, chosen.redis))
    left = [each for each in older if each.key is None]
    if json:
        told = {"older_states": count, "older_left": [_plain_older(each) for each in left]}
        typer.echo(codec.dumps(_plain(entity, keys, found, messages, offsets) | told))
    else:
        typer.echo(_text(entity, keys, found, messages, offsets, _lines_of_older(count, left)))
    return 0


async def _erase_older(older: Sequence[Older], partitions: Mapping[str, int], redis: str) -> int:
    store = connect(redis)
    try:
        return await erase_older(older, partitions, store)
    finally:
        await store.close()


def _plain_older(older: Older) -> dict[str, object]:
    return {"view": older.view_key, "topic": older.topic, "columns": list(older.columns)}


def _lines_of_older(count: int, left: Sequence[Older]) -> list[str]:
    """What becomes of the states of older definitions: how many are deleted, and those that cannot be named."""
    lines = [f"{count:,} states of older definitions deleted"] if count else []
    for each in left:
        columns, pattern = ", ".join(each.columns), f"{{{each.topic}:*}}:{each.view_key}:*"
        lines.append(
            f"not erased: states of {each.view_key}, an older definition, whose entities are told apart by {columns} "
            f"of {each.topic}; to delete all that it has:"
        )
        lines.append(f"  redis-cli --scan --pattern '{pattern}' | xargs redis-cli unlink")
    return lines


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
    older: Sequence[str],
) -> str:
    lines = []
    for each in found:
        mine = [at for message, at in zip(messages, offsets, strict=True) if message.topic == each.source.name]
        told = "" if None in mine else f", at offsets {', '.join(map(str, mine))}"
        lines.append(f"{each.source.name}: a record to each of {len(mine)} partitions{told}")
        if each.kept:
            names = ", ".join(each.kept)
            lines.append(f"  its archive goes on holding {names}, which views of other entities read")
    lines += map(escaped, older)
    who = escaped(f"{entity} {' '.join(keys)}")
    if None in offsets:
        return "\n".join([f"This would erase {who}:", *lines, "Nothing was sent. Give --yes to do it."])
    return "\n".join([f"Erasing {who}, as the workers come to it:", *lines])
