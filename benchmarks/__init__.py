"""Benchmarks: ratios and rates of one machine, run by `onceflow bench` or `make bench`."""

from importlib import import_module

NAMES = ("engine", "stream", "start")


def main(*names: str) -> None:
    """Run the named benchmarks, or all of them, one after another."""
    for name in names or NAMES:
        import_module(f"benchmarks.{name}").main()
