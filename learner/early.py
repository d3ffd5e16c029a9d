"""Labels that came before their predictions.

Live, a label may overtake its prediction: a worker that was down predicts late, on events whose labels are there. To
wait with all labels until the predictions have caught up is no way out, because a partition that is silent and one that
is behind look the same. So an early label is kept, until the predictions have come so far that no more is to be hoped.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Self

import numpy as np

#: So many labels are kept at most: a topic may be full of labels for what is never predicted on.
MOST = 1 << 20

_SWEEP = 1024
_BEGINNING = -(1 << 62)


class EarlyLabels:
    """Labels by id, each kept until a prediction is newer than its time + `wait` (ms). Beyond `most`, the oldest go.

    `newest` is the time of the newest prediction; to be kept up to date. `dropped` counts the labels kept in vain.
    """

    def __init__(self, wait: int, most: int = MOST) -> None:
        self.wait = wait
        self.most = most
        self.newest = self._swept = _BEGINNING
        self.dropped = 0
        self._labels: dict[str, list[tuple[int, float]]] = {}  # (time, value), in the order in which they came
        self._count = 0
        self._limit = _SWEEP

    def __len__(self) -> int:
        return self._count

    def keep(self, key: str, time: int, value: float) -> None:
        """Keep a label of 0 or 1, unless it is left behind already."""
        if time + self.wait < self.newest:
            self.dropped += 1
            return
        if self._count >= min(self._limit, self.most):
            self.sweep()
            self._make_room()
            self._limit = max(_SWEEP, 2 * self._count)
        self._labels.setdefault(key, []).append((time, value))
        self._count += 1

    def knows(self, key: str, time: int) -> bool:
        """Whether there is a label for a prediction made at `time`."""
        return self._find(key, time) is not None

    def take(self, key: str, time: int) -> float | None:
        """The first label for a prediction made at `time`, which is handed out once; None when there is none."""
        at = self._find(key, time)
        if at is None:
            return None
        _, value = self._labels[key].pop(at)
        if not self._labels[key]:
            del self._labels[key]
        self._count -= 1
        return value

    def sweep(self) -> None:
        """Drop the labels that the predictions have left behind."""
        if self._swept == self.newest:
            return
        self._swept = self.newest
        horizon = self.newest - self.wait
        kept = {key: [label for label in labels if label[0] >= horizon] for key, labels in self._labels.items()}
        self._replace({key: labels for key, labels in kept.items() if labels})

    def dump(self) -> dict[str, Any]:
        """All of it as plain values."""
        flat = [(key, *label) for key, labels in self._labels.items() for label in labels]
        return {
            "ids": [key for key, _, _ in flat],
            "times": np.array([time for _, time, _ in flat], np.int64),
            "values": np.array([value for _, _, value in flat], np.float64),
            "counts": [self.newest, self.dropped],
        }

    @classmethod
    def load(cls, wait: int, state: dict[str, Any]) -> Self:
        """What `dump` gave."""
        early = cls(wait)
        early.newest, early.dropped = state["counts"]
        for key, *label in zip(state["ids"], state["times"].tolist(), state["values"].tolist(), strict=True):
            early._labels.setdefault(key, []).append((label[0], label[1]))
        early._count = len(state["ids"])
        early._limit = max(_SWEEP, 2 * early._count)
        return early

    def _find(self, key: str, time: int) -> int | None:
        earliest = max(time, self.newest - self.wait)
        labels = self._labels.get(key, ())
        return next((i for i, (told, _) in enumerate(labels) if earliest <= told <= time + self.wait), None)

    def _make_room(self) -> None:
        """At the limit, drop the ids that have been kept longest: a quarter, so that it seldom happens."""
        if self._count >= self.most:
            self._replace(dict(islice(self._labels.items(), len(self._labels) // 4 + 1, None)))

    def _replace(self, labels: dict[str, list[tuple[int, float]]]) -> None:
        before, self._labels = self._count, labels
        self._count = sum(map(len, labels.values()))
        self.dropped += before - self._count
