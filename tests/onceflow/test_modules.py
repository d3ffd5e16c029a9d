from __future__ import annotations

import sys

import pytest

from featurestore.errors import ConfigError, DefinitionError
from onceflow.modules import load

DEFINITIONS = """
from featurestore import Count, Entity, Source, view
_events = [Source("events", schema={"id": str, "at": int}, event_time="at", key="id")]

@view(entity=Entity("thing", key="id"), source=_events[0], windows=["5m"])
class Seen:
    times = Count()
"""

SEEN_BY_TIME = """
@view(entity=Entity("thing", key="at"), source=_events[0], windows=["5m"])
class SeenByTime:
    times = Count()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(here, text, name="defined_here.py"):
    (here / name).write_text(text)


@pytest.mark.parametrize("name", ["defined_here", "defined_here.py"])
def test_a_module_and_a_path_give_the_same_definitions(here, name):
    write(here, DEFINITIONS)
    found = load(name)
    assert list(found.views) == ["seen"]
    assert list(found.sources) == ["events"]  # found through the view, for the module has no name for it
    assert found.services == {}


def test_a_module_in_a_package_is_found(here):
    (here / "package_here").mkdir()
    write(here, DEFINITIONS, "package_here/features.py")
    assert list(load("package_here.features").views) == ["seen"]


def test_two_names_for_one_definition_are_one_definition(here):
    write(here, DEFINITIONS + "\nagain = Seen\n")
    assert list(load("defined_here").views) == ["seen"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("x = 1", ConfigError, "defines no view and no service"),
        (DEFINITIONS + "\nfirst = Seen\n" + DEFINITIONS, ConfigError, "two views named 'seen': rename one"),
        (DEFINITIONS.replace('"5m"', '"5x"'), DefinitionError, "5x"),
        (
            DEFINITIONS + SEEN_BY_TIME,
            DefinitionError,
            "'thing' of 'events' has the key id in view 'seen' and at in view",
        ),
    ],
)
def test_a_module_that_cannot_be_used_says_why(here, text, error, message):
    write(here, text)
    with pytest.raises(error, match=message):
        load("defined_here")


@pytest.mark.parametrize("name", ["not_there", "not_there.features", "not_there.py"])
def test_what_is_not_there_is_named(here, name):
    with pytest.raises(ConfigError, match=rf"there is no (module|file) '?{name}'? seen from {here}"):
        load(name)


def test_a_missing_import_inside_the_module_is_not_hidden(here):
    write(here, "import not_there_either")
    with pytest.raises(ModuleNotFoundError, match="not_there_either"):
        load("defined_here")
