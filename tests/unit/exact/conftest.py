"""Real tables, and ways to split them over sites."""

import numpy as np
import pytest
from sklearn import datasets


@pytest.fixture(scope="session")
def real():
    """`real(name)`: columns and labels of a table that scikit-learn ships."""

    def loaded(name):
        found = getattr(datasets, f"load_{name}")()
        return found.data.astype(np.float64), found.target.astype(np.float64)

    return loaded


@pytest.fixture(scope="session")
def standard():
    def scaled(x):
        return (x - x.mean(axis=0)) / np.where(x.std(axis=0) > 0, x.std(axis=0), 1.0)

    return scaled


@pytest.fixture(scope="session")
def uneven():
    """`uneven(x, y, n)`: n sites of very different sizes and classes: the first has one row, the
    second only rows of the label of row 0 (if there are three or more), the last most."""

    def split(x, y, n):
        rng = np.random.default_rng(n)
        who = rng.choice(np.arange(1, n), len(x), p=np.arange(1, n) / np.arange(1, n).sum())
        who[rng.integers(len(x))] = 0
        if n > 2:
            who[(who == 1) & (y != y[0])] = n - 1
        assert (who == 0).sum() == 1 and len(set(who)) == n
        return {f"site{i}": (x[who == i], y[who == i]) for i in range(n)}

    return split
