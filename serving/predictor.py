"""A service's model at work: the inputs of an event, and the answer of the model that serves.

The stream and the server share it, so that both ask the same model the same question.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from featurestore import ConfigError, View
from featurestore.flow import Read
from learner import Service
from learner.models import Model, compile_model
from learner.store import CHAMPION, ModelStore

#: The columns that place an event in its topic and in merged order.
META = ("_partition", "_offset", "_time", "_step")

#: What a model says of a row.
ANSWER = pl.Schema({"probability": pl.Float64, "prediction": pl.Boolean, "model_version": pl.Int64})


def reads_of(service: Service) -> dict[View, Read]:
    """What a service reads at each of its events, by view."""
    return {view: Read(view, service.on.name, view.entity.keys, service.before) for view in service.views}


def model_rows(service: Service, events: pl.DataFrame, features: Mapping[View, pl.DataFrame]) -> pl.DataFrame:
    """A model's inputs for each event, by full name, with its `id`, `_effective` and the event's own meta columns.

    `features` are each view's for the same events, in the same order.
    """
    effective = pl.DataFrame([events["_time"], *(f["_effective"].alias(view.key) for view, f in features.items())])
    rows = pl.DataFrame(
        [
            events[service.id].cast(pl.String).alias("id"),
            effective.max_horizontal().alias("_effective"),
            *(events[name] for name in META if name in events.columns),
        ]
    )
    return rows.hstack(service.feature_set.inputs(events, features))


class Champion:
    """The serving model of a service, followed as its alias moves; at first, a model that learnt nothing."""

    def __init__(self, service: Service, store: ModelStore) -> None:
        self._service, self._store = service, store
        self._model: Model = compile_model(service.model, service.inputs)
        self.version = 0

    @property
    def example(self) -> pl.DataFrame:
        """A row of inputs, to have the model ready before the first caller has to wait for it."""
        return pl.DataFrame({name: [0.0] for name in self._service.inputs})

    def answers(self, rows: pl.DataFrame) -> pl.DataFrame:
        """probability, prediction and model_version for each row of inputs."""
        self._follow()
        inputs = rows.select(pl.col(name).cast(pl.Float64).fill_null(np.nan) for name in self._service.inputs)
        probability = self._model.predict(np.ascontiguousarray(inputs.to_numpy()))
        return pl.DataFrame({"probability": probability, "prediction": probability >= 0.5}).with_columns(
            pl.lit(self.version, pl.Int64).alias("model_version")
        )

    def _follow(self) -> None:
        try:
            version = self._store.alias(self._service.name, CHAMPION)
        except ConfigError:
            return  # nothing has been published yet
        if version != self.version:
            model, meta = self._store.load(self._service.name, version)
            if list(meta["inputs"]) == list(self._service.inputs):
                self._model, self.version = model, version
