"""Putting a worker together from settings and definitions."""

from __future__ import annotations

import gc
import logging
import secrets
import sys
import time
from collections.abc import Mapping
from functools import partial

from featurestore import UnavailableError, View
from featurestore.confluent import Schemas
from featurestore.errors import ConfigError
from featurestore.forgotten import mirror_revision, prediction_revision
from featurestore.formats import check_installed
from featurestore.online import connect
from featurestore.schema_registry import SchemaRegistry
from learner.store import ModelStore
from onceflow.modules import Definitions
from onceflow.names import worker_name
from onceflow.produce import add_partitions, ensure_topics
from onceflow.reading import admin_client, now_ms, topic_partitions
from onceflow.services import LiveService, ReplayService
from onceflow.settings import Settings
from streams.app import build_app, run
from streams.messages import feature_topic, prediction_topic
from streams.mirror import Decode, Mirror, decode_features, predictions_decoder
from streams.options import Options
from streams.processor import Processor
from streams.publisher import Publisher
from streams.transport import Delivery
from streams.worker import Worker

log = logging.getLogger(__name__)

ASK_SECONDS = 2.0
"""How long Kafka may take to answer before a worker says that it does not."""
RETRY_SECONDS = 0.5


def views_of(definitions: Definitions) -> list[View]:
    """Every view: of the module, and those that only a service names."""
    named = [*definitions.views.values(), *(view for s in definitions.services.values() for view in s.views)]
    return list({view.key: view for view in named}.values())


def wait_for_kafka(kafka: str) -> dict[str, int]:
    """The number of partitions of every topic there is, as soon as Kafka answers, however long that takes."""
    admin, said = admin_client(kafka), False
    while True:
        try:
            return topic_partitions(kafka, admin, ASK_SECONDS)
        except UnavailableError as error:
            if not said:
                log.warning("Kafka does not answer, trying again", extra={"kafka": kafka, "error": error})
                said = True
            time.sleep(RETRY_SECONDS)


def prepare_topics(definitions: Definitions, settings: Settings, there: Mapping[str, int]) -> dict[str, int]:
    """Create the topics that the definitions need and that are not `there`; returns partitions by topic.

    What is made from a source topic has as many partitions as it, also after some were added to it.
    """
    sources = {view.source.name for view in views_of(definitions)} | set(definitions.sources)
    sources |= {s.name for service in definitions.services.values() for s in (service.on, service.label.source)}
    if absent := sources - there.keys():
        ensure_topics(settings.kafka, dict.fromkeys(absent, settings.partitions))
        there = topic_partitions(settings.kafka)
    wanted = {f"{name}.{suffix}": there[name] for name in sources for suffix in ("dlq", "late")}
    wanted |= {feature_topic(view): there[view.source.name] for view in views_of(definitions)}
    wanted |= {prediction_topic(s.name): there[s.on.name] for s in definitions.services.values()}
    if absent := wanted.keys() - there.keys():
        ensure_topics(settings.kafka, {name: wanted[name] for name in absent})
    if smaller := {name: count for name, count in wanted.items() if there.get(name, count) < count}:
        add_partitions(settings.kafka, smaller)
    return {**there, **wanted}


def processors_of(definitions: Definitions, settings: Settings) -> list[Processor]:
    """The services as a worker of these settings runs them."""
    services = definitions.services.values()
    if settings.mode == "replay":
        return [ReplayService(service, settings.data / "snapshots") for service in services]
    return [LiveService(service, ModelStore(settings.data / "models")) for service in services]


def mirror_of(definitions: Definitions, settings: Settings) -> tuple[Mirror | None, list[str]]:
    """The mirror of what is sent, and the topics that it reads."""
    if not settings.mirror:
        return None, []
    feeds: dict[str, tuple[str, Decode, int]] = {
        feature_topic(view): (f"features/{view.name}", decode_features, view.source.grid(settings.grid))
        for view in views_of(definitions)
    }
    for service in definitions.services.values():
        decode = predictions_decoder(service.inputs)
        grid = service.on.grid(settings.grid)
        feeds[prediction_topic(service.name)] = (f"predictions/{service.name}", decode, grid)
    events = settings.data / "events"
    revisions = {feature_topic(view): partial(mirror_revision, events, view) for view in views_of(definitions)}
    for service in definitions.services.values():
        grid = service.on.grid(settings.grid)
        revisions[prediction_topic(service.name)] = partial(
            prediction_revision, events, service.on, service.views, grid
        )
    return Mirror(settings.data, feeds, revisions), list(feeds)


def schemas_of(definitions: Definitions, settings: Settings) -> Schemas | None:
    """The schema registry, where a source needs one; ConfigError when it is not set then, or formats cannot be read."""
    sources = [view.source for view in views_of(definitions)]
    sources += [source for service in definitions.services.values() for source in (service.on, service.label.source)]
    for source in sources:
        check_installed(source)
    if settings.schema_registry:
        return SchemaRegistry(settings.schema_registry)
    if named := next((source.name for source in sources if source.registered), None):
        raise ConfigError(f"source {named!r} needs a schema registry: set schema_registry to its address")
    return None


def build_worker(
    definitions: Definitions, settings: Settings, publisher: Publisher | None = None, *, until_end: bool = False
) -> Worker:
    """A worker over all views and services of the definitions, with its topics in place."""
    publisher = publisher or Publisher(settings.kafka)
    try:
        partitions = prepare_topics(definitions, settings, wait_for_kafka(settings.kafka))
    except UnavailableError:  # it went away in between, or it refuses, and then will again
        partitions = prepare_topics(definitions, settings, wait_for_kafka(settings.kafka))
    mirror, feeds = mirror_of(definitions, settings)
    options = Options(
        replay=settings.mode == "replay",
        until_end=until_end,
        max_wait=settings.max_wait_ms / 1000,
        chunk=settings.chunk,
        buffer=2 * settings.chunk,
        archive=settings.data / "events" if settings.archive else None,
        forgotten=settings.data / "events",
        grid=settings.grid,
        memory=settings.memory_mb << 20,
    )
    return Worker(
        schemas=schemas_of(definitions, settings),
        views=views_of(definitions),
        processors=processors_of(definitions, settings),
        partitions=partitions,
        store=connect(settings.redis, patience=None),
        publisher=publisher,
        mirror=mirror,
        mirrored=feeds,
        options=options,
        owner=secrets.token_hex(16),
        now=now_ms,
    )


def run_worker(worker: Worker, settings: Settings) -> None:
    """Run until it has ended, failed, or was told to stop."""
    # Every record is an object: with Python's defaults the collector walks all of them, and all modules, over and over.
    # The thread that computes would keep those that fetch and store waiting for five milliseconds at a time.
    sys.setswitchinterval(0.0005)
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)
    topics = [*worker.sources, *worker.mirrored]
    delivery = Delivery(
        positions=worker.positions,
        lead=worker.lead,
        assigned=worker.assigned,
        revoked=worker.revoked,
        headers=frozenset(name for name, source in worker.sources.items() if source.headers),
        columns=settings.transport == "columns",
        gather=worker.gather,
    )
    app = build_app(
        settings.group,
        settings.kafka,
        topics,
        worker.receive,
        delivery=delivery,
        session_timeout_ms=settings.session_timeout_ms,
        alone=settings.alone or worker.options.until_end,
        client=worker_name(),
    )
    log.info("the worker starts", extra=_told(worker, settings))
    run(app, worker.main)
    log.info("the worker has stopped", extra={"events": worker.stats.events})


def _told(worker: Worker, settings: Settings) -> dict[str, object]:
    """What a worker says of itself when it starts."""
    servers = {"kafka": settings.kafka, "redis": settings.redis}
    return {**servers, "group": settings.group, "mode": settings.mode, "views": [view.name for view in worker.views]}
