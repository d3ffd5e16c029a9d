"""What a model predicts, from which features, and where its labels come from: frozen data, checked when it is made."""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import polars as pl

from featurestore import DefinitionError, Source, View
from featurestore.aggregates import NUMBERS
from featurestore.expressions import checked_type, closest
from featurestore.featureset import Chosen, FeatureSet
from featurestore.times import milliseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_META = ("_partition", "_offset", "_time", "_step")


@dataclass(frozen=True, eq=False)
class Label:
    """Where the truth comes from: events of `source`, joined to predictions by their column `id`.

    `value` is a row-wise expression over the source's columns that gives a bool, or 0 and 1; null means no label yet.
    A label counts if its event time is at most `wait` ("36h") after the prediction's.
    """

    source: Source
    id: str
    value: pl.Expr
    wait: str

    def __post_init__(self) -> None:
        here = f"Label from {self.source.name!r}"
        if self.id not in self.source.types:
            raise DefinitionError(f"{here}: there is no id column {self.id!r}; {closest(self.id, self.source.types)}")
        if self.source.row_bits:
            raise DefinitionError(f"{here}: labels come one in a record; use another format than {self.source.format}")
        kind = checked_type(self.value, self.source.types, here)
        if kind not in NUMBERS:
            raise DefinitionError(
                f"{here}: its value is a {kind}, and labels are true or false (only binary classification so far); "
                'write a condition, such as value=col("delay") > 15'
            )
        try:
            milliseconds(self.wait)
        except DefinitionError as error:
            raise DefinitionError(f"{here}, wait: {error}") from None

    @property
    def wait_ms(self) -> int:
        """The longest wait for a label, in ms of event time."""
        return milliseconds(self.wait)

    def read(self, events: pl.DataFrame) -> pl.DataFrame:
        """The label frame of an event frame of the source: `id` (String), `value` (Float64) and the meta columns."""
        meta = [name for name in _META if name in events.columns]
        return events.select(
            pl.col(self.id).cast(pl.String).alias("id"), self.value.cast(pl.Float64).alias("value"), *meta
        )


@dataclass(frozen=True, eq=False)
class Service:
    """A model that predicts on every event of `on`, and learns when the labels land.

    `features` are views (all their features), single features, columns of the event by name, or derived features with
    a name, which see all of those: derived(col("amount") / col("card_activity:spend_1d"), name="share"). `reads` are
    views that only derived features see. `id` is the column of `on` that the labels name. `model` is a River
    classifier, taken as a pattern: the service's own starts from nothing. It learns from `batch` labels at a time, one
    by one in the order of their arrival. Features are those right after the event was folded in, or with `before=True`
    right before. `budget` ("200ms") is how long a live worker waits for the model at a time: events that have no answer
    by then are published with their features and no prediction. In a replay the model takes what time it needs.
    """

    name: str
    _: KW_ONLY
    on: Source
    id: str
    features: Sequence[Chosen]
    label: Label
    model: Any
    reads: Sequence[View] = ()
    batch: int = 512
    before: bool = False
    budget: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise DefinitionError(
                f"Service {self.name!r}: a name has 1 to 64 of a-z, 0-9, '_', '.' and '-', a letter or digit first"
            )
        object.__setattr__(self, "features", tuple(self.features))
        if self.id not in self.on.types:
            hint = closest(self.id, self.on.types)
            raise self._error(f"there is no id column {self.id!r} in {self.on.name!r}; {hint}")
        if not isinstance(self.batch, int) or self.batch < 1:
            raise self._error(f"batch must be a whole number from 1 on, not {self.batch!r}; 512 is a good start")
        try:
            _ = self.budget_ms
        except DefinitionError as error:
            raise self._error(f"budget: {error}") from None
        if not self.features:
            raise self._error("it has no features; give views, single features or columns of the event")
        try:
            _ = self.feature_set
        except DefinitionError as error:
            raise self._error(str(error)) from None
        self._check_model()

    @cached_property
    def feature_set(self) -> FeatureSet:
        """The inputs of the model, and how to compute them."""
        return FeatureSet(self.on, self.features, self.reads)

    @property
    def budget_ms(self) -> int | None:
        """How long a live worker waits for the model, in ms; None: until it has answered."""
        return None if self.budget is None else milliseconds(self.budget)

    @property
    def views(self) -> tuple[View, ...]:
        """The views it needs, each once, in the order in which they are first named."""
        return self.feature_set.views

    @property
    def inputs(self) -> tuple[str, ...]:
        """Full names of all inputs of the model, in order: "card_activity:spend_5m", or "amount"."""
        return self.feature_set.names

    def _error(self, text: str) -> DefinitionError:
        return DefinitionError(f"Service {self.name!r}: {text}")

    def _check_model(self) -> None:
        from learner.models import check_model  # noqa: PLC0415 - brings Numba, which naming a service should not

        try:
            check_model(self.model, self.inputs)
        except DefinitionError as error:
            raise self._error(str(error)) from error
