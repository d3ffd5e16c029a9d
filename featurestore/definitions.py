"""Views: the features of one entity from one source.

Sources, aggregates and views are frozen data, checked when they are made: a definition that cannot work raises
DefinitionError with the name of the thing, the mistake and the fix. Nothing here computes a feature;
`featurestore.plan` turns a view into work.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from featurestore.aggregates import Aggregate, Window, Windows, window
from featurestore.errors import DefinitionError
from featurestore.expressions import Derived, by_name, canonical_text, checked_type, closest
from featurestore.joined import Joined
from featurestore.sources import Entity, Source
from featurestore.times import ENDLESS


@dataclass(frozen=True, eq=False)
class Feature:
    """One feature of a view: an aggregate over one window, or (aggregate None) a derived one."""

    view: View
    name: str
    type: str
    aggregate: Aggregate | None = None
    window: Window | None = None
    expression: pl.Expr | None = None

    @property
    def full_name(self) -> str:
        """Such as "card_activity:spend_5m"."""
        return f"{self.view.name}:{self.name}"


class View:
    """Features of one entity from one source. Made by the `view` decorator; its features are its attributes."""

    name: str
    features: dict[str, Feature]  # as stored, then derived ones

    def __init__(self, cls: type, *, entity: Entity, source: Source, windows: Windows, version: int) -> None:
        self.name = _snake(cls.__name__)
        self.doc = (cls.__doc__ or "").strip()
        self.entity, self.source, self.version = entity, source, version
        here = f"View {cls.__name__}"
        if not re.fullmatch(r"[a-z_][a-z0-9_]*", self.name):
            raise DefinitionError(f"{here}: name the class with letters, digits and '_' of ASCII only")
        for column in entity.keys:
            if column not in source.types:
                hint = closest(column, source.types)
                raise DefinitionError(
                    f"{here}: entity {entity.name!r} needs column {column!r} in {source.name!r}; {hint}"
                )
            if source.types[column] == "float":
                raise DefinitionError(
                    f"{here}: key column {column!r} is a float; entity keys are strings, integers or bools"
                )
        self.features = {}
        members = {name: value for name, value in vars(cls).items() if not name.startswith("__")}
        for name, value in members.items():
            if isinstance(value, Aggregate) and type(value) is not Aggregate:
                self._add_aggregate(f"{here}, feature {name!r}", name, value, windows)
            elif not isinstance(value, Derived):
                raise DefinitionError(
                    f"{here}: {name!r} is no feature; write an aggregate such as Count() or derived(...)"
                )
        if not self.features:
            raise DefinitionError(f"{here}: it has no features over windows; add one, such as payments = Count()")
        for name, value in members.items():
            if isinstance(value, Derived):
                self._add_derived(here, name, value)
        self.fingerprint = _fingerprint(self)

    def _add_aggregate(self, here: str, name: str, aggregate: Aggregate, windows: Windows) -> None:
        types = self.source.types
        with _told(here):
            aggregate.check(types, self.source.name)
        kind = types[aggregate.column] if aggregate.column else "int"
        if aggregate.where is not None and checked_type(aggregate.where, types, f"{here}, where") != "bool":
            raise DefinitionError(f"{here}: where must be true or false for each event, as a comparison is")
        chosen = windows if aggregate.windows is None else aggregate.windows
        if isinstance(chosen, str | Window):
            raise DefinitionError(f"{here}: windows is a list; write windows=[{chosen!r}]")
        if not chosen:
            raise DefinitionError(f'{here}: it has no windows; give a list, such as windows=["5m", "1h"]')
        for each in chosen:
            with _told(here):
                made = each if isinstance(each, Window) else window(each)
                aggregate.check_window(made)
            self._add(here, Feature(self, f"{name}_{made.label}", aggregate.output(kind), aggregate, made))

    def _add_derived(self, here: str, name: str, value: Derived) -> None:
        if value.name not in ("", name):
            raise DefinitionError(
                f"{here}, feature {name!r}: a view's feature is named by its attribute; leave out name={value.name!r}"
            )
        for full, expression in by_name(name, value.expression).items():
            kind = checked_type(expression, self.outputs, f"{here}, feature {full!r}")
            self._add(here, Feature(self, full, kind, expression=expression))

    def _add(self, here: str, feature: Feature) -> None:
        if feature.name in self.features:
            raise DefinitionError(
                f"{here}: there are two features named {feature.name!r}; rename one, or drop a window"
            )
        self.features[feature.name] = feature

    @property
    def outputs(self) -> dict[str, str]:
        """Feature names and their types, stored ones first, then derived ones."""
        return {name: feature.type for name, feature in self.features.items()}

    @property
    def stored(self) -> list[Feature]:
        """The features that come out of windows."""
        return [feature for feature in self.features.values() if feature.aggregate is not None]

    @property
    def key(self) -> str:
        """The view's identity wherever its state lies: name and fingerprint."""
        return f"{self.name}@{self.fingerprint}"

    @property
    def keep(self) -> int:
        """For how long (ms) after its newest event a window may still see something of an entity; ENDLESS for ever."""
        longest = max(feature.window.keep for feature in self.stored if feature.window is not None)
        return ENDLESS if longest >= ENDLESS else longest + self.source.lateness_ms

    @property
    def keyed(self) -> bool:
        """Whether the entity is the topic's own key, so that one partition holds all of an entity's events."""
        return self.entity.keys == self.source.keys

    @property
    def apart(self) -> bool:
        """Whether it is certain that an entity has a state on one partition only: by a partitioner that is known."""
        return self.keyed and self.source.partitioner is not None and not self.source.grown_from

    def __getattr__(self, name: str) -> Feature:
        try:
            return self.__dict__["features"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(f"view {self.__dict__.get('name')!r} has no feature {name!r}") from None

    def __getitem__(self, name: str) -> Feature:
        if name not in self.features:
            raise DefinitionError(f"View {self.name!r} has no feature {name!r}; {closest(name, self.features)}")
        return self.features[name]

    def __repr__(self) -> str:
        return f"<View {self.key} of {self.entity.name} from {self.source.name}: {', '.join(self.features)}>"

    def spec(self) -> dict[str, Any]:
        """The definition as plain data, for the registry."""
        return {
            "view": self.name,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "source": self.source.name,
            "entity": {"name": self.entity.name, "key": list(self.entity.keys)},
            "features": [_feature_spec(feature) for feature in self.stored],
            "derived": [
                {"name": f.name, "type": f.type, "expression": canonical_text(f.expression)}
                for f in self.features.values()
                if f.aggregate is None
            ],
        }


def view(*, entity: Entity, source: Source, windows: Windows = (), version: int = 1) -> Callable[[type], View]:
    """Make a class of aggregates into a View; `windows` serve every aggregate that names none of its own."""
    if not isinstance(version, int) or version < 1:
        raise DefinitionError(f"version must be a whole number from 1 on, not {version!r}")
    return lambda cls: View(cls, entity=entity, source=source, windows=windows, version=version)


@contextmanager
def _told(here: str) -> Iterator[None]:
    """Let an error in a definition say where it is."""
    try:
        yield
    except DefinitionError as error:
        raise DefinitionError(f"{here}: {error}") from None


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _feature_spec(feature: Feature) -> dict[str, Any]:
    aggregate, made = feature.aggregate, feature.window
    assert aggregate is not None
    assert made is not None
    return {
        "name": feature.name,
        "type": feature.type,
        "aggregate": type(aggregate).__name__,
        "column": aggregate.column,
        "where": canonical_text(aggregate.where),
        "parameters": aggregate.parameters,
        "window": asdict(made),
    }


def _fingerprint(made: View) -> str:
    """A hash of all that the stored state depends on: derived features and the user's version are not part of it."""
    source = made.source
    state = {
        "format": 1,
        "source": [source.name, source.schema, source.event_time, source.keys, source.lateness_ms],
        "derive": {name: canonical_text(expression) for name, expression in source.derived.items()},
        "entity": made.entity.keys,
        "features": [_feature_spec(feature) for feature in made.stored],
    }
    if isinstance(source, Joined):
        state["joined"] = source.fingerprint
    if source.id is not None:
        state["repeats"] = [source.id, source.dedup]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:12]
