"""Benchmarks: ratios and rates of one machine, run by `onceflow bench` or `make bench`."""

from importlib import import_module

DEFAULT = ("engine", "stream", "start")
NAMES = (*DEFAULT, "flights", "memory")


def main(*names: str) -> None:
    """Run the named benchmarks, or all but those that take long, one after another."""
    for name in names or DEFAULT:
        import_module(f"benchmarks.{name}").main()
