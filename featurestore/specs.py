"""Views from what the registry has of them: an older definition, to be read with today's source and entity."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from featurestore import bags
from featurestore.aggregates import Aggregate, Window
from featurestore.definitions import View
from featurestore.errors import DefinitionError
from featurestore.expressions import expression_of
from featurestore.plan import RECIPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from featurestore.sources import Entity, Source

    Spec = Mapping[str, Any]

_BAGS = bags.BagAggregate.__subclasses__() + bags.FirstN.__subclasses__()
#: Every aggregate by the name that a spec has for it.
AGGREGATES: dict[str, type[Aggregate]] = {made.__name__: made for made in (*RECIPES, *_BAGS)}


def view_of(spec: Spec, *, entity: Entity, source: Source) -> View:
    """The view of which `spec` (see `View.spec`) was made, without what it derived: that takes no state.

    Raises DefinitionError, with the reason, when today's source or entity do not give the same view.
    """
    here = f"{spec['view']}@{spec['fingerprint']}"
    if spec["source"] != source.name:
        raise DefinitionError(f"{here} is of source {spec['source']}, not of {source.name}")
    if spec["entity"]["key"] != list(entity.keys):
        raise DefinitionError(f"{here} is of entities by {', '.join(spec['entity']['key'])}")
    parts = groupby(spec["features"], _member)
    members = {name: _aggregate(here, list(features)) for name, features in parts}
    made = View(type(spec["view"], (), members), entity=entity, source=source, windows=(), version=int(spec["version"]))
    if made.fingerprint != spec["fingerprint"]:
        raise DefinitionError(
            f"{here} is of another source: its schema, key, event time, lateness, id or derived columns changed"
        )
    return made


def _member(feature: Spec) -> str:
    """The name that the aggregate had in its class."""
    return str(feature["name"]).removesuffix(f"_{feature['window']['label']}")


def _aggregate(here: str, features: Iterable[Spec]) -> Aggregate:
    """The aggregate of which features over its windows were made."""
    first, *_ = features
    told = dict(first["parameters"])
    if "half_life" in told:
        told["half_life"] = f"{told['half_life']}ms"
    windows = [Window(**feature["window"]) for feature in features]
    try:
        made = AGGREGATES[first["aggregate"]]
        return made(first["column"], where=expression_of(first["where"]), windows=windows, **told)
    except (KeyError, TypeError):
        raise DefinitionError(
            f"{here} has {first['aggregate']} with {told}, which this version does not know"
        ) from None
