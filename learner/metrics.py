"""Prequential metrics: every prediction is scored once, when its label lands, by the probability stored with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from learner.kernels import add_losses

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 10_000


class Scores:
    """Running count, accuracy, log loss, Brier score and ROC AUC of probabilities in [0, 1] against labels 0 and 1.

    Counts are exact and sums compensated, row by row: however a stream is cut into updates, the bits are the same.
    Log loss clips probabilities to [1e-15, 1 - 1e-15]; accuracy decides at 0.5 (0.5 itself means true).

    AUC comes from `BINS` equal bins of the probability; a positive and a negative that share a bin count half. It is
    off by at most `auc_error`: half the share of (positive, negative) pairs that share a bin.
    A metric that the labels so far do not define is None.
    """

    def __init__(self) -> None:
        self._bins: NDArray[np.int64] = np.zeros((2, BINS), np.int64)  # negatives, positives
        self._sums: NDArray[np.float64] = np.zeros(4)
        self._right = 0

    def update(self, probabilities: NDArray[np.float64], labels: NDArray[np.float64]) -> None:
        """Score probabilities [n] against labels [n] of 0.0 and 1.0, in order."""
        add_losses(probabilities, labels, self._sums)
        self._right += int(((probabilities >= 0.5) == (labels == 1.0)).sum())
        at = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
        np.add.at(self._bins, (labels.astype(np.int64), at), 1)

    @property
    def count(self) -> int:
        """Predictions scored."""
        return int(self._bins.sum())

    @property
    def accuracy(self) -> float | None:
        """Share of predictions on the right side of 0.5."""
        return self._right / self.count if self.count else None

    @property
    def log_loss(self) -> float | None:
        """Mean negative log likelihood, in nats."""
        return float(self._sums[0] + self._sums[1]) / self.count if self.count else None

    @property
    def brier(self) -> float | None:
        """Mean squared error of the probability."""
        return float(self._sums[2] + self._sums[3]) / self.count if self.count else None

    @property
    def auc(self) -> float | None:
        """Chance that a random positive is ranked above a random negative."""
        negatives, positives = self._bins
        pairs = int(negatives.sum()) * int(positives.sum())
        twice_below = 2 * (np.cumsum(negatives) - negatives) + negatives
        return int(positives @ twice_below) / (2 * pairs) if pairs else None

    @property
    def auc_error(self) -> float | None:
        """How far `auc` may be from the value without bins."""
        negatives, positives = self._bins
        pairs = int(negatives.sum()) * int(positives.sum())
        return int(positives @ negatives) / (2 * pairs) if pairs else None

    def dump(self) -> dict[str, Any]:
        """All of it as plain numbers and arrays (bins that hold nothing are left out)."""
        kept = np.flatnonzero(self._bins)
        return {"bins": kept, "counts": self._bins.ravel()[kept], "sums": self._sums.copy(), "right": self._right}

    @classmethod
    def load(cls, state: dict[str, Any]) -> Self:
        """What `dump` gave, to the bit."""
        scores = cls()
        scores._bins.ravel()[state["bins"]] = state["counts"]
        scores._sums[:] = state["sums"]
        scores._right = state["right"]
        return scores
