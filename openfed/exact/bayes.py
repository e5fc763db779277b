"""Gaussian naive Bayes: one mean and variance per class and column, found in two rounds."""

from dataclasses import dataclass

import numpy as np

from openfed.errors import OpenFedError
from openfed.exact.base import Floats, Ints, State, Sums, table
from openfed.exact.statistics import Moments
from openfed.typing import Array, Tensors


@dataclass(frozen=True)
class NaiveBayes:
    """The moments of each class; `y`: 0 to `classes` - 1.

    Every variance is raised by `smoothing` times the largest variance of a column over all rows,
    as scikit-learn's GaussianNB does. A class that no site has is never predicted.
    State: prior (classes,), mean and variance (classes, features), n (classes,).
    """

    features: int
    classes: int
    smoothing: float = 1e-9

    @property
    def _moments(self) -> Moments:
        return Moments(self.features, self.classes)

    def start(self) -> State:
        return {**self._moments.start(), "prior": np.zeros(self.classes)}

    def lift(self, state: Tensors, x: Array, y: Array | None) -> Sums:
        return self._moments.lift(state, x, y)

    def step(self, state: Tensors, sums: Sums) -> State:
        """Raises: OpenFedError K52: there is no row anywhere, or no column varies."""
        found = self._moments.step(state, sums)
        prior = found["n"] / max(float(found["n"].sum()), 1.0)
        if found["done"]:
            between = (found["mean"] - prior @ found["mean"]) ** 2
            whole = prior @ (found["variance"] + between)
            if not whole.max() > 0:
                raise OpenFedError("K52", "naive Bayes: no column varies over all sites' rows")
            found["variance"] = found["variance"] + self.smoothing * whole.max()
        return {**found, "prior": prior}

    def joint(self, state: Tensors, x: Array) -> Floats:
        """log p(class) + log p(row | class), (rows, classes); -inf for a class without rows."""
        rows, mean, variance = table(x, self.features), state["mean"], state["variance"]
        there = state["n"] > 0
        spread = np.where(there[:, None], variance, 1.0)
        distance = ((rows[:, None, :] - mean) ** 2 / spread).sum(axis=2)
        scale = np.log(2 * np.pi * spread).sum(axis=1)
        prior = np.log(np.where(there, state["prior"], 1.0))
        return np.where(there, prior - (scale + distance) / 2, -np.inf)

    def predict(self, state: Tensors, x: Array) -> Ints:
        return np.asarray(self.joint(state, x).argmax(axis=1), np.int64)
