"""Labels meet their predictions by id, hours later or never."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from learner.early import EarlyLabels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_BEGINNING = -(1 << 62)


class LabelJoin:
    """Predictions that wait for their labels, at most `wait` ms of event time, each with a row of `width` numbers.

    The clock is the newest time seen, of predictions and labels alike. A prediction expires when the clock passes its
    time + wait; a label joins the waiting prediction of its id unless it is older than it. Expiry is thus settled by
    the order of the rows alone: when the dead are swept away makes no difference. Always

        predictions = joined + expired + pending

    where `predictions` counts those that were stored. Counted apart: `duplicates` (the id was already waiting: the
    first stays), `unnamed` (no id), `null` (labels that are neither 0 nor 1) and `unmatched` (labels with no waiting
    prediction: the first label has won, or the wait is over, or the id is unknown).
    An id may be used again once its prediction has joined or expired.

    With `hold`, a label without a waiting prediction is not unmatched yet: it is kept for one that may still come
    (`learner.early`), however late by the clock, and joins it by `told_before`. Always

        labels = joined + null + unmatched + held

    `rows[slot]` holds a prediction's numbers. A slot stays readable after its label joined, until `release`.
    """

    def __init__(self, wait: int, width: int, *, hold: bool = False) -> None:
        self.wait = wait
        self.hold = hold
        self.early = EarlyLabels(wait)
        self.rows: NDArray[np.float64] = np.empty((64, width))
        self.clock = self._swept = _BEGINNING  # of all events, and of those when the dead were swept away last
        self.predictions = self.joined = self.duplicates = self.unnamed = self.null = 0
        self._expired = self._unmatched = 0
        self._waiting: dict[str, tuple[int, int]] = {}  # id -> (event time, slot)
        self._free = list(range(64))
        self._spent: list[int] = []

    def predicted(self, key: str | None, time: int) -> int:
        """The slot for a prediction's row, or -1 when it cannot wait for a label."""
        self.clock = max(self.clock, time)
        if key is None:
            self.unnamed += 1
            return -1
        held = self._waiting.get(key)
        if held is not None and not self._expire(key, held):
            self.duplicates += 1
            return -1
        self.predictions += 1
        self.early.newest = max(self.early.newest, time)
        if time + self.wait < self.clock and not self.early.knows(key, time):
            self._expired += 1
            return -1
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._waiting[key] = (time, slot)
        return slot

    def told_before(self, key: str, time: int) -> float | None:
        """The label held for the prediction that was just stored, which joins it; None when there is none."""
        value = self.early.take(key, time)
        if value is not None:
            self._spent.append(self._waiting.pop(key)[1])
            self.joined += 1
        return value

    def labelled(self, key: str | None, time: int, value: float | None) -> int:
        """The slot of the prediction that this label joins, or -1."""
        self.clock = max(self.clock, time)
        if value is None or value not in (0.0, 1.0):
            self.null += 1
            return -1
        held = None if key is None else self._waiting.get(key)
        if key is None or held is None or self._expire(key, held) or time < held[0]:
            self._unmatch(key, time, value)
            return -1
        del self._waiting[key]
        self._spent.append(held[1])
        self.joined += 1
        return held[1]

    def release(self) -> None:
        """Hand the slots of joined and expired predictions out again."""
        self._free += self._spent
        self._spent.clear()
        if 4 * len(self._free) < len(self.rows):  # seldom enough that sweeping costs next to nothing a row
            self._sweep()
            self._free += self._spent
            self._spent.clear()
            if 4 * len(self._free) < len(self.rows):
                self._grow()

    @property
    def expired(self) -> int:
        """Predictions whose wait was over before a label came."""
        self._sweep()
        return self._expired

    @property
    def unmatched(self) -> int:
        """Labels that found no prediction, and for which none may come any more."""
        self.early.sweep()
        return self._unmatched + self.early.dropped

    @property
    def held(self) -> int:
        """Labels kept for predictions that may still come."""
        self.early.sweep()
        return len(self.early)

    @property
    def pending(self) -> int:
        """Predictions that still wait."""
        self._sweep()
        return len(self._waiting)

    def dump(self) -> dict[str, Any]:
        """All of it as plain values; waiting predictions in the order in which they came."""
        self._sweep()
        self.early.sweep()
        slots = np.array([slot for _, slot in self._waiting.values()], np.int64)
        early = {"early": self.early.dump()} if self.hold or self.early or self.early.dropped else {}
        return early | {
            "wait": self.wait,
            "clock": self.clock,
            "counts": [self.predictions, self.joined, self.duplicates, self.unnamed, self.null, self._unmatched],
            "ids": list(self._waiting),
            "times": np.array([time for time, _ in self._waiting.values()], np.int64),
            "rows": self.rows[slots],
        }

    @classmethod
    def load(cls, state: dict[str, Any], *, hold: bool = False) -> Self:
        """What `dump` gave, to the bit."""
        rows = state["rows"]
        join = cls(state["wait"], rows.shape[1], hold=hold)
        if "early" in state:
            join.early = EarlyLabels.load(join.wait, state["early"])
        join.clock = state["clock"]
        counts: Sequence[int] = state["counts"]
        join.predictions, join.joined, join.duplicates, join.unnamed, join.null, join._unmatched = counts
        join._expired = join.predictions - join.joined - len(rows)
        room = max(64, 2 * len(rows))
        join.rows = np.empty((room, rows.shape[1]))
        join.rows[: len(rows)] = rows
        join._free = list(range(len(rows), room))
        times = state["times"].tolist()
        join._waiting = {key: (time, slot) for slot, (key, time) in enumerate(zip(state["ids"], times, strict=True))}
        return join

    def _expire(self, key: str, held: tuple[int, int]) -> bool:
        if held[0] + self.wait >= self.clock:
            return False
        del self._waiting[key]
        self._spent.append(held[1])
        self._expired += 1
        return True

    def _sweep(self) -> None:
        if self._swept == self.clock:
            return
        self._swept = self.clock
        horizon = self.clock - self.wait
        for key, held in [(key, held) for key, held in self._waiting.items() if held[0] < horizon]:
            self._expire(key, held)

    def _unmatch(self, key: str | None, time: int, value: float) -> None:
        if self.hold and key is not None:
            self.early.keep(key, time, value)
        else:
            self._unmatched += 1

    def _grow(self) -> None:
        size = len(self.rows)
        self.rows = np.concatenate([self.rows, np.empty_like(self.rows)])
        self._free += range(size, 2 * size)
