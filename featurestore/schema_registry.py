"""A client of Confluent's schema registry, of what readers need of it: schemas by their ids."""

from __future__ import annotations

import base64
import json
import logging
import urllib.error
import urllib.request
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from featurestore.confluent import loader_of
from featurestore.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from featurestore.confluent import Loads

_TIMEOUT = 10.0
_log = logging.getLogger(__name__)


class SchemaRegistry:
    """Schemas by id, each asked for once: what an id means never changes. User and password may stand in `url`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("not the address of a schema registry: write http://HOST:PORT or https://...")
        self.address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
        self._headers = {"Accept": "application/vnd.schemaregistry.v1+json"}
        if parts.username is not None:
            secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
        self._loaders: dict[int, Loads] = {}

    def loaders(self, ids: Collection[int]) -> Mapping[int, Loads]:
        """What reads the content of records, by schema; those that cannot be used are left out.

        Raises UnavailableError when the registry cannot be reached, ConfigError when it refuses to answer.
        """
        for number in sorted(set(ids) - self._loaders.keys()):
            found = self._asked(number)
            if found is not None:
                self._loaders[number] = found
        return self._loaders

    def _asked(self, number: int) -> Loads | None:
        request = urllib.request.Request(f"{self.address}/schemas/ids/{number}", headers=self._headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:  # noqa: S310 - the scheme was looked at
                told = json.load(reply)
            return loader_of(told.get("schemaType", "AVRO"), told["schema"])
        except urllib.error.HTTPError as error:
            with error:
                self._look_at(number, error)
            return None
        except (OSError, json.JSONDecodeError) as error:
            raise UnavailableError(f"cannot reach the schema registry at {self.address}: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("a schema cannot be used", extra={"registry": self.address, "schema": number, "error": error})
            return None

    def _look_at(self, number: int, error: urllib.error.HTTPError) -> None:
        """Raise what the answer comes to, unless it says that there is no such schema."""
        if error.code in (401, 403):
            raise ConfigError(f"the schema registry at {self.address} refuses these credentials (HTTP {error.code})")
        if error.code != 404:
            raise UnavailableError(f"the schema registry at {self.address} cannot serve: HTTP {error.code}")
        _log.warning("the registry has no such schema", extra={"registry": self.address, "schema": number})
