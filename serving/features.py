"""`/get-online-features`: which features of which entities are asked for, and the answer as Feast's clients read it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from featurestore import Feature, View
from featurestore.errors import DataError
from featurestore.expressions import closest
from featurestore.featureset import FeatureSet
from learner import Service
from serving.http import Refusal
from serving.instants import instant, rfc3339
from serving.messages import FeaturesMetadata, FeaturesRequest, FeaturesResponse, Scalar, Value, Vector
from serving.metrics import Metrics
from serving.reader import NOT_FOUND, PRESENT, Key, Lookup, SharedReader
from serving.requests import requested_events

#: Most entities, or events, in one request.
MAX_ENTITIES = 1_000

NULL_VALUE = "NULL_VALUE"
_NO_TIME = rfc3339(0)
_PYTHON: dict[str, type] = {"str": str, "int": int, "bool": bool, "timestamp[ms]": int}


class Features:
    """Answers for `views` and, by the names of their services, for what those need."""

    def __init__(
        self, views: Mapping[str, View], services: Mapping[str, Service], reader: SharedReader, metrics: Metrics
    ) -> None:
        self._views, self._services = views, services
        self._reader, self._metrics = reader, metrics

    async def answer(self, request: FeaturesRequest) -> FeaturesResponse:
        """The features as they were asked for. Raises Refusal and DataError for a request that cannot be answered."""
        service = self._service(request)
        chosen = self._chosen(request, service)
        names = _names(chosen, full=request.full_feature_names)
        size = _size(request.entities)
        as_of = None if request.as_of is None else instant(request.as_of)
        views = service.views if service else list(dict.fromkeys(f.view for f in chosen if isinstance(f, Feature)))
        lookups = [Lookup(view, keys_of(view, request.entities), as_of) for view in views]
        found = dict(zip(views, await self._reader.read(lookups), strict=True))
        blocks = {view.key: _Block(view, frame) for view, frame in found.items()}
        for block in blocks.values():
            self._metrics.looked_up(block.view.name, Counter(block.statuses))
        derived = _derived(service.feature_set, request, size, found) if service else {}
        columns = [Vector([*values], [PRESENT] * size, [_NO_TIME] * size) for values in request.entities.values()]
        effective = {block.view.name: block.effective for block in blocks.values()}
        return FeaturesResponse(
            FeaturesMetadata([*request.entities, *names], as_of, effective),
            [*columns, *(derived[f] if isinstance(f, str) else blocks[f.view.key].vector(f) for f in chosen)],
        )

    def _service(self, request: FeaturesRequest) -> Service | None:
        """The service whose features are asked for; None where features are named."""
        if (request.features is None) == (request.feature_service is None):
            raise Refusal(400, "give either features or feature_service", 'such as "features": ["view:feature"]')
        if request.feature_service is None:
            return None
        service = self._services.get(request.feature_service)
        if service is None:
            raise Refusal(
                404,
                f"there is no feature service {request.feature_service!r}",
                closest(request.feature_service, self._services),
            )
        return service

    def _chosen(self, request: FeaturesRequest, service: Service | None) -> list[Feature | str]:
        """What is asked for, in order: features of views, and derived ones of the service by name.

        The service's other inputs are columns of the event, which callers have.
        """
        if service is None:
            return [self._feature(name) for name in request.features or ()]
        made = service.feature_set
        wanted = [name for name in made.names if name not in made.columns]
        return [name if name in made.derived else self._feature(name) for name in wanted]

    def _feature(self, full_name: str) -> Feature:
        view_name, _, name = full_name.partition(":")
        view = self._views.get(view_name)
        if view is None:
            raise Refusal(404, f"there is no view {view_name!r}", closest(view_name, self._views))
        feature = view.features.get(name)
        if feature is None:
            raise Refusal(404, f"view {view_name!r} has no feature {name!r}", closest(name, view.features))
        return feature


def keys_of(view: View, entities: Mapping[str, Sequence[Scalar]]) -> list[Key]:
    """The entities of a view from columns of values. Raises DataError for a missing column or a value of another type.

    A null is no fault: such an entity is not found.
    """
    for column in view.entity.keys:
        if column not in entities:
            raise DataError(f"view {view.name!r} is looked up by {column!r}; give its values in entities")
        kind = view.source.types[column]
        wanted = _PYTHON[kind]
        for value in entities[column]:
            if value is not None and type(value) is not wanted:
                raise DataError(f"entity column {column!r} is a {kind}, and {value!r} is none")
    return list(zip(*(entities[column] for column in view.entity.keys), strict=True))


class _Block:
    """One view's share of the answer."""

    def __init__(self, view: View, frame: pl.DataFrame) -> None:
        self.view = view
        # Row by row, since most requests have one row, and taking a column out of a frame costs as much as a row.
        columns = zip(*frame.rows(), strict=True) if len(frame) else ((),) * frame.width
        self._columns: dict[str, Any] = dict(zip(frame.columns, columns, strict=True))
        self.effective: list[int] = list(self._columns["_effective"])
        self.statuses: list[str] = list(self._columns["_status"])
        self._times = [rfc3339(time) for time in self._columns["_newest"]]

    def vector(self, feature: Feature) -> Vector:
        values = _finite(self._columns[feature.name])
        statuses = [
            NULL_VALUE if value is None and status != NOT_FOUND else status
            for value, status in zip(values, self.statuses, strict=True)
        ]
        known = [None if status == NOT_FOUND else value for value, status in zip(values, self.statuses, strict=True)]
        return Vector(known, statuses, self._times)


def _derived(
    features: FeatureSet, request: FeaturesRequest, size: int, found: Mapping[View, pl.DataFrame]
) -> dict[str, Vector]:
    """A service's derived features by name; they have no state, and so no time of their own."""
    if not features.derived:
        return {}
    events = requested_events(features, request.entities | request.request, size)
    whole, out = features.values(events, found), {}
    for name in features.derived:
        values = _finite(whole[name].to_list())
        out[name] = Vector(values, [NULL_VALUE if v is None else PRESENT for v in values], [_NO_TIME] * size)
    return out


def _finite(values: Sequence[Value]) -> list[Value]:
    """The values, with null for what JSON has no number for."""
    return [None if isinstance(value, float) and not math.isfinite(value) else value for value in values]


def _names(chosen: Sequence[Feature | str], *, full: bool) -> list[str]:
    names = [f if isinstance(f, str) else f"{f.view.name}__{f.name}" if full else f.name for f in chosen]
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise Refusal(
            400,
            f"{name!r} is asked for {count} times",
            "name every feature once; features of one name in two views need full_feature_names",
        )
    return names


def _size(entities: Mapping[str, Sequence[Scalar]]) -> int:
    """How many entities there are."""
    sizes = {len(values) for values in entities.values()}
    if len(sizes) != 1:
        raise DataError("entities needs at least one column of values, and all columns the same number of values")
    [size] = sizes
    if size > MAX_ENTITIES:
        raise DataError(f"{size} entities are too many: ask for at most {MAX_ENTITIES:,} at a time")
    return size
