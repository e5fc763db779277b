"""Principal components from covariance sums, in two rounds."""

from dataclasses import dataclass

import numpy as np

from openfed.errors import OpenFedError
from openfed.exact.base import Floats, State, Sums, flag, table
from openfed.exact.kmeans import signed
from openfed.exact.statistics import Covariance
from openfed.typing import Array, Tensors


@dataclass(frozen=True)
class PCA:
    """The `components` axes of the largest variance (divisor n - 1), as unit rows.

    Each is turned so that its entry of the largest size is positive. The covariance's small
    eigenvalues are known to eps times the largest only (Golub, Van Loan 2013, 8.1).
    State: mean (features,), axes (components, features), variance (components,), descending.
    """

    features: int
    components: int

    def start(self) -> State:
        axes = np.zeros((self.components, self.features))
        found = Covariance(self.features).start()
        return {**found, "axes": axes, "variance": np.zeros(self.components)}

    def lift(self, state: Tensors, x: Array, y: Array | None = None) -> Sums:
        return Covariance(self.features).lift(state, x)

    def step(self, state: Tensors, sums: Sums) -> State:
        """Raises: OpenFedError K52: fewer than two rows."""
        n = float(sums["n"])
        if n < 2:
            raise OpenFedError("K52", f"principal components: expected two rows, got {n:g} in all")
        found = {**state, **Covariance(self.features).step(state, sums)}
        if not found["done"]:
            return found
        variance, vectors = np.linalg.eigh(found["covariance"])
        chosen = np.arange(self.features)[::-1][: self.components]
        axes = signed(vectors.T[chosen])
        largest = np.maximum(variance[chosen], 0) * n / (n - 1)
        return {**found, "axes": axes, "variance": largest, "done": flag(1)}

    def transform(self, state: Tensors, x: Array) -> Floats:
        """(rows, components)."""
        return np.asarray((table(x, self.features) - state["mean"]) @ state["axes"].T)
