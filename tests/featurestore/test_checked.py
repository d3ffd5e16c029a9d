"""No index of the kernel's lies outside of its array, and no array is used that is gone."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

from featurestore import kernel


def test_no_index_lies_outside_of_its_array():
    done = subprocess.run(
        [sys.executable, "-m", "tests.featurestore.checked"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4_000:]
    assert done.stdout.startswith("..... ")


def made_in(function):
    """The names of the arrays that a function makes by NumPy."""
    for node in ast.walk(function):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            for name, value in zip(target.elts, node.value.elts, strict=True) if several else [(target, node.value)]:
                if isinstance(value, ast.Call) and ast.unparse(value.func).startswith("np."):
                    yield ast.unparse(name)


def bared_in(function):
    """The names of what a function makes bare."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    return {ast.unparse(each) for call in calls if ast.unparse(call.func) == "bared" for each in call.args}


def given_out_by(function):
    """The names in what a function returns."""
    found = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
    return {node.id for value in found for node in ast.walk(value) if isinstance(node, ast.Name)}


def test_no_array_that_a_function_makes_is_let_go_while_it_is_bare():
    functions = [
        node
        for path in Path(kernel.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    held = {(f.name, name) for f in functions for name in set(made_in(f)) & bared_in(f)}
    assert ("expanded", "out") in held
    assert held - {(f.name, name) for f in functions for name in given_out_by(f)} == set()
