"""Learner processes to be killed: live_member.py KAFKA FOLDER PREFIX.

For each line on its input it starts one, a replay until the end, and writes the process's id and then, when it is gone,
its exit code. To load everything takes seconds, so that is done once, and the processes are forked from what was
loaded; nothing that could have started a thread of its own has run before.
"""

from __future__ import annotations

import os
import sys
import time
from importlib import import_module
from pathlib import Path
from threading import Event

import numpy as np
from river import linear_model, preprocessing

from featurestore.predictions import prediction_table
from learner.inputs import Options
from learner.live import LiveLearner, alone, run
from learner.metrics import Scores
from learner.models import compile_model
from learner.store import ModelStore

SLOWLY = Options(replay=True, until_end=True, chunk=16, buffer=300, every=0.0, publish=0.05)


class SlowLearner(LiveLearner):
    """Takes seconds, however fast the machine: there is something left to do at every kill."""

    def turn(self, *arguments):
        time.sleep(0.005)
        return super().turn(*arguments)


def learn(kafka, folder, prefix):
    service = import_module("tests.learner.live_logs").made(prefix)
    with alone(folder):
        learner = SlowLearner(service, folder, ModelStore(folder / "models"), SLOWLY)
        run([learner], kafka, Event())


def load():
    """Load what is loaded when it is first called."""
    rows, labels = np.zeros((1, 1)), np.zeros(1)
    model = compile_model(preprocessing.StandardScaler() | linear_model.LogisticRegression(), ["x"])
    model.learn(rows, labels)
    Scores().update(model.predict(rows), labels)
    prediction_table([], 0, ["x"])


if __name__ == "__main__":
    load()
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            learn(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
            os._exit(0)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()
