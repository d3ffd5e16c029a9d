"""Services at work inside a worker: what the stream asks of the learner.

In a replay the learner is part of the worker's own loop, so that a prediction at `t` uses exactly what had been learnt
by then. Live, it is a process of its own, and the worker follows the model that it publishes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from featurestore import ConfigError, View
from featurestore.align import Chunk, Partition
from featurestore.flow import Read
from learner import Service, snapshot
from learner.loop import ServiceLoop
from learner.models import Model, compile_model
from learner.store import ModelStore

#: The alias of the model that serves.
CHAMPION = "champion"

_META = ("_partition", "_offset", "_time", "_step")


def reads_of(service: Service) -> dict[View, Read]:
    """What a service reads at each of its events, by view."""
    return {view: Read(view, service.on.name, view.entity.keys, service.before) for view in service.views}


def model_rows(service: Service, events: pl.DataFrame, features: Mapping[View, pl.DataFrame]) -> pl.DataFrame:
    """A model's inputs for each event, by full name, with its `id`, `_effective` and the event's own meta columns.

    `features` are each view's for the same events, in the same order.
    """
    columns = [events[name].cast(pl.Float64).alias(name) for name in service.columns]
    effective = [events["_time"]]
    for view, frame in features.items():
        effective.append(frame["_effective"])
        wanted = [(name, f"{view.name}:{name}") for name in view.outputs]
        columns += [frame[name].cast(pl.Float64).alias(full) for name, full in wanted if full in service.inputs]
    meta = [events[name] for name in _META if name in events.columns]
    latest = pl.DataFrame({str(i): column for i, column in enumerate(effective)}).max_horizontal().alias("_effective")
    rows = pl.DataFrame([*meta, events[service.id].cast(pl.String).alias("id"), latest, *columns])
    return rows.select("id", "_effective", *(column.name for column in meta), *service.inputs)


class _Predictor:
    """What the two kinds of service have in common: whence they read."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.name = service.name
        self.on = service.on
        self._reads = reads_of(service)
        self.reads: Sequence[Read] = list(self._reads.values())

    def _rows(self, chunk: Chunk, reads: Mapping[Read, pl.DataFrame]) -> pl.DataFrame:
        features = {view: reads[read] for view, read in self._reads.items() if read in reads}
        events = chunk.frames.get(self.on.name)
        if events is None:
            return pl.DataFrame()
        for frame in features.values():  # reads begin where the service stands
            events = events.join(frame.select("_step"), on="_step", how="semi")
        return model_rows(self.service, events, features)


class ReplayService(_Predictor):
    """Predicts, joins labels and learns in merged order, and snapshots all of it with its offsets."""

    key = None

    def __init__(self, service: Service, folder: Path) -> None:
        super().__init__(service)
        self.sources = [service.on, service.label.source]
        self._file = folder / f"{service.name}.snapshot"
        kept = snapshot.read(self._file)
        self.loop = ServiceLoop(service) if kept is None else ServiceLoop.load(service, kept)

    def positions(self) -> Mapping[Partition, int]:
        """As of the last chunk."""
        return self.loop.positions

    def process(self, chunk: Chunk, reads: Mapping[Read, pl.DataFrame]) -> pl.DataFrame:
        """Predict, score and learn over a chunk."""
        service, topics = self.service, {source.name for source in self.sources}
        rows, labels = self._rows(chunk, reads), chunk.frames.get(service.label.source.name)
        told = service.label.read(labels) if labels is not None else _no_labels()
        asked = rows if len(rows) else _no_rows(service)
        answers = self.loop.step(asked, told)
        self.loop.advance({partition: end for partition, (_, end) in chunk.spans.items() if partition[0] in topics})
        return _published(asked, answers)

    def checkpoint(self) -> Callable[[], None]:
        """What writes the snapshot of now."""
        data = snapshot.encode(self.loop.dump())
        return lambda: self._write(data)

    def _write(self, data: bytes) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        snapshot.write_bytes(self._file, data)


class LiveService(_Predictor):
    """Predicts with the champion of the model store, which may change under it at any time."""

    def __init__(self, service: Service, store: ModelStore) -> None:
        super().__init__(service)
        self.sources = [service.on]
        self.key = f"predict.{service.name}@1"
        self._champion = Champion(service, store)

    def positions(self) -> Mapping[Partition, int]:
        """None of its own: the online store keeps them."""
        return {}

    def process(self, chunk: Chunk, reads: Mapping[Read, pl.DataFrame]) -> pl.DataFrame:
        """Predict on a chunk's events."""
        rows = self._rows(chunk, reads)
        if not len(rows):
            return rows
        return _published(rows, self._champion.answers(rows))

    def checkpoint(self) -> Callable[[], None]:
        """Nothing is kept here."""
        return _nothing


def _nothing() -> None:
    pass


class Champion:
    """The serving model of a service, followed as its alias moves; before the first one, a model that learnt nothing."""

    def __init__(self, service: Service, store: ModelStore) -> None:
        self._service, self._store = service, store
        self._model: Model = compile_model(service.model, service.inputs)
        self.version = 0

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


def _published(rows: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
    """Predictions as they are sent: the event, the answer, the inputs."""
    made = answers.select("probability", "prediction", "model_version")
    return rows.drop("_step").hstack(made).with_columns(pl.lit(CHAMPION).alias("variant"))


def _no_rows(service: Service) -> pl.DataFrame:
    ints = dict.fromkeys((*_META, "_effective"), pl.Int64)
    return pl.DataFrame(schema={"id": pl.String, **ints, **dict.fromkeys(service.inputs, pl.Float64)})


def _no_labels() -> pl.DataFrame:
    return pl.DataFrame(schema={"id": pl.String, "value": pl.Float64, **dict.fromkeys(_META, pl.Int64)})
