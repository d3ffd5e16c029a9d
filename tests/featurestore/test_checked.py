"""No index of the kernel's lies outside of its array."""

from __future__ import annotations

import os
import subprocess
import sys


def test_no_index_lies_outside_of_its_array():
    done = subprocess.run(
        [sys.executable, "-m", "tests.featurestore.checked"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4_000:]
    assert done.stdout.startswith("... ")
