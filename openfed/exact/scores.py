"""How good scores are, from two histograms of them: ROC curve, AUC, KS; and confusion counts."""

from dataclasses import dataclass

import numpy as np

from openfed.errors import OpenFedError
from openfed.exact.base import Floats, Ints, State, Sums, flag, labels, members, table
from openfed.exact.statistics import histograms
from openfed.typing import Array, Tensors


@dataclass(frozen=True)
class Scores:
    """One round. x: (rows, 1) scores in `low` to `high`, y: 0 or 1. Those beyond count in the outer
    bins. State: counts (2, bins) of class 0 and 1; what is told of them: the functions below."""

    bins: int = 1024
    low: float = 0.0
    high: float = 1.0
    features: int = 1

    def start(self) -> State:
        return {"counts": np.zeros((2, self.bins)), "done": flag(0)}

    def lift(self, state: Tensors, x: Array, y: Array | None) -> Sums:
        rows = table(x, 1)
        wanted = labels(y, len(rows), 2)
        place = (rows - self.low) / (self.high - self.low) * self.bins
        cell = np.clip(np.floor(place), 0, self.bins - 1).astype(np.int64)
        found = [histograms(cell[wanted == each], self.bins)[0] for each in (0, 1)]
        return {"counts": np.stack(found)}

    def step(self, state: Tensors, sums: Sums) -> State:
        """Raises: OpenFedError K52: all rows are of one class."""
        if not sums["counts"].sum(axis=1).all():
            raise OpenFedError("K52", "the sites' rows are all of one class: no curve to draw")
        return {"counts": sums["counts"], "done": flag(1)}

    def edges(self) -> Floats:
        """(bins + 1,): the thresholds at which counts are known."""
        return np.linspace(self.low, self.high, self.bins + 1)


def auc(counts: Floats) -> tuple[float, float]:
    """The chance that a row of class 1 has the higher score, ties as half; and its error at most.

    Scores in one bin count as ties: half of the pairs in one bin is the bound (Mann, Whitney 1947).
    """
    negative, positive = counts
    pairs = negative.sum() * positive.sum()
    below = np.cumsum(negative) - negative
    tied = float(positive @ negative) / 2
    return (float(positive @ below) + tied) / pairs, tied / pairs


def roc(counts: Floats) -> tuple[Floats, Floats]:
    """False and true positive rate, (bins + 1,): the class is 1 from edge i on; from 1 to 0."""
    above = np.hstack([counts[:, ::-1].cumsum(axis=1)[:, ::-1], np.zeros((2, 1))])
    rates = above / above[:, :1]
    return rates[0], rates[1]


def ks(counts: Floats) -> float:
    """Kolmogorov-Smirnov: the largest difference of the two classes' distributions at an edge."""
    wrong, right = roc(counts)
    return float(np.abs(right - wrong).max())


def confusion(counts: Floats, edge: int) -> Floats:
    """(2, 2), actual by predicted, where the class is 1 from edge `edge` (0 to bins) on. Exact."""
    found = [[row[:edge].sum(), row[edge:].sum()] for row in counts]
    return np.asarray(found)


@dataclass(frozen=True)
class Confusion:
    """One round. x: (rows, 1) predicted classes, y: the actual ones. State: counts (classes,
    classes), actual by predicted."""

    classes: int
    features: int = 1

    def start(self) -> State:
        return {"counts": np.zeros((self.classes, self.classes)), "done": flag(0)}

    def lift(self, state: Tensors, x: Array, y: Array | None) -> Sums:
        rows = table(x, 1)
        predicted: Ints = labels(rows[:, 0], len(rows), self.classes, "prediction")
        wanted = labels(y, len(rows), self.classes)
        return {"counts": members(wanted, self.classes).T @ members(predicted, self.classes)}

    def step(self, state: Tensors, sums: Sums) -> State:
        return {**sums, "done": flag(1)}
