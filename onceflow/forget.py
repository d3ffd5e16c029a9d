"""Erasing an entity: the records that say so, and the states that no worker looks after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from featurestore.definitions import View
from featurestore.erasures import HEADER, entities_of, naming
from featurestore.errors import ConfigError, DataError
from featurestore.expressions import closest
from featurestore.keys import encode_entity
from featurestore.registry import Entry
from featurestore.sources import Entity, Source
from featurestore.stores import OnlineStore
from onceflow.commands.get import key_of
from onceflow.modules import Definitions
from streams.messages import Message
from streams.publisher import Publisher


@dataclass(frozen=True)
class Target:
    """A topic that tells of an entity: its key there, encoded, and the columns that go on naming it in the archive."""

    source: Source
    columns: tuple[str, ...]
    key: bytes
    kept: tuple[str, ...]

    def key_by(self, columns: Sequence[str]) -> bytes | None:
        """The encoded key where these columns identify the entity; None where it cannot be made of this one."""
        values = dict(zip(self.columns, self.key.split(b","), strict=True))
        return b",".join(map(values.__getitem__, columns)) if values.keys() == set(columns) else None


@dataclass(frozen=True)
class Older:
    """A definition that is no longer the module's, and the entity's key in it; None: that cannot be told."""

    view_key: str
    topic: str
    columns: tuple[str, ...]
    key: bytes | None


def targets(definitions: Definitions, name: str, texts: Sequence[str]) -> list[Target]:
    """Where an entity, with a text for each key column, is to be erased. ConfigError: there is no such entity."""
    views, reads = definitions.every_view, definitions.told_at
    entities = {view.entity.name: view.entity for view in views}
    if name not in entities:
        raise ConfigError(f"no view is about an entity {name!r}; {closest(name, entities)}")
    found = []
    for source in definitions.sources.values():
        if (columns := entities_of(source.name, views, reads).get(name)) is not None:
            kept = naming(source, name, views, reads).kept
            found.append(Target(source, columns, _encoded(Entity(name, columns), source, texts), kept))
    return found


def _encoded(entity: Entity, source: Source, texts: Sequence[str]) -> bytes:
    try:
        return encode_entity(key_of(entity, source, texts))
    except DataError as error:
        raise ConfigError(str(error)) from None


def records(name: str, chosen: Iterable[Target], partitions: Mapping[str, int]) -> list[Message]:
    """The records that erase the entity called `name`: one for each partition of each topic that there is."""
    headers = {HEADER: name.encode()}
    return [
        Message(each.source.name, partition, None, each.key, headers)
        for each in chosen
        for partition in range(partitions.get(each.source.name, 0))
    ]


async def send(kafka: str, messages: Sequence[Message]) -> list[int]:
    """Send records; the offset that each one has got. Raises UnavailableError."""
    publisher = Publisher(kafka)
    publisher.send(messages)
    await publisher.flush()
    return [publisher.ends[each.topic, each.partition] - 1 for each in messages]


def older_definitions(
    name: str, chosen: Iterable[Target], views: Iterable[View], registered: Iterable[Entry]
) -> list[Older]:
    """The registered definitions about the entity called `name` that are no longer the module's."""
    by_topic, current = {each.source.name: each for each in chosen}, {view.key for view in views}
    found = []
    for entry in registered:
        view_key, columns = f"{entry.view}@{entry.fingerprint}", tuple(entry.spec["entity"]["key"])
        if entry.spec["entity"]["name"] == name and view_key not in current:
            target = by_topic.get(entry.source)
            key = None if target is None else target.key_by(columns)
            found.append(Older(view_key, entry.source, columns, key))
    return list(dict.fromkeys(found))  # a definition may be registered under several versions


async def erase_older(older: Iterable[Older], partitions: Mapping[str, int], store: OnlineStore) -> int:
    """Delete the entity's states of older definitions where its key is known; returns how many there were."""
    count = 0
    for each in older:
        keys = [] if each.key is None else [each.key]
        for partition in range(partitions.get(each.topic, 0)):
            count += await store.erase(each.view_key, each.topic, partition, keys)
    return count
