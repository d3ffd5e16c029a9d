"""The server's routes: features, predictions, the catalogue, health and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import msgspec

from featurestore import Feature, View
from featurestore.errors import DataError
from featurestore.expressions import roots
from featurestore.stores import OnlineStore
from learner import Service
from learner.store import ModelStore
from serving.features import Features
from serving.http import Application, Reply, reply
from serving.messages import FeaturesRequest, openapi
from serving.metrics import MEDIA_TYPE, Metrics
from serving.predictions import Predictions
from serving.reader import FeatureReader, SharedReader

_features_request = msgspec.json.Decoder(FeaturesRequest)


def build_application(
    views: Mapping[str, View],
    services: Mapping[str, Service],
    *,
    store: OnlineStore,
    reader: FeatureReader,
    models: ModelStore,
    now: Callable[[], int],
) -> Application:
    """The server over the definitions, by name; `now` is wall-clock time in ms."""
    metrics, shared = Metrics(), SharedReader(reader)
    features = Features(views, services, shared, metrics)
    predictions = Predictions(services, models, shared, now, metrics)
    predictions.warm()
    listed, described = reply(catalog(views, services)), reply(openapi(version("onceflow")))

    async def get_online_features(_: str, body: bytes) -> Reply:
        try:
            request = _features_request.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"the body: {error}") from error
        return reply(await features.answer(request))

    async def predict(name: str, body: bytes) -> Reply:
        return reply(await predictions.answer(name, body))

    async def ready(_: str, __: bytes) -> Reply:
        await store.ping()
        return reply({"status": "ready"})

    async def healthy(_: str, __: bytes) -> Reply:
        return reply({"status": "up"})

    async def counted(_: str, __: bytes) -> Reply:
        return Reply(200, metrics.text(), MEDIA_TYPE)

    async def catalogue(_: str, __: bytes) -> Reply:
        return listed

    async def description(_: str, __: bytes) -> Reply:
        return described

    routes = {
        "POST /get-online-features": get_online_features,
        "POST /predict/{service}": predict,
        "GET /catalog": catalogue,
        "GET /healthz": healthy,
        "GET /readyz": ready,
        "GET /metrics": counted,
        "GET /openapi.json": description,
    }
    return Application(routes, metrics)


def catalog(views: Mapping[str, View], services: Mapping[str, Service]) -> dict[str, Any]:
    """What there is, as plain data: views with their entities and features, and services."""
    return {
        "views": [_view(view) for view in views.values()],
        "services": [_service(service) for service in services.values()],
    }


def _view(view: View) -> dict[str, Any]:
    types = view.source.types
    return {
        "name": view.name,
        "description": view.doc,
        "version": view.version,
        "fingerprint": view.fingerprint,
        "source": view.source.name,
        "entity": {"name": view.entity.name, "keys": {column: types[column] for column in view.entity.keys}},
        "features": [_feature(feature) for feature in view.features.values()],
    }


def _feature(feature: Feature) -> dict[str, Any]:
    return {
        "name": feature.full_name,
        "type": feature.type,
        "aggregate": type(feature.aggregate).__name__ if feature.aggregate else None,
        "window": feature.window.label if feature.window else None,
        "derived": None if feature.expression is None else str(feature.expression),
        "from": roots(feature.expression),
    }


def _service(service: Service) -> dict[str, Any]:
    return {
        "name": service.name,
        "on": service.on.name,
        "columns": service.on.schema,
        "id": service.id,
        "inputs": list(service.inputs),
        "derived": [
            {"name": name, "type": kind, "derived": str(expression), "from": roots(expression)}
            for name, (expression, kind) in service.feature_set.derived.items()
        ],
        "request": list(service.feature_set.requested),
    }
