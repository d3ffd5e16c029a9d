"""What a model takes: features of several views, columns of an event, and what is derived from both.

One class says what the inputs are and computes them, wherever a service is run: in a worker, over HTTP, and from
history. The features come from whoever has read them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import polars as pl

from featurestore.aggregates import NUMBERS
from featurestore.definitions import Feature, View
from featurestore.errors import DataError, DefinitionError
from featurestore.expressions import Derived, by_name, checked_type, closest, evaluated, roots
from featurestore.sources import Source

#: A view (all its features), one feature, a named derived feature, or a column of the event.
Chosen: TypeAlias = View | Feature | Derived | str

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# Columns that a prediction has beside its inputs.
_TAKEN = ("id", "prediction", "probability", "model_version", "variant")


def request(column: str) -> pl.Expr:
    """The column that comes with a request, or with the event that is predicted on: `col(column)`, by what it means."""
    return pl.col(column)


class FeatureSet:
    """The inputs of a model that is asked at events of `on`, in the order of `features`.

    A derived feature sees the event's columns, all features of the views by full name, and derived ones before it.
    `reads` are views that it may see though they are no inputs themselves. Raises DefinitionError for what cannot work.
    """

    on: Source
    views: tuple[View, ...]  # each once, in the order in which they are first named
    names: tuple[str, ...]  # full names of all inputs, in order: "card_activity:spend_5m", "share" or "amount"
    derived: dict[str, tuple[pl.Expr, str]]  # with their types

    def __init__(self, on: Source, features: Sequence[Chosen], reads: Sequence[View] = ()) -> None:
        self.on, self.derived = on, {}
        named = [f if isinstance(f, View) else f.view for f in features if isinstance(f, View | Feature)]
        self.views = tuple(dict.fromkeys([*named, *reads]))
        self._check_views()
        self._types = on.types | {f.full_name: f.type for view in self.views for f in view.features.values()}
        self.names = tuple(name for feature in features for name in self._added(feature))
        repeated = {name for name in self.names if self.names.count(name) > 1}
        if repeated:
            raise DefinitionError(f"{', '.join(sorted(repeated))} is there more than once; name every feature once")
        self._seen = {*self.names} | {root for e, _ in self.derived.values() for root in roots(e)}

    @property
    def columns(self) -> tuple[str, ...]:
        """The inputs that are columns of the event."""
        return tuple(name for name in self.names if name in self.on.types)

    @property
    def windowless(self) -> tuple[str, ...]:
        """The inputs that no feature of a view has a part in."""
        return tuple(name for name in self.names if not any(":" in origin for origin in self.origins(name)))

    @property
    def requested(self) -> tuple[str, ...]:
        """The columns of the source's schema that derived features need: what must come with a request for them."""
        needed = {origin for name in self.derived for origin in self.origins(name)}
        return tuple(column for column in self.on.schema if column in needed)

    def origins(self, name: str) -> set[str]:
        """What an input comes from in the end: columns of the source's schema, and features by full name."""
        expression = self.derived[name][0] if name in self.derived else self.on.derived.get(name)
        if expression is None:
            return {name}
        return {origin for root in roots(expression) for origin in self.origins(root)}

    def seen(self, view: View) -> list[str]:
        """The features of the view, by short name, that are inputs or that derived ones read."""
        return [name for name in view.outputs if f"{view.name}:{name}" in self._seen]

    def inputs(self, events: pl.DataFrame, features: Mapping[View, pl.DataFrame]) -> pl.DataFrame:
        """Every input at each event, as floats, by full name and in order; else as `values`."""
        return self.values(events, features).select(pl.col(name).cast(pl.Float64) for name in self.names)

    def values(self, events: pl.DataFrame, features: Mapping[View, pl.DataFrame]) -> pl.DataFrame:
        """Every input at each event in its own type, by full name, and what derived ones were computed from.

        `features` are those of each view at the same events. Raises DataError when the events lack a column.
        """
        columns = [self._column(events, name) for name in self.on.types if name in self._seen]
        for view, frame in features.items():
            columns += [frame[name].alias(f"{view.name}:{name}") for name in self.seen(view)]
        return evaluated(pl.DataFrame(columns), self.derived, nan_is_null=True)

    def _column(self, events: pl.DataFrame, name: str) -> pl.Series:
        if name not in events.columns:
            raise DataError(
                f"the events of {self.on.name!r} have no column {name!r}, which is an input, or a derived feature reads"
            )
        return events[name]

    def _check_views(self) -> None:
        for view in self.views:
            if not isinstance(view, View):
                raise DefinitionError(f"reads is a list of views, and {view!r} is none")
            missing = [key for key in view.entity.keys if key not in self.on.types]
            if missing:
                raise DefinitionError(
                    f"view {view.name!r} is looked up by {', '.join(map(repr, missing))}, which {self.on.name!r} "
                    "does not have; add it to the event, derive it in Source(derive=...), or leave the view out"
                )
        if len({view.name for view in self.views}) < len(self.views):
            raise DefinitionError("two of its views have one name; rename one of them")

    def _added(self, feature: Chosen) -> list[str]:
        """The full names of an input, or several, that can be one."""
        if isinstance(feature, str):
            return [self._checked_column(feature)]
        if isinstance(feature, View):
            return [_checked_feature(each) for each in feature.features.values()]
        if isinstance(feature, Feature):
            return [_checked_feature(feature)]
        if isinstance(feature, Derived):
            return [self._add_derived(*pair) for pair in by_name(feature.name, feature.expression).items()]
        raise DefinitionError(
            f"{feature!r} is no feature; give a view, a feature of one, a column's name, or derived(..., name=...)"
        )

    def _checked_column(self, column: str) -> str:
        types = self.on.types
        if column not in types:
            raise DefinitionError(f"there is no column {column!r} in {self.on.name!r}; {closest(column, types)}")
        if types[column] not in NUMBERS:
            raise DefinitionError(
                f"column {column!r} is a {types[column]} and a model takes numbers; derive one in Source(derive=...)"
            )
        if column == "id":
            raise DefinitionError("an input cannot be named 'id'; derive a column of another name from it")
        return column

    def _add_derived(self, name: str, expression: pl.Expr) -> str:
        here = f"derived feature {name!r}"
        if not _NAME.fullmatch(name) or name in _TAKEN or name in self._types:
            raise DefinitionError(
                f'{here}: give it a name of its own, of letters, digits and "_", as in derived(..., name="share"); '
                f"{self.on.name!r} has {', '.join(self.on.types)}, and a prediction {', '.join(_TAKEN)}"
            )
        self._check_reads(here, expression)
        kind = checked_type(expression, self._types, here)
        if kind not in NUMBERS:
            raise DefinitionError(
                f"{here} is a {kind} and a model takes numbers; hash it, or compare it with what it may be (one_hot)"
            )
        if not roots(expression):
            raise DefinitionError(f"{here} is the same for every event; leave it out")
        self._types[name] = kind
        self.derived[name] = (expression, kind)
        return name

    def _check_reads(self, here: str, expression: pl.Expr) -> None:
        known = {view.name for view in self.views}
        for root in roots(expression) if isinstance(expression, pl.Expr) else ():
            view, of_view, _ = root.partition(":")
            if of_view and view not in known:
                raise DefinitionError(f"{here}: view {view!r} is not among its views; add it to features, or to reads")


def _checked_feature(feature: Feature) -> str:
    if feature.type not in NUMBERS:
        raise DefinitionError(
            f"feature {feature.full_name!r} is a {feature.type} and a model takes numbers; leave it out, or derive a "
            "number of it; a view's other features may be named one by one, and the view among `reads`"
        )
    return feature.full_name
