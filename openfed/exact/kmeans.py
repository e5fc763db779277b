"""k-means: Lloyd's algorithm over sums, from starts that need no records."""

from dataclasses import dataclass

import numpy as np

from openfed.errors import OpenFedError
from openfed.exact.base import Floats, Ints, State, Sums, flag, members, table
from openfed.typing import Array, Tensors

DRAWN = 2000
"""Synthetic rows that a start's k-means++ chooses from."""


def nearest(rows: Floats, centres: Floats) -> tuple[Ints, Floats]:
    """Of each row, the nearest centre (of equals, to rounding, any), and the squared distance."""
    middle = centres.mean(axis=0)
    shifted = centres - middle
    cell = ((shifted**2).sum(axis=1) - 2 * (rows - middle) @ shifted.T).argmin(axis=1)
    return cell, ((rows - centres[cell]) ** 2).sum(axis=1)


@dataclass(frozen=True)
class KMeans:
    """`clusters` centres with the least sum of squared distances to the rows (inertia).

    First, by splitting (Linde, Buzo, Gray 1980): from the mean of all rows on, each round moves the
    centres to their cells' means and splits the cell with the largest inertia at +- one deviation
    along its first principal axis. The sums are the cells' counts, means and covariances. These are
    the first start. For the others, `DRAWN` rows are drawn from the Gaussians of the cells, and
    k-means++ (Arthur, Vassilvitskii 2007) chooses among them: no record is needed. Then Lloyd's
    algorithm on all `starts` side by side, until no centre moves; the least inertia wins.
    `seed`: of those draws. State: centres (clusters, features), inertia (), n (clusters,).
    """

    features: int
    clusters: int
    starts: int = 16
    seed: int = 0
    tol: float = 1e-12  # squared movement of a centre, relative to the mean variance of a column

    def start(self) -> State:
        shape = (self.clusters, self.features)
        return {
            "all": np.zeros((self.starts, *shape)),  # while splitting: the first `made` of start 0
            "made": flag(0),  # 0: the mean is not known yet
            "split": flag(1),
            "scale": np.zeros(()),
            "centres": np.zeros(shape),
            "n": np.zeros(self.clusters),
            "inertia": np.zeros(()),
            "done": flag(0),
        }

    def lift(self, state: Tensors, x: Array, y: Array | None = None) -> Sums:
        rows = table(x, self.features)
        if state["split"]:
            return self._cells(state["all"][0][: max(int(state["made"]), 1)], rows)
        found = [self._means(centres, rows) for centres in state["all"]]
        return {key: np.stack([each[key] for each in found]) for key in found[0]}

    def _means(self, centres: Floats, rows: Floats) -> Sums:
        """Counts, sums of differences from the centre, inertia."""
        cell, distance = nearest(rows, centres)
        member = members(cell, len(centres))
        first = member.T @ (rows - centres[cell])
        return {"n": member.sum(axis=0), "first": first, "inertia": np.asarray(distance.sum())}

    def _cells(self, centres: Floats, rows: Floats) -> Sums:
        """The same, and sums of products of differences."""
        cell, _ = nearest(rows, centres)
        second = np.zeros((len(centres), self.features, self.features))
        for index, centre in enumerate(centres):
            difference = rows[cell == index] - centre
            second[index] = difference.T @ difference
        return {**self._means(centres, rows), "second": second}

    def step(self, state: Tensors, sums: Sums) -> State:
        """Raises: OpenFedError K52: there are no rows, or fewer different ones than clusters."""
        return self._split(state, sums) if state["split"] else self._lloyd(state, sums)

    def _split(self, state: Tensors, sums: Sums) -> State:
        n = sums["n"]
        if not n.any():
            raise OpenFedError("K52", "k-means: there is no row at any site")
        every, made = np.array(state["all"]), max(int(state["made"]), 1)
        several = np.maximum(n, 1)
        shift = sums["first"] / several[:, None]
        every[0, :made] += shift
        if not state["made"]:  # the first sums were about 0: say the same again about the mean
            return {**state, "all": every, "made": flag(1)}
        covariance = sums["second"] / several[:, None, None]
        covariance -= shift[:, :, None] * shift[:, None, :]
        spread = np.trace(covariance, axis1=1, axis2=2)
        scale = spread[0] / self.features if made == 1 else float(state["scale"])
        if made < self.clusters:
            if not (spread * n).max() > 64 * np.finfo(float).eps * scale:
                message = f"k-means: the sites' rows have no {self.clusters} different values"
                raise OpenFedError("K52", message)
            worst = int((spread * n).argmax())
            arm = _axis(covariance[worst])
            every[0, made] = every[0, worst] - arm
            every[0, worst] += arm
            return {**state, "all": every, "made": flag(made + 1), "scale": np.asarray(scale)}
        rng = np.random.default_rng(self.seed)
        for index in range(1, self.starts):
            every[index] = _drawn(rng, every[0], covariance, n / n.sum())
        return {**state, "all": every, "split": flag(0), "scale": np.asarray(scale)}

    def _lloyd(self, state: Tensors, sums: Sums) -> State:
        several = np.maximum(sums["n"], 1)[:, :, None]
        shift = sums["first"] / several
        best = int(sums["inertia"].argmin())
        still = (shift**2).sum(axis=2).max() <= self.tol * float(state["scale"])
        return {
            **state,
            "all": state["all"] if still else state["all"] + shift,
            "centres": np.array(state["all"][best]),
            "n": sums["n"][best],
            "inertia": np.asarray(sums["inertia"][best]),
            "done": flag(still),
        }

    def predict(self, state: Tensors, x: Array) -> Ints:
        return nearest(table(x, self.features), np.asarray(state["centres"]))[0]


def signed(vectors: Floats) -> Floats:
    """Rows turned so that the entry of the largest size is positive."""
    largest = np.abs(vectors).argmax(axis=1)[:, None]
    return np.asarray(vectors * np.where(np.take_along_axis(vectors, largest, 1) < 0, -1.0, 1.0))


def _axis(covariance: Floats) -> Floats:
    """The first principal axis, one deviation long."""
    found, vectors = np.linalg.eigh(covariance)
    return np.asarray(np.sqrt(max(found[-1], 0.0)) * signed(vectors.T[-1:])[0])


def _drawn(rng: np.random.Generator, means: Floats, covariance: Floats, share: Floats) -> Floats:
    """Greedy k-means++, the best of 2 + log k trials each, on rows drawn from the mixture of
    Gaussians: as many centres as it has."""
    found, vectors = np.linalg.eigh(covariance)
    arms = vectors * np.sqrt(np.maximum(found, 0))[:, None, :]
    rows = np.vstack(
        [
            mean + rng.standard_normal((count, len(mean))) @ arm.T
            for mean, arm, count in zip(means, arms, rng.multinomial(DRAWN, share), strict=True)
        ]
    )
    centres = rows[rng.integers(len(rows))][None]
    trials = 2 + int(np.log(len(means)))
    _, distance = nearest(rows, centres)
    while len(centres) < len(means):
        tried = rows[rng.choice(len(rows), trials, p=distance / distance.sum())]
        left = [np.minimum(distance, ((rows - each) ** 2).sum(axis=1)) for each in tried]
        best = int(np.argmin([each.sum() for each in left]))
        distance, centres = left[best], np.vstack([centres, tried[best]])
    return np.asarray(centres)
