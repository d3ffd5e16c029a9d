"""Shares of a core: processes that may run only for a part of the time, by Linux' control groups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup/cpu")
_PERIOD_US = 10_000


def why_no_quota() -> str:
    """Why processes cannot be given shares of a core here; empty where they can."""
    if not (_GROUPS / "cpu.cfs_quota_us").exists():
        return "no control groups with quotas at /sys/fs/cgroup/cpu"
    return "" if os.access(_GROUPS, os.W_OK) else "control groups need root"


@contextmanager
def quota(pid: int, share: float) -> Iterator[None]:
    """Let a process have at most this share of a core's time until the block ends, in turns of 10 ms."""
    group = _GROUPS / f"onceflow-bench-{pid}"
    group.mkdir()
    try:
        (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(round(share * _PERIOD_US)))
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            (_GROUPS / "cgroup.procs").write_text(left)
        group.rmdir()
