"""Schemas that the records of a batch name, waited for while their registry is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from featurestore.confluent import NO_SCHEMAS, Loads, Schemas, ids_of
from featurestore.errors import UnavailableError
from featurestore.sources import Source
from streams.batches import Batch

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Seconds until a registry that is away is asked again."""


async def known_schemas(registry: Schemas | None, source: Source, batch: Batch) -> Mapping[int, Loads]:
    """What reads the records of a batch of the source; nothing where they name no schemas."""
    if registry is None or not source.registered:
        return NO_SCHEMAS
    ids, told = ids_of(batch.values), False
    while True:
        try:
            return await asyncio.to_thread(registry.loaders, ids)
        except UnavailableError as error:
            if not told:
                log.warning("the schema registry does not answer, trying again", extra={"error": error})
                told = True
            await asyncio.sleep(RETRY_SECONDS)
