"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("featurestore", "streams", "learner", "batch", "serving", "onceflow")
BROAD = {"Exception", "BaseException"}


def catches_all(node):
    """Whether a handler takes every error there is, by whatever spelling, and does more than to hand it on."""
    if isinstance(node, ast.ExceptHandler):
        if [ast.unparse(line).split("(")[0].split(".")[-1] for line in node.body] == ["set_exception"]:
            return False  # whoever waits for the future gets it
        return node.type is None or bool(
            BROAD & {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
        )
    return (
        isinstance(node, ast.Call)
        and "suppress" in ast.unparse(node.func)
        and bool(BROAD & {argument.id for argument in node.args if isinstance(argument, ast.Name)})
    )


def test_only_the_supervisor_of_requests_catches_every_error():
    found = [
        (path.relative_to(ROOT).as_posix(), node.lineno)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if catches_all(node)
    ]
    assert [path for path, _ in found] == ["serving/http.py"], found
