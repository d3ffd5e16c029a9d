"""`onceflow serve`: features and predictions over HTTP."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import typer

from featurestore.online import connect
from learner.store import ModelStore
from onceflow.modules import Definitions
from onceflow.modules import load as load_module
from onceflow.reading import build_reader, now_ms
from onceflow.settings import Settings
from onceflow.settings import load as load_settings
from serving.api import build_application
from serving.http import serve

_PATIENCE_SECONDS = 1.0  # a caller would rather be told than wait


def run(module: str, host: str | None, port: int | None) -> None:
    """Serve until interrupted. ConfigError: the address is taken. UnavailableError: Kafka does not answer at start."""
    settings = load_settings(Path.cwd(), os.environ, http_host=host, http_port=port)
    asyncio.run(_serve(load_module(module), settings))


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
    typer.echo(f"serving at {address}")
