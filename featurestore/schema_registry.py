"""A client of Confluent's schema registry, of what readers need of it: schemas by their ids."""

from __future__ import annotations

import base64
import json
import logging
import urllib.error
import urllib.request
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

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
        try:
            told = self._get(f"schemas/ids/{number}")
            kind = told.get("schemaType", "AVRO")
            imports: dict[str, str] = {}
            if kind != "JSON":  # which is read without its schema
                self._refer(told, imports)
            return loader_of(kind, told["schema"], imports)
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("a schema cannot be used", extra={"registry": self.address, "schema": number, "error": error})
            return None

    def _refer(self, told: Mapping[str, Any], texts: dict[str, str]) -> None:
        """Add the texts of what a schema refers to, by name, each after those that it refers to itself."""
        for reference in told.get("references", ()):
            name, subject, version = itemgetter("name", "subject", "version")(reference)
            if name not in texts:
                found = self._get(f"subjects/{quote(subject, safe='')}/versions/{int(version)}")
                self._refer(found, texts)
                texts[name] = found["schema"]

    def _get(self, path: str) -> Any:  # noqa: ANN401
        """What the registry has at a path; ValueError: nothing."""
        request = urllib.request.Request(f"{self.address}/{path}", headers=self._headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:  # noqa: S310 - the scheme was looked at
                return json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(path, error.code) from error
        except (OSError, json.JSONDecodeError) as error:
            raise UnavailableError(f"cannot reach the schema registry at {self.address}: {error}") from error

    def _refused(self, path: str, status: int) -> Exception:
        """What an answer with an error comes to."""
        if status in (401, 403):
            return ConfigError(f"the schema registry at {self.address} refuses these credentials (HTTP {status})")
        if status == 404:
            return ValueError(f"there is no {path}")
        return UnavailableError(f"the schema registry at {self.address} cannot serve: HTTP {status}")
