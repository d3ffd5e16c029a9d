"""Imports of other people's packages that wait until something needs them.

River imports scipy.stats for a few models, which takes longer than to import all the rest of a worker. `defer` gives
such importers a stand-in, which imports the real thing when anything is asked of it.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType, SimpleNamespace
from typing import Any


def defer(importer: str, *modules: str) -> None:
    """Let the package or module `importer`, unless it is there already, import `modules` only when it uses them.

    That holds for `from module import name`, `from package import module` and, where the package itself finds its
    modules when they are asked for, `import package.module`. A stand-in can be called and asked for attributes (a name
    in double underscores it does not have); it is no class, and no instance of anything.
    """
    _FINDER.wanted[importer] = frozenset(modules)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def spare_pandas() -> None:
    """Keep pyarrow from importing pandas, where that is installed, at its first array, only to know pandas' own values.

    Unless pandas is there already: then who imported it may hand such values to pyarrow. Conversions from and to its
    frames and series go on as ever.
    """
    import numpy as np  # noqa: PLC0415 - others defer imports without any of this
    import pyarrow as pa  # noqa: PLC0415

    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, _NO_PANDAS)
        try:
            pa.array(np.zeros(1)).to_numpy()  # both ways: it asks once for each
        finally:
            sys.meta_path.remove(_NO_PANDAS)


class _Later:
    """Stands for a module, or for a name in it."""

    def __init__(self, module: str, name: str | None = None) -> None:
        self._module, self._name = module, name

    def _real(self) -> Any:  # noqa: ANN401
        module = import_module(self._module)
        return module if self._name is None else getattr(module, self._name)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __call__(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        return self._real()(*args, **options)


class _Loader(SourceFileLoader):
    """Runs a module whose import statements go through `_import`."""

    def __init__(self, name: str, path: str, modules: frozenset[str]) -> None:
        super().__init__(name, path)
        self._builtins = {**vars(builtins), "__import__": self._import}
        self._later = modules

    def exec_module(self, module: ModuleType) -> None:
        """Run the module."""
        vars(module)["__builtins__"] = self._builtins
        super().exec_module(module)

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002 - as in builtins
        locals: Mapping[str, object] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:  # noqa: ANN401
        if level == 0 and name in self._later and name not in sys.modules:
            if not fromlist:
                return import_module(name.partition(".")[0])
            return SimpleNamespace(**{wanted: _Later(name, wanted) for wanted in fromlist})
        later = [wanted for wanted in fromlist or () if level == 0 and f"{name}.{wanted}" in self._later]
        if not later:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        found = {wanted: _Later(f"{name}.{wanted}") for wanted in later}
        rest = [wanted for wanted in fromlist or () if wanted not in found]
        module = builtins.__import__(name, globals, locals, rest, level) if rest else None
        return SimpleNamespace(**{wanted: getattr(module, wanted) for wanted in rest}, **found)


class _Finder(MetaPathFinder):
    def __init__(self) -> None:
        self.wanted: dict[str, frozenset[str]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the modules of the importers; leave all others to the finders that come next."""
        parts = fullname.split(".")
        names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        modules = next((self.wanted[name] for name in names if name in self.wanted), None)
        spec = None if modules is None else PathFinder.find_spec(fullname, path, target)
        if modules is not None and spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(fullname, spec.loader.path, modules)
        return spec


_FINDER = _Finder()


class _NoPandas(MetaPathFinder):
    def find_spec(self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> None:
        """Find all but pandas elsewhere."""
        if fullname == "pandas":
            raise ModuleNotFoundError(name=fullname)


_NO_PANDAS = _NoPandas()
