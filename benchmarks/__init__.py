"""Benchmarks: ratios and rates of one machine, run by `onceflow bench` or `make bench`."""

from importlib import import_module

DEFAULT = ("engine", "stream", "start")
NAMES = (*DEFAULT, "memory")


def main(*names: str, **stream: int) -> None:
    """Run the named benchmarks, or all but those that take long; `stream` are options of the one of that name."""
    for name in names or DEFAULT:
        options = stream if name == "stream" else {}
        import_module(f"benchmarks.{name}").main(**options)
