"""What a data set looks like: moments, covariance, histograms, quantiles; small groups suppressed.

`least`: a site whose group (or, without groups, whose table) has fewer rows sends zeros for it, and
says only that it did so. 0 suppresses nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openfed.errors import OpenFedError
from openfed.exact.base import (
    Floats,
    Ints,
    State,
    Sums,
    flag,
    labels,
    members,
    table,
)
from openfed.typing import Array, Tensors


def shown(counts: Floats, least: int) -> Floats:
    """1.0 where a count is large enough to be told, else 0.0."""
    return (counts >= max(least, 1)).astype(np.float64)


def hidden(counts: Floats, least: int) -> Floats:
    """1.0 where there is something that is too small to be told, else 0.0."""
    return ((counts > 0) & (counts < least)).astype(np.float64)


@dataclass(frozen=True)
class Moments:
    """Count, mean and variance (divisor n) of each column, per group, in two rounds.

    Round 1 finds the mean, round 2 sums deviations from it, and corrects for what rounding left of
    their sum: the corrected two-pass algorithm, Chan, Golub, LeVeque 1983, eq. 1.7. `y`: the
    group of each row, 0 to `groups` - 1; with one group it may be absent.
    State: n (groups,), mean and variance (groups, features), suppressed (groups,): sites that sent
    nothing. A group without rows has mean and variance 0.
    """

    features: int
    groups: int = 1
    least: int = 0

    def start(self) -> State:
        shape = (self.groups, self.features)
        zeros = {"mean": np.zeros(shape), "variance": np.zeros(shape)}
        counts = {"n": np.zeros(self.groups), "suppressed": np.zeros(self.groups)}
        return {**zeros, **counts, "round": flag(0), "done": flag(0)}

    def lift(self, state: Tensors, x: Array, y: Array | None) -> Sums:
        rows = table(x, self.features)
        alone = self.groups == 1 and y is None
        group = labels(np.zeros(len(rows)) if alone else y, len(rows), self.groups, "group")
        member = members(group, self.groups)
        n = member.sum(axis=0)
        told = shown(n, self.least)
        deviation = rows - state["mean"][group]
        return {
            "n": n * told,
            "first": member.T @ deviation * told[:, None],
            "second": member.T @ deviation**2 * told[:, None],
            "suppressed": hidden(n, self.least),
        }

    def step(self, state: Tensors, sums: Sums) -> State:
        n, first = sums["n"][:, None], sums["first"]
        shift = first / np.maximum(n, 1)
        variance = (sums["second"] - first * shift) / np.maximum(n, 1)
        round = int(state["round"]) + 1
        return {
            "mean": np.where(n > 0, state["mean"] + shift, 0.0),
            "variance": np.maximum(variance, 0.0),
            "n": sums["n"],
            "suppressed": sums["suppressed"],
            "round": flag(round),
            "done": flag(round == 2),
        }


@dataclass(frozen=True)
class Covariance:
    """Mean and covariance (divisor n) of the columns, in two rounds, as `Moments`.

    State: n (), mean (features,), covariance (features, features), suppressed ().
    """

    features: int
    least: int = 0

    def start(self) -> State:
        d = self.features
        counts = {"n": np.zeros(()), "suppressed": np.zeros(())}
        tensors = {"mean": np.zeros(d), "covariance": np.zeros((d, d))}
        return {**tensors, **counts, "round": flag(0), "done": flag(0)}

    def lift(self, state: Tensors, x: Array, y: Array | None = None) -> Sums:
        rows = table(x, self.features)
        n = np.asarray(float(len(rows)))
        deviation = rows - state["mean"]
        told = float(shown(n, self.least))
        return {
            "n": n * told,
            "first": deviation.sum(axis=0) * told,
            "second": deviation.T @ deviation * told,
            "suppressed": hidden(n, self.least),
        }

    def step(self, state: Tensors, sums: Sums) -> State:
        n, first = max(float(sums["n"]), 1.0), sums["first"]
        covariance = (sums["second"] - np.outer(first, first) / n) / n
        round = int(state["round"]) + 1
        return {
            "mean": state["mean"] + first / n,
            "covariance": (covariance + covariance.T) / 2,
            "n": sums["n"],
            "suppressed": sums["suppressed"],
            "round": flag(round),
            "done": flag(round == 2),
        }


def correlation(covariance: Floats) -> Floats:
    """Pearson's r of each pair of columns; NaN where one of them is constant."""
    scale = np.sqrt(np.diag(covariance))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.clip(covariance / np.outer(scale, scale), -1.0, 1.0))


@dataclass(frozen=True)
class Histogram:
    """Counts between public edges, in one round.

    `edges`: ascending, the same for all columns. Bin 0 is below the first, bin i has
    edges[i - 1] <= value < edges[i], the last is from the last edge on: what lies outside is seen.
    A site's bin of fewer than `least` rows is told as 0.
    State: counts (features, edges + 1), suppressed (features,): bins that were not told.
    """

    features: int
    edges: tuple[float, ...]
    least: int = 0

    def start(self) -> State:
        counts = np.zeros((self.features, len(self.edges) + 1))
        return {"counts": counts, "suppressed": np.zeros(self.features), "done": flag(0)}

    def lift(self, state: Tensors, x: Array, y: Array | None = None) -> Sums:
        found = np.searchsorted(self.edges, table(x, self.features), side="right")
        counts = histograms(found.astype(np.int64), len(self.edges) + 1)
        told = counts * shown(counts, self.least)
        return {"counts": told, "suppressed": hidden(counts, self.least).sum(axis=1)}

    def step(self, state: Tensors, sums: Sums) -> State:
        return {**sums, "done": flag(1)}


def histograms(bins: Ints, size: int) -> Floats:
    """(columns, size): how often each of 0 to `size` - 1 is in each column of (rows, columns)."""
    columns = bins.shape[1]
    flat = (bins + np.arange(columns) * size).reshape(-1)
    return np.bincount(flat, minlength=columns * size).astype(np.float64).reshape(columns, size)


DIGITS = 8
"""Bytes of a float64: a quantile is found digit by digit, in base 256."""

Keys = NDArray[np.uint64]

_SIGN = np.int64(-(2**63))


def keys_of(x: Floats) -> Keys:
    """Unsigned integers in the order of the floats: the bits, all flipped where negative, else the
    sign's. -0.0 counts as 0.0."""
    bits = (x + 0.0).view(np.int64)
    return np.where(bits < 0, ~bits, bits ^ _SIGN).view(np.uint64)


def floats_of(keys: Keys) -> Floats:
    """The inverse of `keys_of`; a key that stands for no finite float gives the nearest that is."""
    bits = keys.view(np.int64)
    found = np.where(bits < 0, bits ^ _SIGN, ~bits).view(np.float64)
    largest = np.finfo(np.float64).max
    edge = np.where(bits < 0, largest, -largest)
    return np.where(np.isfinite(found), np.clip(found, -largest, largest), edge)


@dataclass(frozen=True)
class Quantiles:
    """Order statistics, exact to the bit, of each column in `digits` rounds.

    A float64's bits, read as an integer, have the floats' order (`keys_of`). Round r counts, among
    the values that share the r digits (base 256) found so far, each next digit: one step of a radix
    selection. Two digits know a value to 1/16 of itself, four to 1e-6, eight exactly.
    `quantiles`: each in 0..1; between two order statistics it is linear, numpy's default.
    `least`: a site with fewer rows sends zeros, and no digit is followed that fewer rows share, so
    that low < high says how far it is known.
    State: quantile, low, high (features, quantiles): low <= quantile <= high; n ().
    """

    features: int
    quantiles: tuple[float, ...]
    least: int = 0
    digits: int = DIGITS

    def start(self) -> State:
        targets = (self.features, 2 * len(self.quantiles))  # the order statistics on both sides
        found = np.zeros((self.features, len(self.quantiles)))
        return {
            "key": np.zeros(targets, np.uint64),
            "known": np.zeros(targets, np.int64),
            "rank": np.zeros(targets),
            "n": np.zeros(()),
            **{name: found.copy() for name in ("quantile", "low", "high")},
            "round": flag(0),
            "done": flag(0),
        }

    def lift(self, state: Tensors, x: Array, y: Array | None = None) -> Sums:
        keys, round = keys_of(table(x, self.features)), int(state["round"])
        counts = np.zeros((*state["key"].shape, 256))
        if len(keys) >= self.least:
            digit = ((keys >> np.uint64(56 - 8 * round)) & np.uint64(255)).astype(np.int64)
            for column, target in np.argwhere(state["known"] == round):
                here = slice(None)
                if round:
                    shift = np.uint64(64 - 8 * round)
                    here = keys[:, column] >> shift == state["key"][column, target] >> shift
                counts[column, target] = np.bincount(digit[here, column], minlength=256)
        return {"counts": counts}

    def step(self, state: Tensors, sums: Sums) -> State:
        """Raises: OpenFedError K52: no site has told of any rows."""
        counts, round = sums["counts"], int(state["round"])
        n, rank = state["n"], state["rank"]
        if round == 0:
            n = counts[0, 0].sum()
            if n == 0:
                raise OpenFedError("K52", "quantiles: no site has told of any rows")
            rank = np.broadcast_to(self._ranks(float(n)), rank.shape)
        below = counts.cumsum(axis=-1)
        digit = np.minimum((below <= rank[..., None]).sum(axis=-1), 255)[..., None]
        inside = np.take_along_axis(counts, digit, -1)[..., 0]
        before = np.take_along_axis(below, digit, -1)[..., 0] - inside
        go = (state["known"] == round) & (inside >= max(self.least, 1))
        key = state["key"] | (digit[..., 0].astype(np.uint64) << np.uint64(56 - 8 * round))
        key, known = np.where(go, key, state["key"]), state["known"] + go
        over = round + 1 == self.digits or not go.any()
        return {
            "key": key,
            "known": known,
            "rank": np.where(go, rank - before, rank),
            "n": np.asarray(n),
            **self._between(float(n), key, known),
            "round": flag(round + 1),
            "done": flag(over),
        }

    def _ranks(self, n: float) -> Floats:
        position = (n - 1) * np.asarray(self.quantiles)
        return np.concatenate([np.floor(position), np.ceil(position)])

    def _between(self, n: float, key: Keys, known: Ints) -> State:
        rest = np.array([2 ** (64 - 8 * k) - 1 for k in range(DIGITS + 1)], np.uint64)[known]
        low, high = floats_of(key), floats_of(key | rest)
        position, half = (n - 1) * np.asarray(self.quantiles), len(self.quantiles)
        share = position - np.floor(position)
        ends = [end[:, :half] * (1 - share) + end[:, half:] * share for end in (low, high)]
        low, high = ends
        middle = np.where(low == high, low, low / 2 + high / 2)  # half of the least float is 0
        return {"low": low, "high": high, "quantile": middle}
