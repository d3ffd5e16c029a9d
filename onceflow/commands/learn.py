"""`onceflow learn`: join labels to predictions, and keep the models learning."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from threading import Event, Thread
from types import FrameType

from featurestore.errors import ConfigError
from learner.inputs import Options
from learner.live import LiveLearner, alone
from learner.live import run as learn
from learner.store import ModelStore
from onceflow.logs import Logs
from onceflow.metrics import LearnerCollector, serve_metrics
from onceflow.modules import load as load_module
from onceflow.runtime import schemas_of
from onceflow.settings import Settings
from onceflow.settings import load as load_settings


def run(*, module: str, mode: str | None = None) -> None:
    """Learn until stopped, then leave a snapshot and a model of everything learnt.

    ConfigError: the module has no service, or another learner runs. FormatError: a snapshot cannot be used.
    """
    settings = load_settings(Path.cwd(), os.environ, mode=mode)
    with Logs(settings, process="learn"):
        _learn(module, settings)


def _learn(module: str, settings: Settings) -> None:
    definitions = load_module(module)
    services = definitions.services.values()
    if not services:
        raise ConfigError(f"module {module!r} has no service to learn for: define a learner.Service")
    replay, schemas = settings.mode == "replay", schemas_of(definitions, settings)
    options = Options(replay=replay, max_wait=settings.max_wait_ms / 1000, schemas=schemas)
    folder, store = settings.data / "snapshots", ModelStore(settings.data / "models")
    with alone(folder):
        learners = [LiveLearner(service, folder, store, options) for service in services]
        if settings.metrics_port:
            serve_metrics(LearnerCollector(learners), settings.metrics_port)
        learn(learners, settings.kafka, _told_to_stop())


def _told_to_stop() -> Event:
    """An event that SIGTERM and SIGINT set."""
    stop = Event()

    def tell(_: int, __: FrameType | None) -> None:
        Thread(target=stop.set).start()  # in this thread it could interrupt a wait that holds the event's lock

    signal.signal(signal.SIGTERM, tell)
    signal.signal(signal.SIGINT, tell)
    return stop
