"""`onceflow worker`: fold events into features, and predict."""

from __future__ import annotations

import json
import os
from pathlib import Path

import typer

from featurestore.deferred import spare_pandas
from onceflow.logs import Logs
from onceflow.names import worker_name
from onceflow.settings import Settings
from onceflow.settings import load as load_settings
from streams.publisher import Publisher


def run(*, module: str, mode: str | None, until_end: bool) -> None:
    """Run a worker until it is stopped or, with `until_end`, until the topics' present end; then print what it did.

    A replay leaves the models that it ends with in the model store, as champions.
    """
    settings = load_settings(Path.cwd(), os.environ, mode=mode)
    with Logs(settings, process="worker", worker=worker_name()):
        # To be ready to send takes this half a second: meanwhile the rest is imported.
        _run(module, settings, Publisher(settings.kafka), until_end=until_end)


def _run(module: str, settings: Settings, publisher: Publisher, *, until_end: bool) -> None:
    from learner.store import ModelStore  # noqa: PLC0415
    from onceflow.modules import load as load_module  # noqa: PLC0415
    from onceflow.runtime import build_worker, run_worker  # noqa: PLC0415
    from onceflow.services import ReplayService  # noqa: PLC0415

    definitions = load_module(module)
    spare_pandas()
    worker = build_worker(definitions, settings, publisher, until_end=until_end)
    if settings.metrics_port:
        from onceflow.metrics import WorkerCollector, serve_metrics  # noqa: PLC0415 - most do not need it

        serve_metrics(WorkerCollector(worker.stats, worker.processors, worker.lag), settings.metrics_port)
    run_worker(worker, settings)
    learnt = [processor for processor in worker.processors if isinstance(processor, ReplayService)]
    for service in learnt:
        service.publish(ModelStore(settings.data / "models"))
    if until_end:
        services = {service.name: service.summary for service in learnt}
        typer.echo(json.dumps({**worker.stats.summary(), "services": services}))
