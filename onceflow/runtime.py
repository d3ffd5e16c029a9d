"""Putting a worker together from settings and definitions."""

from __future__ import annotations

import gc
import logging
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from featurestore import UnavailableError
from featurestore.confluent import Schemas
from featurestore.errors import ConfigError
from featurestore.forgotten import mirror_revision, prediction_revision
from featurestore.formats import check_installed
from featurestore.joined import Joined
from featurestore.online import connect
from featurestore.schema_registry import SchemaRegistry
from featurestore.sources import Source
from learner.store import ModelStore
from onceflow.modules import Definitions
from onceflow.names import worker_name
from onceflow.produce import add_partitions, ensure_topics
from onceflow.reading import admin_client, now_ms, topic_partitions
from onceflow.services import LiveService, ReplayService
from onceflow.settings import Settings
from onceflow.tails import sent_upto
from streams.app import build_app, run
from streams.messages import feature_topic, prediction_topic
from streams.mirror import Decode, Mirror, decode_features, predictions_decoder
from streams.options import Options
from streams.processor import Processor
from streams.publisher import Publisher
from streams.stats import Stats
from streams.transport import Delivery
from streams.worker import Worker

log = logging.getLogger(__name__)

ASK_SECONDS = 2.0
"""How long Kafka may take to answer before a worker says that it does not."""
RETRY_SECONDS = 0.5


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

    What is made from a source topic has as many partitions as it, also after some were added to it. ConfigError: topics
    that are joined differ in that.
    """
    sources = {view.source.name for view in definitions.every_view} | set(definitions.sources)
    sources |= {s.name for service in definitions.services.values() for s in (service.on, service.label.source)}
    made = {source.name for source in definitions.joins}
    if absent := sources - made - there.keys():
        ensure_topics(settings.kafka, dict.fromkeys(absent, settings.partitions))
        there = topic_partitions(settings.kafka)
    there = {**there, **_joined_topics(definitions.joins, settings, there)}
    wanted = {f"{name}.{suffix}": there[name] for name in sources for suffix in ("dlq", "late")}
    wanted |= {feature_topic(view): there[view.source.name] for view in definitions.every_view}
    wanted |= {prediction_topic(s.name): there[s.on.name] for s in definitions.services.values()}
    if absent := wanted.keys() - there.keys():
        ensure_topics(settings.kafka, {name: wanted[name] for name in absent})
    if smaller := {name: count for name, count in wanted.items() if there.get(name, count) < count}:
        add_partitions(settings.kafka, smaller)
    return {**there, **wanted}


def _joined_topics(joins: Sequence[Joined], settings: Settings, there: Mapping[str, int]) -> dict[str, int]:
    """Create the topics of joins that are not there; returns the partitions of all of them."""
    counts = dict(there)
    for source in joins:
        topics = [*(side.name for side in source.sides), *([source.name] if source.name in there else [])]
        if len({counts[topic] for topic in topics}) > 1:
            found = ", ".join(f"{topic} has {counts[topic]}" for topic in topics)
            raise ConfigError(
                f"join {source.name!r}: its topics need the same number of partitions, for a key must lie in the same "
                f"one of each, and {found}. Copy the events to topics with as many; an older topic of the join is to go"
            )
        counts[source.name] = counts[source.left.name]
    made = {source.name: counts[source.name] for source in joins}
    if absent := made.keys() - there.keys():
        ensure_topics(settings.kafka, {name: made[name] for name in absent})
    return made


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
        for view in definitions.every_view
    }
    for service in definitions.services.values():
        decode = predictions_decoder(service.inputs)
        grid = service.on.grid(settings.grid)
        feeds[prediction_topic(service.name)] = (f"predictions/{service.name}", decode, grid)
    events = settings.data / "events"
    revisions = {feature_topic(view): partial(mirror_revision, events, view) for view in definitions.every_view}
    for service in definitions.services.values():
        grid = service.on.grid(settings.grid)
        revisions[prediction_topic(service.name)] = partial(
            prediction_revision, events, service.on, service.views, grid
        )
    return Mirror(settings.data, feeds, revisions), list(feeds)


def schemas_of(definitions: Definitions, settings: Settings) -> Schemas | None:
    """The schema registry, where a source needs one; ConfigError when it is not set then, or formats cannot be read."""
    sources = [view.source for view in definitions.every_view]
    sources += [source for service in definitions.services.values() for source in (service.on, service.label.source)]
    sources += [side for source in definitions.joins for side in source.sides]
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
    """A worker over all views, services and joins of the definitions, with its topics in place.

    One that stops at the end has others make all pairs first: then topics of pairs are topics like any other, and what
    it reads of them is in order with all else. ConfigError: a replay that goes on cannot do so.
    """
    if definitions.joins and settings.mode == "replay" and not until_end:
        raise ConfigError("a replay makes the pairs of its joins before all else, and so must end: add --until-end")
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
        gather=settings.gather_ms / 1000,
        chunk=settings.chunk,
        buffer=2 * settings.chunk,
        archive=settings.data / "events" if settings.archive else None,
        forgotten=settings.data / "events",
        grid=settings.grid,
        memory=settings.memory_mb << 20,
    )
    worker = Worker(
        schemas=schemas_of(definitions, settings),
        views=definitions.every_view,
        processors=processors_of(definitions, settings),
        joins=() if until_end else definitions.joins,
        sent=partial(sent_upto, settings.kafka),
        named=definitions.told_at,
        partitions=partitions,
        store=connect(settings.redis, patience=None),
        publisher=publisher,
        mirror=mirror,
        mirrored=feeds,
        options=options,
        owner=secrets.token_hex(16),
        now=now_ms,
    )
    if until_end:
        worker.first = _joining_first(worker, definitions.joins, settings)
    return worker


def _joining_first(worker: Worker, joins: Sequence[Joined], settings: Settings) -> list[Worker]:
    """Workers that make the pairs of all joins, one for each depth: what is joined of pairs needs those first."""
    first: list[Worker] = []
    read = set(worker.sources)  # by those that come later: they set aside what is refused
    for depth in range(max(map(_depth, joins), default=0), 0, -1):
        chosen = [source for source in joins if _depth(source) == depth]
        made = replace(
            worker,
            views=(),
            processors=(),
            joins=chosen,
            named=[*((view, view.source.name) for view in worker.views), *worker.named],
            mirror=None,
            mirrored=(),
            read_later=frozenset(read),
            store=connect(settings.redis, patience=None),
            owner=secrets.token_hex(16),
            stats=Stats(),
        )
        read |= set(made.sources)
        first.insert(0, made)
    return first


def _depth(source: Source) -> int:
    return 1 + max(map(_depth, source.sides)) if isinstance(source, Joined) else 0


def run_worker(worker: Worker, settings: Settings) -> None:
    """Run it, after those that come first, until it has ended, failed, or was told to stop."""
    # Every record is an object: with Python's defaults the collector walks all of them, and all modules, over and over.
    # The thread that computes would keep those that fetch and store waiting for five milliseconds at a time.
    sys.setswitchinterval(0.0005)
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)
    for each in worker.first:
        if not _run_one(each, settings):
            return
        worker.stats.add_joined(each.stats)
    _run_one(worker, settings)


def _run_one(worker: Worker, settings: Settings) -> bool:
    """Run one worker; returns whether it has ended, and was not told to stop."""
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
    ended = run(app, worker.main)
    log.info("the worker has stopped", extra={"events": worker.stats.events})
    return ended


def _told(worker: Worker, settings: Settings) -> dict[str, object]:
    """What a worker says of itself when it starts."""
    servers = {"kafka": settings.kafka, "redis": settings.redis}
    made = {
        "views": [view.name for view in worker.views],
        "joins": [source.name for source in worker.joins],
    }
    return {**servers, "group": settings.group, "mode": settings.mode, **made}
