"""scikit-learn's breast cancer data: 569 samples of 30 measurements, dealt out to the sites."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

Batch = tuple[NDArray[np.float64], NDArray[np.int64]]


class BreastCancer:
    """One site's share; every fifth of its samples is held out for validation.

    `source` is what local.yaml says for the site: {shard: 1, of: 3} is the first of three shares.
    `center` and `spread`: what every site subtracts from, and divides by, each measurement.
    """

    def __init__(
        self,
        source: Mapping[str, int],
        *,
        center: Sequence[float],
        spread: Sequence[float],
        split: int = 0,
    ) -> None:
        inputs, targets = load_breast_cancer(return_X_y=True)
        order = np.random.default_rng(split).permutation(len(targets))  # the same at every site
        own = order[source["shard"] - 1 :: source["of"]]
        held_out = np.arange(len(own)) % 5 == 4
        self._train, self._validate = own[~held_out], own[held_out]
        self._inputs, self._targets = (inputs - np.array(center)) / np.array(spread), targets

    def train(self, *, seed: int) -> Iterator[Batch]:
        yield self._rows(np.random.default_rng(seed).permutation(self._train))

    def validate(self) -> Iterator[Batch]:
        yield self._rows(self._validate)

    def __len__(self) -> int:
        return len(self._train)

    def _rows(self, rows: NDArray[np.int64]) -> Batch:
        return self._inputs[rows], self._targets[rows]
