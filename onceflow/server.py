"""Putting a server of features and predictions together from settings and definitions."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from featurestore.errors import UnavailableError
from featurestore.online import connect
from learner.store import ModelStore
from onceflow.modules import Definitions
from onceflow.reading import admin_client, build_reader, now_ms, topic_partitions
from onceflow.settings import Settings
from serving.api import build_application
from serving.http import serve
from serving.reader import FeatureReader

GROWTH_SECONDS = 10.0
"""How often Kafka is asked whether topics have more partitions, as a worker does."""

_log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 1.0  # a caller would rather be told than wait


def run_server(definitions: Definitions, settings: Settings) -> None:
    """Serve until interrupted. ConfigError: the address is taken. UnavailableError: Kafka does not answer at start."""
    asyncio.run(_serve(definitions, settings))


async def _serve(definitions: Definitions, settings: Settings) -> None:
    store = connect(settings.redis, _PATIENCE_SECONDS)
    reader = build_reader(definitions, settings, store)
    reader.warm()
    application = build_application(
        definitions.views,
        definitions.services,
        store=store,
        reader=reader,
        models=ModelStore(settings.data / "models"),
        now=now_ms,
    )
    growing = asyncio.create_task(follow_growth(reader, settings.kafka))
    try:
        await serve(application, settings.http_host, settings.http_port, _say)
    finally:
        growing.cancel()
        await store.close()


async def follow_growth(reader: FeatureReader, kafka: str) -> None:
    """Tell the reader of partitions that are added; while Kafka is away there are none."""
    admin = admin_client(kafka)
    while True:
        await asyncio.sleep(GROWTH_SECONDS)
        with suppress(UnavailableError):
            reader.grow(await asyncio.to_thread(topic_partitions, kafka, admin))


def _say(address: str) -> None:
    _log.info("serving", extra={"address": address})
