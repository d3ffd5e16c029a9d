"""`/predict/{service}`: what the serving model says of events that callers bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
import polars as pl

from featurestore import Source
from featurestore.decoding import decode_json
from featurestore.errors import DataError
from featurestore.expressions import closest
from featurestore.frames import event_frame
from learner import Service
from learner.store import CHAMPION, ModelStore
from serving.features import MAX_ENTITIES
from serving.http import Refusal
from serving.messages import Prediction, PredictResponse
from serving.metrics import Metrics
from serving.predictor import Champion, model_rows
from serving.reader import Lookup, SharedReader

_Event = dict[str, msgspec.Raw]


class Predictions:
    """Predicts with each service's champion, from features read as of each event's time. `now` is wall-clock time, ms.

    An event is not folded into the features here: it counts once it has come through Kafka.
    """

    def __init__(
        self,
        services: Mapping[str, Service],
        models: ModelStore,
        reader: SharedReader,
        now: Callable[[], int],
        metrics: Metrics,
    ) -> None:
        self._services, self._reader = services, reader
        self._now, self._metrics = now, metrics
        self._champions = {name: Champion(service, models) for name, service in services.items()}

    def warm(self) -> None:
        """Have every model ready before the first caller has to wait for it."""
        for champion in self._champions.values():
            champion.answers(champion.example)

    async def answer(self, name: str, body: bytes) -> Prediction | PredictResponse:
        """The prediction on an event, or those on `events`. Raises Refusal and DataError for what cannot be read."""
        service = self._services.get(name)
        if service is None:
            raise Refusal(404, f"there is no service {name!r}", closest(name, self._services))
        given, alone = _given(service.on, body)
        if len(given) > MAX_ENTITIES:
            raise DataError(f"{len(given)} events are too many: send at most {MAX_ENTITIES:,} at a time")
        made = await self._predict(service, events_of(service.on, given, self._now())) if given else []
        self._metrics.predicted(name, len(made))
        return made[0] if alone else PredictResponse(made)

    async def _predict(self, service: Service, events: pl.DataFrame) -> list[Prediction]:
        times = events["_time"].to_list()
        lookups = [Lookup(view, events.select(view.entity.keys).rows(), times) for view in service.views]
        frames = await self._reader.read(lookups)
        rows = model_rows(service, events, dict(zip(service.views, frames, strict=True)))
        answers = self._champions[service.name].answers(rows)
        return [_prediction(row, service.inputs) for row in rows.hstack(answers).iter_rows(named=True)]


def events_of(source: Source, given: Sequence[bytes | msgspec.Raw], now: int) -> pl.DataFrame:
    """Events in JSON as an event frame, read as those from Kafka are; one without event time happens `now` (ms).

    Raises DataError, with the place in the list, for the first that cannot be read.
    """
    texts = [_timed(source, at, text, now) for at, text in enumerate(given)]
    decoded = decode_json(source.schema, source.required, source.event_time, texts)
    for reject in decoded.rejects:
        raise DataError(f"event {reject.row}: {reject.detail}")
    offsets = np.arange(len(texts))
    return event_frame(source, decoded.frame, 0, offsets, np.full(len(texts), now))


def _given(source: Source, body: bytes) -> tuple[list[msgspec.Raw], bool]:
    """The events in a body, still in JSON, and whether the body is an event itself."""
    whole = _object("the body", body)
    if "events" not in whole or "events" in source.schema:
        return [msgspec.Raw(body)], True
    try:
        return msgspec.json.decode(whole["events"], type=list[msgspec.Raw]), False
    except msgspec.DecodeError as error:
        raise DataError(f"events: {error}") from error


def _timed(source: Source, at: int, text: bytes | msgspec.Raw, now: int) -> bytes:
    event = _object(f"event {at}", text)
    if bytes(event.get(source.event_time, b"null")) != b"null":
        return bytes(text)
    return msgspec.json.encode(event | {source.event_time: now})


def _object(what: str, text: bytes | msgspec.Raw) -> _Event:
    try:
        return msgspec.json.decode(text, type=_Event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{what} must be a JSON object: {error}") from error


def _prediction(row: dict[str, object], inputs: Sequence[str]) -> Prediction:
    probability = float(row["probability"])  # type: ignore[arg-type]
    return Prediction(
        id=row["id"],  # type: ignore[arg-type]
        event_time=row["_time"],  # type: ignore[arg-type]
        prediction=row["prediction"],  # type: ignore[arg-type]
        probabilities={"false": 1 - probability, "true": probability},
        model_version=row["model_version"],  # type: ignore[arg-type]
        variant=CHAMPION,
        features={name: row[name] for name in inputs},  # type: ignore[misc]
        effective_time=row["_effective"],  # type: ignore[arg-type]
    )
