"""Putting a server of features and predictions together from settings and definitions."""

from __future__ import annotations

import asyncio
import logging

from featurestore.online import connect
from learner.store import ModelStore
from onceflow.modules import Definitions
from onceflow.reading import build_reader, now_ms
from onceflow.settings import Settings
from serving.api import build_application
from serving.http import serve

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
    try:
        await serve(application, settings.http_host, settings.http_port, _say)
    finally:
        await store.close()


def _say(address: str) -> None:
    _log.info("serving", extra={"address": address})
