"""What goes over the wire. `/get-online-features` is Feast's contract; what it has beyond that is optional or extra."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

Scalar: TypeAlias = str | int | float | bool | None
#: What a feature may be: of a list with counts, each entry is {"value": ..., "count": ...}.
Value: TypeAlias = Scalar | list[Any] | dict[str, Scalar]


class FeaturesRequest(msgspec.Struct):
    """Which features of which entities: `features` ("view:feature") or those of `feature_service`.

    `entities` has a list of values for each key column, all of one length. `request` has lists of that length too, of
    columns of the service's events that its derived features need; they may also stand among the entities. `as_of` is
    in ms since the epoch or ISO 8601; without it, the server's clock counts.
    """

    entities: dict[str, list[Scalar]]
    features: list[str] | None = None
    feature_service: str | None = None
    full_feature_names: bool = False
    as_of: int | str | None = None
    request: dict[str, list[Scalar]] = {}


class Vector(msgspec.Struct):
    """One feature, or key column, of every entity."""

    values: list[Value]
    statuses: list[str]
    event_timestamps: list[str]


class FeaturesMetadata(msgspec.Struct):
    """What the vectors are, in order.

    `effective_time` (ms) tells, by view and entity, what time the values are as of: asked offline as of then, they are
    the same to the bit.
    """

    feature_names: list[str]
    as_of: int | None
    effective_time: dict[str, list[int]]


class FeaturesResponse(msgspec.Struct):
    """Key columns first, then the features, as they were asked for."""

    metadata: FeaturesMetadata
    results: list[Vector]


class PredictRequest(msgspec.Struct):
    """Events with the columns of the service's source; one event may also be the body itself.

    An event without event time is taken to happen now.
    """

    events: list[dict[str, Any]]


class Prediction(msgspec.Struct):
    """What the model says of an event. `features` are its inputs, `effective_time` (ms) what time they are as of."""

    id: str | None
    event_time: int
    prediction: bool
    probabilities: dict[str, float]
    model_version: int
    variant: str
    features: dict[str, float | None]
    effective_time: int


class PredictResponse(msgspec.Struct):
    """A prediction an event, in order. When the body was an event, its prediction is the answer."""

    predictions: list[Prediction]


class Problem(msgspec.Struct):
    """What is wrong and, where that is known, what to do."""

    error: str
    hint: str = ""


_ERRORS = {400: "Cannot be read, or asks for what cannot be", 413: "Too large", 503: "The online store is away"}


def openapi(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 description of the server."""
    types = [FeaturesRequest, FeaturesResponse, PredictRequest, Prediction, PredictResponse, Problem]
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    service = {"name": "service", "in": "path", "required": True, "schema": {"type": "string"}}
    predict = _post("Predictions on events", {"anyOf": [_ref("PredictRequest"), {"type": "object"}]}, _either())
    features = _post("Features of entities", _ref("FeaturesRequest"), _ref("FeaturesResponse"))
    paths = {
        "/get-online-features": {"post": features},
        "/predict/{service}": {"post": predict | {"parameters": [service]}},
        "/catalog": {"get": _get("Views, features and services", "application/json")},
        "/healthz": {"get": _get("Whether the process is up", "application/json")},
        "/readyz": {"get": _get("Whether the online store answers", "application/json")},
        "/metrics": {"get": _get("Metrics for Prometheus", "text/plain")},
        "/openapi.json": {"get": _get("This description", "application/json")},
    }
    info = {"title": "onceflow", "version": version}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _either() -> dict[str, Any]:
    return {"anyOf": [_ref("PredictResponse"), _ref("Prediction")]}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _post(summary: str, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    errors = _ERRORS | {404: "No such view, feature or service"}
    responses = {str(code): {"description": text, **_json(_ref("Problem"))} for code, text in sorted(errors.items())}
    return {
        "summary": summary,
        "requestBody": {"required": True, **_json(body)},
        "responses": {"200": {"description": "The answer", **_json(answer)}, **responses},
    }


def _get(summary: str, kind: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": "The answer", "content": {kind: {}}}}}
