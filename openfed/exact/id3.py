"""ID3: a decision tree on categories, one round a level, from counts."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from openfed.errors import OpenFedError
from openfed.exact.base import Floats, Ints, State, Sums, flag, labels, table
from openfed.exact.statistics import histograms
from openfed.typing import Array, Tensors

PLACES = 12
"""Gains are compared to so many decimal places, in bits: equals are equal on every machine."""


@dataclass(frozen=True)
class ID3:
    """Quinlan 1986: each node asks for the column with the largest information gain, the first of
    equals, and has a child for each of its levels, until its rows are of one class, no column
    tells them apart, or `depth` is reached. Counts are whole, so any split of the rows over sites
    gives the same tree. `levels`: how many each column has; a value is 0 to its levels - 1.

    State, a node an element: column (int64; -1: a leaf), child (int64: the node of level 0; the
    others follow it), counts (nodes, classes), label (int64: the most frequent class, the first of
    equals; where no row has come, the parent's), open (int64: 1 where the next round may split).
    """

    levels: tuple[int, ...]
    classes: int
    depth: int = 64

    @property
    def features(self) -> int:
        return len(self.levels)

    def start(self) -> State:
        one = np.zeros(1, np.int64)
        return {
            "column": one - 1,
            "child": one,
            "counts": np.zeros((1, self.classes)),
            "label": one,
            "open": one + 1,
            "depth": flag(0),
            "done": flag(0),
        }

    def _checked(self, x: Array) -> Ints:
        rows = table(x, self.features)
        columns = [
            labels(column, len(rows), levels, f"level of column {index}")
            for index, (column, levels) in enumerate(zip(rows.T, self.levels, strict=True))
        ]
        return np.stack(columns, axis=1)

    def lift(self, state: Tensors, x: Array, y: Array | None) -> Sums:
        """counts (open nodes, classes, sum of levels): how often each level is there."""
        rows = self._checked(x)
        wanted = labels(y, len(rows), self.classes)
        open = np.flatnonzero(state["open"])
        place = np.full(len(state["open"]), -1)
        place[open] = np.arange(len(open))
        slot = place[self._node(state, rows)]
        here, cells = slot >= 0, len(open) * self.classes
        cell = (slot * self.classes + wanted)[here, None]
        found = [
            histograms(cell * levels + rows[here, column, None], cells * levels)
            for column, levels in enumerate(self.levels)
        ]
        shape = (len(open), self.classes)
        return {"counts": np.concatenate([each.reshape(*shape, -1) for each in found], axis=2)}

    def step(self, state: Tensors, sums: Sums) -> State:
        """Raises: OpenFedError K52: there are no rows."""
        parts = np.split(sums["counts"], np.cumsum(self.levels)[:-1], axis=2)
        new: dict[str, list[Any]] = {
            name: list(state[name]) for name in ("column", "child", "counts", "label", "open")
        }
        if not sums["counts"].any():
            raise OpenFedError("K52", "ID3: there is no row at any site")
        depth = int(state["depth"])
        for slot, node in enumerate(np.flatnonzero(state["open"])):
            counts = [part[slot] for part in parts]
            new["counts"][node] = counts[0].sum(axis=1)
            new["open"][node] = 0
            if depth == 0:
                new["label"][node] = counts[0].sum(axis=1).argmax()
            column = self._column(counts) if depth < self.depth else -1
            if column >= 0:
                new["column"][node], new["child"][node] = column, len(new["label"])
                self._add(new, counts[column], new["label"][node])
        kept = {name: np.asarray(value, state[name].dtype) for name, value in new.items()}
        over = not kept["open"].any()
        return {**kept, "depth": flag(depth + 1), "done": flag(over)}

    def _column(self, counts: list[Floats]) -> int:
        """Where to split; -1: nowhere."""
        if (counts[0].sum(axis=1) > 0).sum() < 2:
            return -1
        gains = [gain(each) if (each.sum(axis=0) > 0).sum() > 1 else -1.0 for each in counts]
        best = int(np.argmax(gains))
        return best if gains[best] >= 0 else -1

    def _add(self, new: dict[str, list[Any]], counts: Floats, label: int) -> None:
        """A child for each level, with its (classes, levels) counts."""
        for each in counts.T:
            new["column"].append(-1)
            new["child"].append(0)
            new["counts"].append(each)
            new["label"].append(each.argmax() if each.any() else label)
            new["open"].append(int((each > 0).sum() > 1))

    def _node(self, state: Tensors, rows: Ints) -> Ints:
        """The node in which each row ends."""
        node = np.zeros(len(rows), np.int64)
        for _ in range(int(state["depth"])):
            column = state["column"][node]
            level = rows[np.arange(len(rows)), np.maximum(column, 0)]
            node = np.where(column >= 0, state["child"][node] + level, node)
        return node

    def predict(self, state: Tensors, x: Array) -> Ints:
        return np.asarray(state["label"][self._node(state, self._checked(x))])


def entropy(counts: Floats) -> Floats:
    """Bits, over axis 0; 0 where there is nothing."""
    share = counts / np.maximum(counts.sum(axis=0), 1)
    return np.asarray(-(share * np.log2(np.where(share > 0, share, 1.0))).sum(axis=0))


def gain(counts: Floats) -> float:
    """Information gain of a column with counts (classes, levels), in bits, rounded to `PLACES`."""
    n = counts.sum(axis=0)
    told = entropy(counts.sum(axis=1)) - (n * entropy(counts)).sum() / n.sum()
    return float(max(0.0, round(float(told), PLACES)))
