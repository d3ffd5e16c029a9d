"""The learner's loop: predict, wait for the label, score, learn; a function of the order of its rows and nothing else.

It reads no clock, draws no random number and keeps no thread: the same rows in the same order give the same
predictions, scores and models, to the bit, however they are cut into steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import polars as pl

from featurestore.errors import DataError, FormatError
from featurestore.expressions import canonical_text
from learner.join import LabelJoin
from learner.metrics import Scores
from learner.models import compile_model, load_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from learner.models import Model
    from learner.service import Service

    Floats = NDArray[np.float64]

#: The three probabilities stored with a prediction: of the model, of the running mean of the labels learnt, and of the
#: same model without windowed inputs. The last two tell what the model, and what its features, are worth.
SCORES = ("model", "prior", "without_windows")

_SERVED = "probability"  # the column of predictions that says what was answered


class _Matches(NamedTuple):
    """How rows met: a slot for each prediction (-1: not stored) and, for each label that joined, in order, ..."""

    slots: NDArray[np.int64]
    joined: NDArray[np.int64]  # ... the slot of its prediction
    values: Floats  # ... the label
    seen: NDArray[np.int64]  # ... and how many predictions came before it


class ServiceLoop:
    """One service's models, waiting predictions, scores and place in its topics.

    A micro-batch of `service.batch` labels is learnt the moment its last label joins: every later prediction comes from
    the new model, `model_version` one higher. Version 0 has learnt nothing. With `hold`, labels that come before their
    predictions are kept for them: for who cannot tell in which order they happened.
    """

    def __init__(self, service: Service, *, hold: bool = False) -> None:
        self.service = service
        self.model = compile_model(service.model, service.inputs)
        windowless = service.feature_set.windowless
        self.without_windows = compile_model(service.model, windowless)
        self.model_version = 0
        self.scores = {name: Scores() for name in SCORES}
        self.positions: dict[tuple[str, int], int] = {}
        width = len(service.inputs)
        self._join = LabelJoin(service.label.wait_ms, width + len(SCORES), hold=hold)
        self._columns = np.array([service.inputs.index(name) for name in windowless], np.int64)
        self._rows: Floats = np.empty((0, width))  # joined, and not learnt yet
        self._labels: Floats = np.empty(0)
        self._learnt = self._learnt_true = self._unscored = 0

    def step(self, predictions: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
        """Take rows in the order of `_step`, which runs through both frames; on a tie predictions go first.

        Both frames have `_step` Int64, `_partition`, `_offset`, `_time` (event time, ms) and `id` (String or null).
        `predictions` has a number or null for each of `service.inputs`; `labels` have `value`, 0 or 1 or null. Rows
        below `positions` are ignored; moving those is up to the caller (`advance`).
        A column `probability` of `predictions`, if there is one, says what was answered, by whatever model served: that
        is stored and scored as the model's, and the model itself is not asked. Where it is null nothing was answered:
        the label is learnt and nothing is scored.

        Returns a row for each prediction: `id`, `_partition`, `_offset`, `_time`, `probability`, `prediction` (at 0.5),
        `prior`, `without_windows`, `model_version`. Raises DataError for frames that lack a column, or whose
        `probability` is neither null nor one.
        """
        predictions = self._unseen(predictions, self.service.on.name, self.service.inputs)
        labels = self._unseen(labels, self.service.label.source.name, ("value",))
        rows, served = self._matrix(predictions), self._served(predictions)
        slots, joined, values, seen = self._match(predictions, labels)
        result, versions = np.empty((len(rows), len(SCORES))), np.empty(len(rows), np.int64)
        kept = slots >= 0
        self._join.rows[slots[kept], : rows.shape[1]] = rows[kept]
        start = done = 0
        while True:
            end = min(done + self.service.batch - len(self._labels), len(joined))
            full = end - done == self.service.batch - len(self._labels)
            upto = seen[end - 1] if full else len(rows)
            result[start:upto] = self._probabilities(rows[start:upto], None if served is None else served[start:upto])
            versions[start:upto] = self.model_version
            run = slice(start, upto)
            self._join.rows[slots[run][kept[run]], rows.shape[1] :] = result[run][kept[run]]
            self._score(self._join.rows[joined[done:end]], values[done:end])
            if not full:
                break
            self._learn()
            start, done = upto, end
        self._join.release()
        return _answers(predictions, result, versions)

    def advance(self, positions: Mapping[tuple[str, int], int]) -> None:
        """Rows of (topic, partition) below these offsets are done with; a position never moves back."""
        for place, following in positions.items():
            self.positions[place] = max(following, self.positions.get(place, 0))

    def summary(self) -> dict[str, Any]:
        """Counts, metrics and model as plain JSON values; a metric that is not defined yet is None."""
        join, scores = self._join, self.scores
        return {
            "service": self.service.name,
            "predictions": join.predictions,
            "labels_joined": join.joined,
            "labels_expired": join.expired,
            "labels_pending": join.pending,
            "labels_unmatched": join.unmatched,
            "labels_held": join.held,
            "labels_null": join.null,
            "labels_learnt": self._learnt,
            "labels_unscored": self._unscored,
            "predictions_duplicate": join.duplicates,
            "predictions_without_id": join.unnamed,
            "auc": scores["model"].auc,
            "auc_without_windows": scores["without_windows"].auc,
            "log_loss": scores["model"].log_loss,
            "log_loss_prior": scores["prior"].log_loss,
            "log_loss_without_windows": scores["without_windows"].log_loss,
            "accuracy": scores["model"].accuracy,
            "accuracy_prior": scores["prior"].accuracy,
            "accuracy_without_windows": scores["without_windows"].accuracy,
            "brier": scores["model"].brier,
            "model_version": self.model_version,
            "model_digest": self.model.digest(),
        }

    def dump(self) -> dict[str, Any]:
        """Everything, as plain values and arrays for `learner.snapshot`."""
        return {
            "made_for": _identity(self.service),
            "positions": [[topic, partition, offset] for (topic, partition), offset in sorted(self.positions.items())],
            "model_version": self.model_version,
            "learnt": [self._learnt, self._learnt_true],
            "model": self.model.dump(),
            "without_windows": self.without_windows.dump(),
            "scores": {name: scores.dump() for name, scores in self.scores.items()},
            "join": self._join.dump(),
            "rows": self._rows,
            "labels": self._labels,
            **({"unscored": self._unscored} if self._unscored else {}),
        }

    @classmethod
    def load(cls, service: Service, state: Mapping[str, Any], *, hold: bool = False) -> Self:
        """What `dump` gave, to the bit. Raises FormatError when it was made for another definition of the service."""
        loop = cls(service, hold=hold)
        made_for, wanted = state.get("made_for", {}), _identity(service)
        changed = [name for name in wanted if made_for.get(name) != wanted[name]]
        models: list[Model] = [] if changed else [load_model(state[name]) for name in ("model", "without_windows")]
        if changed or [_pattern(m) for m in models] != [_pattern(loop.model), _pattern(loop.without_windows)]:
            raise FormatError(
                f"the snapshot of service {service.name!r} was made with another {', '.join(changed) or 'model'}: "
                "restore the definition, or move the snapshot away to start anew by a replay"
            )
        loop.model, loop.without_windows = models
        loop.positions = {(topic, partition): offset for topic, partition, offset in state["positions"]}
        loop.model_version = state["model_version"]
        loop._learnt, loop._learnt_true = state["learnt"]
        loop.scores = {name: Scores.load(state["scores"][name]) for name in SCORES}
        loop._join = LabelJoin.load(state["join"], hold=hold)
        loop._rows, loop._labels = state["rows"], state["labels"]
        loop._unscored = state.get("unscored", 0)
        return loop

    def _unseen(self, frame: pl.DataFrame, topic: str, columns: Sequence[str]) -> pl.DataFrame:
        needed = ("_step", "_partition", "_offset", "_time", "id", *columns)
        missing = [name for name in needed if name not in frame.columns]
        if missing:
            raise DataError(f"service {self.service.name!r}: rows of {topic!r} lack {', '.join(missing)}")
        numbers = [*columns, _SERVED] if _SERVED in frame.columns and _SERVED not in columns else columns
        frame = frame.select(*needed[:4], pl.col("id").cast(pl.String), pl.col(*numbers).cast(pl.Float64))
        for (known, partition), following in self.positions.items():
            if known == topic:
                frame = frame.filter((pl.col("_partition") != partition) | (pl.col("_offset") >= following))
        return frame.sort("_step", maintain_order=True)

    def _matrix(self, predictions: pl.DataFrame) -> Floats:
        """The inputs as float64 [n, f] with NaN for null."""
        return predictions.select(pl.col(*self.service.inputs).fill_null(np.nan)).to_numpy(order="c")

    def _served(self, predictions: pl.DataFrame) -> Floats | None:
        """What was answered [n], where the predictions say so."""
        if _SERVED not in predictions.columns or _SERVED in self.service.inputs:
            return None
        column = predictions[_SERVED]
        if not column.is_between(0, 1).all():
            raise DataError(
                f"service {self.service.name!r}: a column {_SERVED!r} must hold numbers from 0 to 1, or null where the "
                "model did not answer"
            )
        return column.fill_null(np.nan).to_numpy()

    def _match(self, predictions: pl.DataFrame, labels: pl.DataFrame) -> _Matches:
        """Join labels to predictions in order; only ids and times are looked at."""
        steps = np.concatenate([predictions["_step"].to_numpy(), labels["_step"].to_numpy()])
        asked = zip(predictions["id"].to_list(), predictions["_time"].to_list(), strict=True)
        told = zip(labels["id"].to_list(), labels["_time"].to_list(), labels["value"].to_list(), strict=True)
        slots: list[int] = []
        joined: list[tuple[int, float, int]] = []
        for is_label in (np.argsort(steps, kind="stable") >= len(predictions)).tolist():
            if is_label:
                key, time, value = next(told)
                slot = self._join.labelled(key, time, value)
                if slot >= 0:
                    joined.append((slot, value, len(slots)))
            else:
                key, time = next(asked)
                slot = self._join.predicted(key, time)
                slots.append(slot)
                if slot >= 0 and self._join.early and (value := self._join.told_before(key, time)) is not None:
                    joined.append((slot, value, len(slots)))
        table = np.array(joined, np.float64).reshape(-1, 3)
        joins = table[:, [0, 2]].astype(np.int64)
        return _Matches(np.array(slots, np.int64), joins[:, 0], table[:, 1], joins[:, 1])

    def _probabilities(self, rows: Floats, served: Floats | None) -> Floats:
        """The three scores [n, 3] of rows [n, f] by the models as they are; the first is `served` [n] if given."""
        prior = (self._learnt_true + 1) / (self._learnt + 2)
        without = self.without_windows.predict(np.ascontiguousarray(rows[:, self._columns]))
        return np.column_stack(
            [self.model.predict(rows) if served is None else served, np.full(len(rows), prior), without]
        )

    def _score(self, stored: Floats, labels: Floats) -> None:
        """Score stored predictions [n, f + 3] by their labels and put them into the micro-batch.

        Where the model did not answer none of the three is scored: they are compared over the same events.
        """
        width = len(self.service.inputs)
        answered = ~np.isnan(stored[:, width])
        for at, scores in enumerate(self.scores.values()):
            scores.update(stored[answered, width + at], labels[answered])
        self._unscored += len(labels) - int(answered.sum())
        self._rows = np.concatenate([self._rows, stored[:, :width]])
        self._labels = np.concatenate([self._labels, labels])

    def _learn(self) -> None:
        """Learn the micro-batch, which is full."""
        self.model.learn(self._rows, self._labels)
        self.without_windows.learn(np.ascontiguousarray(self._rows[:, self._columns]), self._labels)
        self._learnt += len(self._labels)
        self._learnt_true += int(self._labels.sum())
        self._rows, self._labels = self._rows[:0], self._labels[:0]
        self.model_version += 1


def _answers(predictions: pl.DataFrame, result: Floats, versions: NDArray[np.int64]) -> pl.DataFrame:
    probability = pl.Series(result[:, 0]).fill_nan(None)
    return predictions.select(
        "id",
        "_partition",
        "_offset",
        "_time",
        probability.alias("probability"),
        (probability >= 0.5).alias("prediction"),
        pl.Series("prior", result[:, 1]),
        pl.Series("without_windows", result[:, 2]),
        pl.Series("model_version", versions),
    )


def _identity(service: Service) -> dict[str, Any]:
    """What a snapshot of the service's loop depends on, model apart."""
    derived = {name: canonical_text(expression) for name, (expression, _) in service.feature_set.derived.items()}
    return {
        "name": service.name,
        "on": service.on.name,
        "label": f"{service.label.source.name}: {service.label.value}",
        "wait": service.label.wait_ms,
        "batch": service.batch,
        "features": [view.key for view in service.views],
        "inputs": list(service.inputs),
        **({"derived": derived} if derived else {}),
    }


def _pattern(model: Model) -> str:
    """What a model was before it learnt: equal for the same kind and parameters."""
    return model.fresh().digest()
