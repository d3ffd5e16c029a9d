"""The settings of a project, from the most to the least important: arguments, environment, files, defaults."""

from __future__ import annotations

import tomllib
from collections import ChainMap
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featurestore.errors import ConfigError

PREFIX = "ONCEFLOW_"
FILE = "onceflow.toml"

_TEST_PREFIX = PREFIX + "TEST_"  # tells the project's own tests where their servers are: no setting

Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=0, le=65_535)]
Addresses = Annotated[str, Field(pattern=r"^[^\s,/]+:\d+(,[^\s,/]+:\d+)*$", description="host:port, commas between")]
RedisUrl = Annotated[
    str, Field(pattern=r"^(rediss?(\+(cluster|sentinel))?|unix)://\S+$", description="redis://host:port/0")
]
Group = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,200}$", description="letters, digits, '.', '_' and '-'")]


class Settings(BaseModel):
    """Everything that can be set; the defaults suit servers on this machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kafka: Addresses = "127.0.0.1:9092"
    """Bootstrap servers."""
    redis: RedisUrl = "redis://127.0.0.1:6379/0"
    schema_registry: Annotated[str, Field(pattern=r"^(https?://\S+)?$", description="http://host:port")] = ""
    """Where the schemas of Avro and JSON Schema records are; user and password may stand in it."""
    data: Path = Path(".onceflow")
    """The directory of archive, mirror, models and snapshots; taken from the project's directory."""
    group: Group = "onceflow"
    """The consumer group that the workers of one project share."""
    alone: bool = False
    """Whether one worker takes all partitions, without a consumer group: it starts at once, even after a kill."""
    mode: Literal["live", "replay"] = "live"
    """Whose time it is: the wall clock's, or the stream's."""
    transport: Literal["columns", "records"] = "columns"
    """How records come from Kafka: as columns or, more slowly, as an object each."""
    partitions: Count = 4
    """Partitions of the topics that onceflow creates."""
    max_wait_ms: Annotated[int, Field(ge=0)] = 40
    """How long a live worker waits for a silent partition before it goes on without; brokers may wait half of that."""
    gather_ms: Annotated[int, Field(ge=0)] = 75
    """How long brokers may wait until there are 64 KB to fetch: latency at low rates, for processor time."""
    chunk: Count = 100_000
    """Events that a worker takes at a time, about."""
    memory_mb: Count = 2_048
    """Megabytes of states that a worker holds, about; it reads the others again when they are needed."""
    session_timeout_ms: Annotated[int, Field(ge=500)] = 6_000
    """How long a dead worker keeps its partitions."""
    grid: Count = 65_536
    """Offsets in one file of the archive."""
    mirror: bool = True
    """Whether features go to Parquet."""
    archive: bool = True
    """Whether events go to Parquet."""
    http_host: str = "127.0.0.1"
    http_port: Port = 6566
    metrics_port: Port = 0
    """The Prometheus port of a worker or a learner; 0 means none."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is worth a line in the log."""
    log_format: Literal["console", "json"] = "console"
    """Whether lines of the log are for people or for programs."""


def load(directory: Path, environ: Mapping[str, str], **given: object) -> Settings:
    """The settings of the project in `directory`; an argument that is None counts as not given.

    ConfigError: an unknown name, a wrong value or a broken file, with its place and the fix.
    """
    layers = {
        "the arguments": {name: value for name, value in given.items() if value is not None},
        "the environment": _environment(environ),
        str(directory / FILE): _table(directory / FILE),
        f"[tool.onceflow] of {directory / 'pyproject.toml'}": _table(directory / "pyproject.toml", "tool", "onceflow"),
    }
    for place, values in layers.items():
        for name in values:
            if name not in Settings.model_fields:
                raise ConfigError(f"{place}: there is no setting {_spelt(place, name)!r}; {_suggestion(place, name)}")
    try:
        settings = Settings.model_validate(dict(ChainMap(*layers.values())))
    except ValidationError as error:
        raise _explained(error, layers) from None
    return settings.model_copy(update={"data": directory / settings.data})


def _environment(environ: Mapping[str, str]) -> dict[str, object]:
    return {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(PREFIX) and not name.startswith(_TEST_PREFIX)
    }


def _table(path: Path, *header: str) -> dict[str, Any]:
    try:
        table: Any = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from None
    for key in header:
        table = table.get(key, {}) if isinstance(table, dict) else {}
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {'.'.join(header)} must be a table of settings")
    return table


def _explained(error: ValidationError, layers: Mapping[str, Mapping[str, object]]) -> ConfigError:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    place = next(place for place, values in layers.items() if name in values)
    wanted = Settings.model_fields[name].description or first["msg"].removeprefix("Input should be ")
    return ConfigError(f"{place}: {_spelt(place, name)} is {first['input']!r}, but should be {wanted}")


def _spelt(place: str, name: str) -> str:
    return PREFIX + name.upper() if place == "the environment" else name


def _suggestion(place: str, name: str) -> str:
    close = get_close_matches(name, Settings.model_fields, n=1)
    names = ", ".join(_spelt(place, known) for known in close or Settings.model_fields)
    return f"did you mean {names}?" if close else f"the settings are {names}"
