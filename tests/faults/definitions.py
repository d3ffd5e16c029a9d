"""The shop as a definitions module: the tag is taken from the environment."""

from __future__ import annotations

import os

from tests.streams.shop import TAG, shop

_DEFINITIONS = shop(os.environ[TAG], budget="200ms")
globals().update({f"view_{each.name}": each for each in _DEFINITIONS.views.values()})
globals().update({f"service_{i}": each for i, each in enumerate(_DEFINITIONS.services.values())})
