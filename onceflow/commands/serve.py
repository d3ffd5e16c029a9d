"""`onceflow serve`: features and predictions over HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def run(module: str, host: str | None, port: int | None) -> None:
    """Serve until interrupted, then end the process.

    ConfigError: the address is taken. UnavailableError: Kafka does not answer at start.
    """
    # A request is a few rows: giving them to other threads costs more than the work. Read when Polars is imported.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    from onceflow.logs import Logs  # noqa: PLC0415
    from onceflow.modules import load as load_module  # noqa: PLC0415
    from onceflow.server import run_server  # noqa: PLC0415
    from onceflow.settings import load as load_settings  # noqa: PLC0415

    settings = load_settings(Path.cwd(), os.environ, http_host=host, http_port=port)
    with Logs(settings, process="serve"):
        run_server(load_module(module), settings)
    # A thread of the HTTP server that ends while the interpreter is taken down would panic, and print its stack.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
