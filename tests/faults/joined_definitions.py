"""Payments and logins as a definitions module: the tag is taken from the environment."""

from __future__ import annotations

import os

from tests.streams.meetings import meetings
from tests.streams.shop import TAG

globals().update({f"view_{name}": view for name, view in meetings(os.environ[TAG]).views.items()})
