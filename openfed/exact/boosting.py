"""Histogram gradient-boosted trees: one round a level, from sums of gradients in bins."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from openfed.errors import OpenFedError, TaskError
from openfed.exact.base import Floats, Ints, State, Sums, done, flag, labels, table, values
from openfed.exact.statistics import Quantiles
from openfed.typing import Array, Tensors

GRID = 30
"""Gradients are rounded to 2^-GRID of the largest label: their sums over up to 2^22 rows then have
no rounding error, so that any split of the rows over sites gives the same bits."""


@dataclass(frozen=True)
class Boosted:
    """Trees after Chen, Guestrin 2016, arXiv:1603.02754, with its regularised objective.

    First, the columns' quantiles (`Quantiles`, four digits, four rounds) give the edges of `bins`
    bins a column. Then each tree takes `depth` rounds. A split of rows with sums of gradients G and
    of second derivatives H into left and right gains (eq. 7)

        1/2 [GL^2 / (HL + lam) + GR^2 / (HR + lam) - (GL + GR)^2 / (HL + HR + lam)] - gamma

    and is made where that is largest (the first of equals: column, then edge), above 0, and both
    sides have H >= `least`. A leaf adds -rate G / (H + lam) (eq. 5).
    `logistic`: y is 0 or 1, the margin starts at 0. `squared`: loss (y - f)^2 / 2, f starts at the
    median of y. A tree is a heap: the children of node i are 2 i + 1 (below `cut`) and 2 i + 2.
    State: column (trees, nodes) int64, -1: a leaf; cut, value (trees, nodes); base (); edges
    (features, bins - 1); those of `Quantiles`, with y as its last column, below "quantiles/".
    """

    features: int
    loss: Literal["logistic", "squared"] = "logistic"
    trees: int = 50
    depth: int = 4
    bins: int = 32
    rate: float = 0.3
    lam: float = 1.0
    gamma: float = 0.0
    least: float = 1.0

    @property
    def _quantiles(self) -> Quantiles:
        levels = [i / self.bins for i in range(self.bins + 1)]
        return Quantiles(self.features + 1, (*levels, 0.5), digits=4)

    def start(self) -> State:
        nodes = (self.trees, 2 ** (self.depth + 1) - 1)
        found = self._quantiles.start()
        return {
            **{f"quantiles/{name}": x for name, x in found.items()},
            "edges": np.zeros((self.features, self.bins - 1)),
            "base": np.zeros(()),
            "unit": np.ones(()),  # of the gradients' grid
            "column": np.full(nodes, -1, np.int64),
            "cut": np.zeros(nodes),
            "value": np.zeros(nodes),
            "tree": flag(0),
            "level": flag(0),
            "done": flag(0),
        }

    def lift(self, state: Tensors, x: Array, y: Array | None) -> Sums:
        """While there are no edges: counts of `Quantiles`. Then g and h, (nodes of this level,
        features, bins): sums of first and second derivatives."""
        rows = table(x, self.features)
        wanted = values(y, len(rows))
        if self.loss == "logistic":
            labels(y, len(rows), 2)
        found = _below(state, "quantiles/")
        if not done(found):
            return self._quantiles.lift(found, np.hstack([rows, wanted[:, None]]))
        g, h = self._derivatives(state, self.margins(state, rows), wanted)
        level = int(state["level"])
        if not 0 <= level < self.depth:
            raise TaskError("K55", f"expected a level below {self.depth}, got {level}")
        node = self._node(state, int(state["tree"]), rows) - (2**level - 1)
        here = (node >= 0) & (node < 2**level)
        shape = (2**level, self.features, self.bins)
        sums = {"g": np.zeros(shape), "h": np.zeros(shape)}
        for column, edges in enumerate(state["edges"]):
            cell = node * self.bins + np.searchsorted(edges, rows[:, column], side="right")
            for name, each in (("g", g), ("h", h)):
                counted = np.bincount(cell[here], each[here], minlength=2**level * self.bins)
                sums[name][:, column] = counted.reshape(2**level, self.bins)
        return sums

    def _derivatives(self, state: Tensors, margin: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Of the loss by the margin, first and second, on the grid."""
        unit = float(state["unit"])
        if self.loss == "squared":
            return np.rint((margin - y) / unit) * unit, np.ones_like(y)
        p = _sigmoid(margin)
        return np.rint((p - y) / unit) * unit, np.rint(p * (1 - p) / unit) * unit

    def step(self, state: Tensors, sums: Sums) -> State:
        """Raises: OpenFedError K52: there are no rows, or labels of one class only."""
        found = _below(state, "quantiles/")
        if done(found):
            return self._grown(state, sums)
        found = self._quantiles.step(found, sums)
        new = {**state, **{f"quantiles/{name}": x for name, x in found.items()}}
        return self._begun(new, found) if done(found) else new

    def _begun(self, state: State, found: State) -> State:
        """With edges, base and grid."""
        least, largest, middle = (float(found["low"][-1, i]) for i in (0, self.bins, -1))
        if self.loss == "logistic" and found["high"][-1, 0] >= 1:
            raise OpenFedError("K52", "boosted trees: all rows of the sites are of class 1")
        if self.loss == "logistic" and largest < 1:
            raise OpenFedError("K52", "boosted trees: all rows of the sites are of class 0")
        size = 1.0
        if self.loss == "squared":
            size = 2.0 ** np.ceil(np.log2(max(abs(least), abs(largest), 2.0**-900)))
        base = middle if self.loss == "squared" else 0.0
        edges = found["low"][:-1, 1 : self.bins]
        unit = np.asarray(size * 2.0**-GRID)
        return {**state, "edges": edges, "base": np.asarray(base), "unit": unit}

    def _grown(self, state: Tensors, sums: Sums) -> State:
        """One level more of the tree at work."""
        tree, level = int(state["tree"]), int(state["level"])
        column, cut, value = (np.array(state[name]) for name in ("column", "cut", "value"))
        for slot, (g, h) in enumerate(zip(sums["g"], sums["h"], strict=True)):
            node = 2**level - 1 + slot
            if level == 0:
                value[tree, 0] = self._leaf(g[0].sum(), h[0].sum())
            split = self._split(g, h)
            if split is None:
                continue
            best, edge = split
            column[tree, node], cut[tree, node] = best, state["edges"][best, edge]
            for child, part in ((1, slice(edge + 1)), (2, slice(edge + 1, None))):
                leaf = self._leaf(g[best, part].sum(), h[best, part].sum())
                value[tree, 2 * node + child] = leaf
        level += 1
        below = column[tree, 2 ** (level - 1) - 1 : 2**level - 1]
        if level == self.depth or (below < 0).all():
            tree, level = tree + 1, 0
        grown = {"column": column, "cut": cut, "value": value}
        over = flag(tree == self.trees)
        return {**state, **grown, "tree": flag(tree), "level": flag(level), "done": over}

    def _leaf(self, g: float, h: float) -> float:
        return -self.rate * g / (h + self.lam) if h + self.lam > 0 else 0.0

    def _split(self, g: Floats, h: Floats) -> tuple[int, int] | None:
        """The column and the edge of the best split of (features, bins) sums; None: none gains."""
        left_g, left_h = g.cumsum(axis=1)[:, :-1], h.cumsum(axis=1)[:, :-1]
        right_g, right_h = g.sum(axis=1)[:, None] - left_g, h.sum(axis=1)[:, None] - left_h
        allowed = (left_h >= self.least) & (right_h >= self.least) & (left_h > 0) & (right_h > 0)

        def term(g: Floats, h: Floats) -> Floats:
            return np.asarray(g**2 / np.where(allowed, h + self.lam, 1.0))

        gains = term(left_g, left_h) + term(right_g, right_h)
        gains = (gains - term(left_g + right_g, left_h + right_h)) / 2 - self.gamma
        gains = np.where(allowed, gains, -np.inf)
        best = int(gains.argmax())
        if not gains.flat[best] > 0:
            return None
        return best // gains.shape[1], best % gains.shape[1]

    def _node(self, state: Tensors, tree: int, rows: Floats) -> Ints:
        """The node of the tree in which each row ends."""
        node = np.zeros(len(rows), np.int64)
        for _ in range(self.depth):
            column = state["column"][tree][node]
            found = rows[np.arange(len(rows)), np.maximum(column, 0)]
            below = 2 * node + 1 + (found >= state["cut"][tree][node])
            node = np.where(column >= 0, below, node)
        return node

    def margins(self, state: Tensors, x: Array) -> Floats:
        """(rows,): the prediction for `squared`, the log odds of 1 for `logistic`, of the trees
        that are finished."""
        rows = table(x, self.features)
        found = np.full(len(rows), float(state["base"]))
        for tree in range(int(state["tree"])):
            found += state["value"][tree][self._node(state, tree, rows)]
        return found

    def predict(self, state: Tensors, x: Array) -> Floats:
        """(rows,): values for `squared`, probabilities of 1 for `logistic`."""
        margin = self.margins(state, x)
        return margin if self.loss == "squared" else _sigmoid(margin)


def _sigmoid(margin: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -margin)))


def _below(state: Tensors, prefix: str) -> State:
    return {name[len(prefix) :]: x for name, x in state.items() if name.startswith(prefix)}
