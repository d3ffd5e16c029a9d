"""The demo, on the first weeks of the year, as a newcomer and as a machine see it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ONCEFLOW = Path(sys.executable).parent / "onceflow"
NUMBERS = {
    *("events", "events_per_s", "predictions", "labels_joined", "labels_expired"),
    *("parity_compared", "parity_mismatched", "logged_features_compared", "logged_features_mismatched"),
    *("auc", "auc_without_windows", "log_loss", "log_loss_prior", "freshness_p50_ms", "freshness_p99_ms"),
}


def demo(*arguments):
    return subprocess.run([ONCEFLOW, "demo", *arguments], capture_output=True, text=True, timeout=250, check=False)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_holds_what_it_promises_and_says_so_to_machines():
    done = demo("--days", "21", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert set(result) >= NUMBERS
    assert result["parity_mismatched"] == result["mirror_mismatched"] == result["logged_features_mismatched"] == 0
    assert result["parity_compared"] > 1_000
    assert result["logged_features_compared"] > 10_000
    assert result["labels_joined"] + result["labels_expired"] + result["labels_pending"] == result["predictions"]
    assert all(result["checks"].values())
