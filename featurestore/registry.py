"""The registry: every definition that was ever applied, kept with its lineage, and what changes when one is applied.

A definition is plain data, as `View.spec()` gives it. One JSON file holds one (view, version, fingerprint); a small
file beside them says which one is current:

    <path>/card_activity@3013ae7f990c.v1.json     <path>/card_activity.current.json
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from featurestore.errors import DefinitionError, FormatError
from featurestore.files import publish

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

FORMAT = 1
"""Version of the registry's files."""

Spec: TypeAlias = dict[str, Any]

_VIEW = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_FINGERPRINT = re.compile(r"[0-9a-f]{1,64}")
# How a Polars expression that was written as JSON names a column; inside a string literal the quotes would be escaped.
_COLUMN = re.compile(r'"Column":("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True, slots=True)
class Entry:
    """A definition, `registered` at a time in ms. Lineage: the topic `source`, the `columns` read of it."""

    view: str
    version: int
    fingerprint: str
    registered: int
    source: str
    columns: tuple[str, ...]
    spec: Spec


@dataclass(frozen=True, slots=True)
class Change:
    """What applying a definition means for a view, with the reasons in words."""

    view: str
    kind: Literal["added", "changed", "unchanged", "removed"]
    reasons: tuple[str, ...] = ()


class Registry:
    """The registry under the folder `path`, which is made when first written to.

    Raises `FormatError` when a file in it cannot be read, `DefinitionError` for a spec that cannot be kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> list[Entry]:
        """Return every definition ever registered, by view and time."""
        files = [file for file in self._path.glob("*@*.json") if not file.name.startswith(".")]
        return sorted(map(_entry, files), key=lambda entry: (entry.view, entry.registered, entry.version))

    def current(self, view: str) -> Entry | None:
        """Return the definition of a view that was registered last; None when there is none or it was removed."""
        pointer = self._pointer(view)
        return _entry(self._path / _load(pointer, {"entry"})["entry"]) if pointer.exists() else None

    def diff(self, specs: Iterable[Spec]) -> list[Change]:
        """Compare definitions, all that there are, with the registered ones; nothing is changed. Sorted by view."""
        new = {spec["view"]: spec for spec in specs}
        changes = [compare(entry.spec if (entry := self.current(view)) else None, new[view]) for view in new]
        removed = sorted({entry.view for entry in self.entries()} - set(new))
        changes += [Change(view, "removed", ("no longer defined",)) for view in removed if self.current(view)]
        return sorted(changes, key=lambda change: change.view)

    def register(self, spec: Spec, at: int) -> Change:
        """Make `spec` the current definition of its view, at time `at` in ms; return what that changed."""
        entry = _entry_of(spec, at)
        registered = self.current(entry.view)
        change = compare(registered.spec if registered else None, spec)
        if change.kind != "unchanged":
            self._path.mkdir(parents=True, exist_ok=True)
            name = f"{entry.view}@{entry.fingerprint}.v{entry.version}.json"
            _store(self._path / name, asdict(entry))
            _store(self._pointer(entry.view), {"entry": name})
        return change

    def remove(self, view: str) -> None:
        """Let a view be no longer current; what was registered of it is kept."""
        self._pointer(view).unlink(missing_ok=True)

    def _pointer(self, view: str) -> Path:
        if not _VIEW.fullmatch(view):
            raise DefinitionError(f"{view!r} cannot be the name of a view: use a-z, 0-9, '_', '.' and '-', at most 64")
        return self._path / f"{view}.current.json"


def compare(old: Spec | None, new: Spec) -> Change:
    """Say how the definition `new` differs from the registered one, None if there is none."""
    view = new["view"]
    if old is None:
        return Change(view, "added", (f"{len(new['features']) + len(new['derived'])} features of {new['source']}",))
    if old == new:
        return Change(view, "unchanged")
    reasons = [_moved(name, old[name], new[name]) for name in ("version", "source", "entity") if old[name] != new[name]]
    reasons += _feature_reasons("feature", _named(old["features"]), _named(new["features"]))
    reasons += _feature_reasons("derived feature", _named(old["derived"]), _named(new["derived"]))
    if old["fingerprint"] != new["fingerprint"]:
        reasons = reasons or ["the schema, key, event time, lateness, id or derived columns of the source changed"]
        reasons.append(f"its state begins anew under fingerprint {new['fingerprint']}")
        if old["version"] == new["version"]:
            reasons.append(f"version is still {new['version']}: raise it, so that models can tell the two apart")
    return Change(view, "changed", tuple(reasons))


def _feature_reasons(what: str, old: Mapping[str, Spec], new: Mapping[str, Spec]) -> list[str]:
    return [
        *(f"{what} {name} added" for name in new if name not in old),
        *(f"{what} {name} removed" for name in old if name not in new),
        *(
            f"{what} {name}: {', '.join(_field_reasons(old[name], new[name]))}"
            for name in new
            if name in old and old[name] != new[name]
        ),
    ]


def _field_reasons(old: Spec, new: Spec) -> list[str]:
    fields = [field for field in {**old, **new} if old.get(field) != new.get(field)]
    # Expressions are stored as JSON that nobody wants to read.
    hidden = {"where": "its filter changed", "expression": "its expression changed"}
    return [hidden.get(field) or _moved(field, old.get(field), new.get(field)) for field in fields]


def _moved(name: str, old: object, new: object) -> str:
    return f"{name} {_shown(old)} -> {_shown(new)}"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _named(features: Iterable[Spec]) -> dict[str, Spec]:
    return {feature["name"]: feature for feature in features}


def _entry_of(spec: Spec, at: int) -> Entry:
    if not _VIEW.fullmatch(spec["view"]) or not _FINGERPRINT.fullmatch(spec["fingerprint"]):
        raise DefinitionError(f"view {spec['view']!r} with fingerprint {spec['fingerprint']!r} cannot be a file name")
    return Entry(spec["view"], int(spec["version"]), spec["fingerprint"], at, spec["source"], _columns(spec), spec)


def _columns(spec: Spec) -> tuple[str, ...]:
    """Name the columns of the source that a view reads: its keys, what it aggregates, what its filters look at."""
    entity = spec["entity"]
    read = set(entity["key"]) if isinstance(entity, dict) else set()
    for feature in spec["features"]:
        told = feature.get("parameters", {})
        second = told.get("by") or (told.get("other") if feature["aggregate"] == "Corr" else None)
        read.update(filter(None, [feature["column"], second]))
        read.update(json.loads(name) for name in _COLUMN.findall(feature["where"] or ""))
    return tuple(sorted(read))


def _store(path: Path, content: Mapping[str, Any]) -> None:
    publish(path, json.dumps({"format": FORMAT, **content}, indent=2, ensure_ascii=False).encode())


def _load(path: Path, names: set[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        written = content.pop("format")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _unreadable(path) from error
    if written != FORMAT:
        raise FormatError(f"{path} was written by format {written}, this version reads {FORMAT}; nothing was changed")
    if set(content) != names:
        raise _unreadable(path)
    return dict(content)


def _entry(path: Path) -> Entry:
    content = _load(path, {field.name for field in fields(Entry)})
    return Entry(**{**content, "columns": tuple(content["columns"])})


def _unreadable(path: Path) -> FormatError:
    return FormatError(f"{path} cannot be read: restore it, or delete it and apply the definitions again")
