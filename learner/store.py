"""The model store: immutable versions and movable names for them, in a folder.

    <root>/<service>/v000001/model.bin   the model, as learner.snapshot writes it
    <root>/<service>/v000001/meta.json   checksum, inputs, metrics, lineage
    <root>/<service>/aliases/champion    {"version": 1, "history": []}

A version appears by one rename of a finished folder and is never touched again; an alias moves by one rename of a file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import threading
from typing import TYPE_CHECKING, Any

from featurestore.errors import ConfigError, FormatError
from learner import snapshot
from learner.models import load_model
from learner.pickles import river_version

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from learner.models import Model

#: The alias of the model that serves.
CHAMPION = "champion"

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_VERSION = re.compile(r"v(\d{6,9})")


class ModelStore:
    """Versions of each service's model under the folder `root`, which is made when the first one is published."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def publish(
        self, service: str, model: Model, lineage: Mapping[str, Any], metrics: Mapping[str, Any] | None = None
    ) -> int:
        """Store `model` for good and return its version number, the next of the service.

        `lineage` says what it came from (fingerprints of views, positions in the topics), `metrics` how it did: JSON.
        """
        folder = self._folder(service)
        folder.mkdir(parents=True, exist_ok=True)
        data = snapshot.encode(model.dump())
        meta = {
            "service": service,
            "checksum": hashlib.sha256(data).hexdigest(),
            "digest": model.digest(),
            "inputs": list(model.inputs),
            "river": river_version(),
            "metrics": dict(metrics or {}),
            "lineage": dict(lineage),
        }
        for version in itertools.count(max(self.versions(service), default=0) + 1):
            if _place(folder, version, data, meta | {"version": version}):
                return version
        raise AssertionError  # itertools.count has no end

    def versions(self, service: str) -> list[int]:
        """The service's complete versions, oldest first."""
        folder = self._folder(service)
        found = [(match, path) for path in folder.glob("v*") if (match := _VERSION.fullmatch(path.name))]
        return sorted(int(m[1]) for m, path in found if (path / "meta.json").exists() and (path / "model.bin").exists())

    def meta(self, service: str, which: str | int) -> dict[str, Any]:
        """What was published with a version, or with the version an alias names."""
        return _json(self._version_folder(service, which) / "meta.json")

    def load(self, service: str, which: str | int = "champion") -> tuple[Model, dict[str, Any]]:
        """The model of a version or alias, and its meta data.

        Raises ConfigError when there is none, FormatError when its files are not what was published.
        """
        path = self._version_folder(service, which) / "model.bin"
        meta, data = _json(path.parent / "meta.json"), path.read_bytes()
        if hashlib.sha256(data).hexdigest() != meta.get("checksum"):
            raise FormatError(f"{path} is not what was published: restore a copy, or roll back to another version")
        return load_model(snapshot.decode(data, path)), meta

    def alias(self, service: str, name: str, version: int | None = None) -> int:
        """Point the alias `name` at `version`, in one step; without a version, say where it points."""
        path = self._alias_path(service, name)
        if version is None:
            return int(self._alias(path, service)["version"])
        if version not in self.versions(service):
            raise ConfigError(f"there is no version {version} of {service!r}; {self._known(service)}")
        held = _json(path) if path.exists() else {"version": None, "history": []}
        if held["version"] not in (None, version):
            held["history"].append(held["version"])
        return _point(path, version, held["history"])

    def rollback(self, service: str, name: str = "champion") -> int:
        """Point the alias back at the version before; returns that version. Done twice, it goes back two."""
        path = self._alias_path(service, name)
        history = self._alias(path, service)["history"]
        if not history:
            raise ConfigError(f"alias {name!r} of {service!r} has pointed at one version only: nothing to go back to")
        return _point(path, history[-1], history[:-1])

    def _folder(self, service: str) -> Path:
        return self._inside(self.root / _checked(service, "service"))

    def _alias_path(self, service: str, name: str) -> Path:
        return self._inside(self._folder(service) / "aliases" / _checked(name, "alias"))

    def _inside(self, path: Path) -> Path:
        """`path`, unless a symbolic link leads it out of the store."""
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise ConfigError(f"{path} leads out of the model store {self.root}: remove the link")
        return path

    def _alias(self, path: Path, service: str) -> dict[str, Any]:
        if not path.exists():
            raise ConfigError(f"{service!r} has no alias {path.name!r}; {self._known(service)}")
        return _json(path)

    def _version_folder(self, service: str, which: str | int) -> Path:
        version = which if isinstance(which, int) else self.alias(service, which)
        if version not in self.versions(service):
            raise ConfigError(f"there is no version {version} of {service!r}; {self._known(service)}")
        return self._inside(self._folder(service) / f"v{version:06d}")

    def _known(self, service: str) -> str:
        versions = self.versions(service)
        return f"there are {versions[0]} to {versions[-1]}" if versions else "publish one first"


def _checked(name: str, kind: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no {kind} name: 1 to 64 of a-z, 0-9, '_', '.', '-', a letter or digit first")
    return name


def _place(folder: Path, version: int, data: bytes, meta: dict[str, Any]) -> bool:
    """Write a version aside and rename it into place; False when another publisher took the number first."""
    temporary = folder / f".v{version:06d}.{os.getpid()}.{threading.get_ident()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    snapshot.write_bytes(temporary / "model.bin", data)
    snapshot.write_bytes(temporary / "meta.json", json.dumps(meta, indent=2, sort_keys=True).encode())
    try:
        temporary.rename(folder / f"v{version:06d}")
    except OSError:
        shutil.rmtree(temporary)
        if (folder / f"v{version:06d}").exists():
            return False
        raise
    snapshot.sync_folder(folder)
    return True


def _point(path: Path, version: int, history: list[int]) -> int:
    path.parent.mkdir(exist_ok=True)
    snapshot.write_bytes(path, json.dumps({"version": version, "history": history}).encode())
    return version


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise FormatError(f"{path} is not JSON ({error}): restore a copy of it, or remove it") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} does not hold an object: restore a copy of it, or remove it")
    return value
