"""Definition modules: the Python file in which a project says what its sources, views and services are."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from featurestore.definitions import View
from featurestore.erasures import entities_of, told_before
from featurestore.errors import ConfigError
from featurestore.joined import Joined
from featurestore.sources import Source
from learner import Service

Definition = TypeVar("Definition", View, Service, Source)


@dataclass(frozen=True)
class Definitions:
    """What a module defines, by name, in the order of the module."""

    sources: dict[str, Source]
    views: dict[str, View]
    services: dict[str, Service]

    @property
    def joins(self) -> list[Joined]:
        """The sources that are joined of others, each after those that it is joined of."""
        return [source for source in self.sources.values() if isinstance(source, Joined)]

    @property
    def every_view(self) -> list[View]:
        """Every view: of the module, and those that only a service names."""
        named = [*self.views.values(), *(view for service in self.services.values() for view in service.views)]
        return list({view.key: view for view in named}.values())

    @property
    def told_at(self) -> list[tuple[View, str]]:
        """Views, each with a topic whose events name its entity: views of pairs, then those that services read."""
        reads = [(view, service.on.name) for service in self.services.values() for view in service.views]
        return [*told_before(self.every_view), *reads]


def load(name: str) -> Definitions:
    """The definitions of a dotted module, or of a file if the name ends in .py, found from the current directory.

    Sources and views that only another definition refers to count as well, a joined source after those it is made of.
    ConfigError: there is no such module, it defines nothing, or two definitions of one kind share a name.
    DefinitionError: a definition in it cannot work.
    """
    return collect(_imported(name), name)


def collect(module: ModuleType, name: str) -> Definitions:
    """The definitions among the module's top-level names."""
    found = list(vars(module).values())
    services = _by_name([value for value in found if isinstance(value, Service)], name)
    used = [view for service in services.values() for view in service.views]
    views = _by_name([value for value in found if isinstance(value, View)] + used, name)
    sources = [value for value in found if isinstance(value, Source)]
    sources += [view.source for view in views.values()]
    sources += [source for service in services.values() for source in (service.on, service.label.source)]
    if not views and not services:
        raise ConfigError(f"module {name!r} defines no view and no service: decorate a class with @featurestore.view")
    sources = [each for source in sources for each in _with_sides(source)]
    definitions = Definitions(_by_name(sources, name), views, services)
    told_at = definitions.told_at
    for topic in definitions.sources:  # refuses what could not be told apart
        entities_of(topic, definitions.every_view, told_at)
    return definitions


def _with_sides(source: Source) -> list[Source]:
    sides = source.sides if isinstance(source, Joined) else ()
    return [*(each for side in sides for each in _with_sides(side)), source]


def _by_name(found: Iterable[Definition], module: str) -> dict[str, Definition]:
    named: dict[str, Definition] = {}
    for value in found:
        if named.setdefault(value.name, value) is not value:
            kind = type(value).__name__.lower()
            raise ConfigError(f"module {module!r} has two {kind}s named {value.name!r}: rename one of them")
    return named


def _imported(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    if name.endswith(".py"):
        return _from_file(Path(name))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise
        raise ConfigError(
            f"there is no module {name!r} seen from {here}: go to the project's directory, or give a path to a .py"
        ) from None


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"there is no file {path} seen from {Path.cwd()}: check the path after -m")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where pickles and typing look for it
    spec.loader.exec_module(module)
    return module
