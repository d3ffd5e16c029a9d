"""Services at work inside a worker: what the stream asks of the learner.

In a replay the learner is part of the worker's own loop, so that a prediction at `t` uses exactly what had been learnt
by then. Live, it is a process of its own, and the worker follows the model that it publishes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from featurestore.align import Chunk, Partition
from featurestore.flow import Read
from featurestore.predictions import TIMEOUT
from learner import Service, snapshot
from learner.loop import ServiceLoop
from learner.store import CHAMPION, ModelStore
from serving.predictor import META, Champion, model_rows, reads_of
from serving.punctual import Punctual

_WHY = pl.when(pl.col("probability").is_null()).then(pl.lit(TIMEOUT)).alias("_error")


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
        return model_rows(self.service, events, features)


class ReplayService(_Predictor):
    """Predicts, joins labels and learns in merged order, and snapshots all of it with its offsets."""

    def __init__(self, service: Service, folder: Path) -> None:
        super().__init__(service)
        self.sources = [service.on, service.label.source]
        self._file = folder / f"{service.name}.snapshot"
        kept = snapshot.read(self._file)
        self.loop = ServiceLoop(service) if kept is None else ServiceLoop.load(service, kept)
        self.summary: Mapping[str, Any] = self.loop.summary()  # as of the last chunk, for other threads

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
        self.summary = self.loop.summary()
        return _published(asked, answers)

    def checkpoint(self) -> Callable[[], None]:
        """What writes the snapshot of now."""
        data = snapshot.encode(self.loop.dump())
        return lambda: self._write(data)

    def publish(self, store: ModelStore) -> int:
        """Put the model as it is now into the store, as champion; returns its version there."""
        positions = [[topic, partition, offset] for (topic, partition), offset in sorted(self.loop.positions.items())]
        lineage = {"views": [view.key for view in self.service.views], "positions": positions}
        version = store.publish(self.name, self.loop.model, lineage, self.summary)
        store.alias(self.name, CHAMPION, version)
        return version

    def _write(self, data: bytes) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        snapshot.write_bytes(self._file, data)


class LiveService(_Predictor):
    """Predicts with the champion of the model store, which may change under it at any time.

    Where the service has a budget, a chunk's events that the model has not answered by then are published without a
    prediction, so that features never wait longer for it.
    """

    def __init__(self, service: Service, store: ModelStore) -> None:
        super().__init__(service)
        self.sources = [service.on]
        champion = Champion(service, store)
        self._answers = champion.answers
        if service.budget_ms is not None:
            model = Punctual(champion.answers, service.budget_ms / 1000)
            model.warm(champion.example)
            self._answers = model.answers

    def positions(self) -> None:
        """None of its own: the online store keeps them."""

    def process(self, chunk: Chunk, reads: Mapping[Read, pl.DataFrame]) -> pl.DataFrame:
        """Predict on a chunk's events."""
        rows = self._rows(chunk, reads)
        if not len(rows):
            return rows
        made = _published(rows, self._answers(rows))
        return made if self.service.budget is None else made.with_columns(_WHY)

    def checkpoint(self) -> Callable[[], None]:
        """Nothing is kept here."""
        return _nothing


def _nothing() -> None:
    pass


def _published(rows: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
    """Predictions as they are sent: the event, the answer, the inputs."""
    made = answers.select("probability", "prediction", "model_version")
    return rows.drop("_step").hstack(made).with_columns(pl.lit(CHAMPION).alias("variant"))


def _no_rows(service: Service) -> pl.DataFrame:
    ints = dict.fromkeys((*META, "_effective"), pl.Int64)
    return pl.DataFrame(schema={"id": pl.String, **ints, **dict.fromkeys(service.inputs, pl.Float64)})


def _no_labels() -> pl.DataFrame:
    return pl.DataFrame(schema={"id": pl.String, "value": pl.Float64, **dict.fromkeys(META, pl.Int64)})
