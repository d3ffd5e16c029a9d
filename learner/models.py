"""Models as the learner sees them: rows of numbers in, probabilities out, and every bit of state accounted for.

Rows are float64 [n, f] with NaN for missing. `CompiledLogistic` is the fast path: River's default pipeline, compiled.
`RiverModel` runs any other River classifier. `compile_model` picks.
"""

from __future__ import annotations

import hashlib
import math
import pickle
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from featurestore.errors import DefinitionError, FormatError
from learner import pickles
from learner.kernels import BIAS_RATE, CLIP, L2, LIMIT, NEGATIVE, POSITIVE, RATE, logistic_learn, logistic_predict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


class Model(Protocol):
    """A binary classifier that learns row by row."""

    inputs: tuple[str, ...]

    def predict(self, rows: Floats) -> Floats:
        """Probability of true [n] for rows [n, f]; each row's depends on that row and the model alone."""

    def learn(self, rows: Floats, labels: Floats) -> None:
        """Learn rows [n, f] with labels [n] of 0.0 and 1.0, one by one, in order."""

    def dump(self) -> dict[str, Any]:
        """All of it as plain values, for `load_model`."""

    def digest(self) -> str:
        """SHA-256 over the model's numbers: equal if and only if they are equal to the bit."""

    def fresh(self) -> Model:
        """The same model before it has learnt anything."""


def compile_model(river_model: Any, inputs: Sequence[str]) -> Model:  # noqa: ANN401 - River is not typed
    """A model over `inputs` that starts from nothing, with the parameters of `river_model` (which stays as it is).

    `StandardScaler() | LogisticRegression(SGD(...))` becomes its compiled twin, anything else a `RiverModel`.
    """
    settings = _logistic_settings(river_model)
    if settings is not None:
        return CompiledLogistic(inputs, *settings)
    return RiverModel(inputs, river_model.clone())


def load_model(state: dict[str, Any]) -> Model:
    """The model whose `dump` this is. Raises FormatError when it is none, or of another River version."""
    for kind in (CompiledLogistic, RiverModel):
        if state.get("kind") == kind.kind:
            return kind.load(state)
    raise FormatError(f"there is no model of kind {state.get('kind')!r}: it was written by another version of onceflow")


class CompiledLogistic:
    """River's `StandardScaler | LogisticRegression(SGD)`, compiled: the same numbers in the same order of updates.

    A missing input neither updates its statistics nor contributes, as a key that is missing in River's dict.
    `settings` [6] are laid out as `learner.kernels` says; `start` is the intercept before any learning.
    """

    kind = "logistic"

    def __init__(self, inputs: Sequence[str], settings: Floats, start: float = 0.0) -> None:
        self.inputs = tuple(inputs)
        self.settings = settings
        self.start = start
        self.table: Floats = np.zeros((4, len(self.inputs)))
        self.bias: Floats = np.array([start])

    def predict(self, rows: Floats) -> Floats:
        """As Model.predict."""
        result: Floats = logistic_predict(rows, self.table, self.bias)
        return result

    def learn(self, rows: Floats, labels: Floats) -> None:
        """As Model.learn."""
        logistic_learn(rows, labels, self.table, self.bias, self.settings)

    def dump(self) -> dict[str, Any]:
        """As Model.dump."""
        return {
            "kind": self.kind,
            "inputs": list(self.inputs),
            "settings": self.settings.copy(),
            "start": self.start,
            "table": self.table.copy(),
            "bias": self.bias.copy(),
        }

    @classmethod
    def load(cls, state: dict[str, Any]) -> Self:
        """What `dump` gave, to the bit."""
        model = cls(state["inputs"], state["settings"].copy(), state["start"])
        model.table[:] = state["table"]
        model.bias[:] = state["bias"]
        return model

    def digest(self) -> str:
        """As Model.digest."""
        head = repr((self.kind, self.inputs, self.start)).encode()
        numbers = (self.settings.tobytes(), self.table.tobytes(), self.bias.tobytes())
        return hashlib.sha256(b"".join([head, *numbers])).hexdigest()

    def fresh(self) -> Self:
        """As Model.fresh."""
        return type(self)(self.inputs, self.settings, self.start)


class RiverModel:
    """Any River classifier, fed dicts without the missing inputs. It owns `model`."""

    kind = "river"

    def __init__(self, inputs: Sequence[str], model: Any) -> None:  # noqa: ANN401
        self.inputs = tuple(inputs)
        self.model = model

    def predict(self, rows: Floats) -> Floats:
        """As Model.predict; 0.5 where River has no probability to give."""
        return np.array([self._probability(row) for row in rows.tolist()], np.float64)

    def _probability(self, row: list[float]) -> float:
        given = self.model.predict_proba_one(self._named(row))
        chance = float(given.get(True, 0.0)) if given else math.nan
        return min(max(chance, 0.0), 1.0) if math.isfinite(chance) else 0.5

    def _named(self, row: list[float]) -> dict[str, float]:
        return {name: value for name, value in zip(self.inputs, row, strict=True) if abs(value) <= LIMIT}

    def learn(self, rows: Floats, labels: Floats) -> None:
        """As Model.learn."""
        for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
            self.model.learn_one(self._named(row), label == 1.0)

    def dump(self) -> dict[str, Any]:
        """As Model.dump."""
        return {"kind": self.kind, "inputs": list(self.inputs), **pickles.dump_model(self.model)}

    @classmethod
    def load(cls, state: dict[str, Any]) -> Self:
        """What `dump` gave. Raises FormatError as `pickles.load_model` does."""
        return cls(state["inputs"], pickles.load_model(state))

    def digest(self) -> str:
        """As Model.digest."""
        return hashlib.sha256(f"{self.inputs}{pickles.digest(self.model)}".encode()).hexdigest()

    def fresh(self) -> Self:
        """As Model.fresh."""
        return type(self)(self.inputs, self.model.clone())


def check_model(river_model: Any, inputs: Sequence[str]) -> None:  # noqa: ANN401
    """Raise DefinitionError, without the service's name, unless `river_model` can be run, stored and replayed."""
    last = list(river_model.steps.values())[-1] if hasattr(river_model, "steps") else river_model
    if not all(hasattr(last, method) for method in ("learn_one", "predict_proba_one", "clone")):
        raise DefinitionError(
            f"{type(last).__name__} cannot be its model; use a River classifier, such as "
            "StandardScaler() | LogisticRegression() (only binary classification so far, no regression)"
        )
    fault = _unrepeatable(river_model._get_params(), type(river_model).__name__)  # noqa: SLF001 - River has no public way
    if fault:
        raise DefinitionError(fault)
    model = compile_model(river_model, inputs)
    if isinstance(model, CompiledLogistic):
        return
    rows = np.stack([np.zeros(len(inputs)), np.full(len(inputs), np.nan)])
    try:
        model.learn(rows, np.array([1.0, 0.0]))
        model.predict(rows)
        load_model(model.dump())
    except NotImplementedError as error:
        raise DefinitionError(f"{type(last).__name__} gives no probabilities; use another classifier") from error
    except (FormatError, pickle.PicklingError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DefinitionError(
            f"{type(last).__name__} cannot be run and stored ({type(error).__name__}: {error}); use River's own "
            "classes that can do without any one input, and compute what a function of yours computes in "
            "Source(derive=...) or in a derived feature"
        ) from error


def _unrepeatable(parameters: object, owner: str) -> str | None:
    """Why two replays would differ, from River's nested parameters, in which a part is a (class, parameters) pair."""
    if owner == "SWINN":
        return "SWINN keeps state outside the model, so that no replay can repeat it; use engine=LazySearch()"
    if isinstance(parameters, dict):
        if parameters.get("seed", 0) is None:
            return f"{owner} has no seed, so that two replays would differ; give it one, such as seed=42"
        return next((bad for name, value in parameters.items() if (bad := _unrepeatable(value, str(name)))), None)
    if isinstance(parameters, list | tuple):
        kind = parameters[0].__name__ if parameters and isinstance(parameters[0], type) else owner
        return next((bad for value in parameters if (bad := _unrepeatable(value, kind))), None)
    return None


def _logistic_settings(model: Any) -> tuple[Floats, float] | None:  # noqa: ANN401
    """Settings and first intercept of the compiled twin of `model`, or None when it would not be exact."""
    from river import compose, linear_model, optim, preprocessing  # noqa: PLC0415 - seconds, and only needed here

    steps = list(model.steps.values()) if type(model) is compose.Pipeline else []
    if [type(step) for step in steps] != [preprocessing.StandardScaler, linear_model.LogisticRegression]:
        return None
    scaler, last = steps
    plain = (
        scaler.with_std
        and scaler.window_size is None
        and type(last.optimizer) is optim.SGD
        and type(last.optimizer.lr) is optim.schedulers.Constant
        and type(last.intercept_lr) is optim.schedulers.Constant
        and type(last.loss) is optim.losses.Log
        and type(last.initializer) is optim.initializers.Zeros
        and last.l1 == 0
    )
    if not plain:
        return None
    settings = np.zeros(6)
    settings[RATE] = last.optimizer.lr.learning_rate
    settings[BIAS_RATE] = last.intercept_lr.learning_rate
    settings[L2], settings[CLIP] = last.l2, last.clip_gradient
    settings[POSITIVE], settings[NEGATIVE] = last.loss.weight_pos, last.loss.weight_neg
    return settings, float(last.intercept_init)
