from __future__ import annotations

from pathlib import Path

import pytest

from featurestore.errors import ConfigError
from onceflow.settings import Settings, load


def write(directory: Path, name: str, text: str) -> None:
    (directory / name).write_text(text)


def test_without_files_and_environment_the_defaults_hold(tmp_path):
    assert load(tmp_path, {}) == Settings(data=tmp_path / ".onceflow")


def test_sources_override_each_other_in_order(tmp_path):
    write(tmp_path, "pyproject.toml", '[tool.onceflow]\ngroup = "p"\ngrid = 1\nlog_level = "debug"\npartitions = 8\n')
    write(tmp_path, "onceflow.toml", 'group = "t"\ngrid = 2\nlog_level = "error"\n')
    settings = load(tmp_path, {"ONCEFLOW_GROUP": "e", "ONCEFLOW_GRID": "3"}, group="a")
    assert (settings.group, settings.grid, settings.log_level, settings.partitions) == ("a", 3, "error", 8)


def test_an_argument_that_is_none_is_not_given(tmp_path):
    assert load(tmp_path, {"ONCEFLOW_GRID": "3"}, grid=None).grid == 3


@pytest.mark.parametrize(("text", "value"), [("true", True), ("0", False), ("no", False), ("ON", True)])
def test_the_environment_spells_booleans_as_people_do(tmp_path, text, value):
    assert load(tmp_path, {"ONCEFLOW_MIRROR": text}).mirror is value


def test_a_relative_data_directory_is_the_projects_own_and_an_absolute_one_stays(tmp_path):
    assert load(tmp_path, {}, data="here").data == tmp_path / "here"
    assert load(tmp_path, {}, data="/elsewhere").data == Path("/elsewhere")


def test_other_environment_variables_do_not_matter(tmp_path):
    assert load(tmp_path, {"PATH": "/bin", "KAFKA": "x", "ONCEFLOW_TEST_KAFKA": "there:1"}).kafka == "127.0.0.1:9092"


def test_a_pyproject_without_our_table_does_not_matter(tmp_path):
    write(tmp_path, "pyproject.toml", '[project]\nname = "x"\n')
    assert load(tmp_path, {}).group == "onceflow"


def test_settings_cannot_be_changed(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path, {}).grid = 1


@pytest.mark.parametrize(
    ("files", "environ", "given", "message"),
    [
        ({"onceflow.toml": "kafak = 1"}, {}, {}, r"onceflow.toml: there is no setting 'kafak'; did you mean kafka\?"),
        ({"pyproject.toml": "[tool.onceflow]\nx = 1"}, {}, {}, r"\[tool.onceflow\] of .*'x'; the settings are kafka"),
        ({}, {"ONCEFLOW_REDI": "x"}, {}, r"'ONCEFLOW_REDI'; did you mean ONCEFLOW_REDIS\?"),
        ({}, {}, {"grit": 1}, r"the arguments: there is no setting 'grit'; did you mean grid"),
        ({"onceflow.toml": "grid = 0"}, {}, {}, r"onceflow.toml: grid is 0, but should be greater than or equal to 1"),
        ({}, {"ONCEFLOW_HTTP_PORT": "99999"}, {}, r"ONCEFLOW_HTTP_PORT is '99999', but should be less than"),
        ({}, {"ONCEFLOW_MODE": "fast"}, {}, r"ONCEFLOW_MODE is 'fast', but should be 'live' or 'replay'"),
        ({}, {"ONCEFLOW_PARTITIONS": "many"}, {}, r"ONCEFLOW_PARTITIONS is 'many', but should be a valid integer"),
        ({}, {}, {"kafka": "localhost"}, r"kafka is 'localhost', but should be host:port, commas between"),
        ({"onceflow.toml": 'redis = "localhost"'}, {}, {}, r"redis is 'localhost', but should be redis://host:port/0"),
        ({"onceflow.toml": "grid = "}, {}, {}, r"onceflow.toml cannot be read as TOML"),
        ({"pyproject.toml": "[tool]\nonceflow = 1"}, {}, {}, r"tool.onceflow must be a table"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_fix(tmp_path, files, environ, given, message):
    for name, text in files.items():
        write(tmp_path, name, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, environ, **given)
    assert "pydantic" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_good_value_hides_a_wrong_one_below_it(tmp_path):
    write(tmp_path, "onceflow.toml", "grid = 0")
    assert load(tmp_path, {"ONCEFLOW_GRID": "5"}).grid == 5
