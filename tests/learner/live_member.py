"""A learner process that replays until the end, to be killed: live_member.py KAFKA FOLDER PREFIX. Begins at a line."""

from __future__ import annotations

import sys
from pathlib import Path
from threading import Event

from learner.inputs import Options
from learner.live import LiveLearner, alone, run
from learner.store import ModelStore
from tests.learner.live_logs import made

SLOWLY = Options(replay=True, until_end=True, chunk=16, buffer=300, every=0.0, publish=0.05)

if __name__ == "__main__":
    kafka, folder, prefix = sys.argv[1:]
    service = made(prefix)
    sys.stdin.readline()
    with alone(Path(folder)):
        learner = LiveLearner(service, Path(folder), ModelStore(Path(folder) / "models"), SLOWLY)
        run([learner], kafka, Event(), lambda line: print(line, flush=True))
