"""scikit-learn's breast cancer data: 569 tumours of 30 measurements, dealt out to the sites."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

Floats = NDArray[np.float64]


class Tumours:
    """One site's rows: x, the first `columns` measurements; y, 1 for benign and 0 for malignant.

    `source` is what local.yaml says for the site: {first: 0, rows: 40} are 40 rows from row 0 on,
    of an order that is the same at every site.
    """

    def __init__(self, source: Mapping[str, int], *, columns: int) -> None:
        x, y = load_breast_cancer(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(y))
        own = order[source["first"] : source["first"] + source["rows"]]
        self._x, self._y = x[own, :columns], y[own]

    def table(self) -> tuple[Floats, Floats]:
        return self._x, self._y.astype(np.float64)
