"""Aggregation that a minority of hostile updates cannot steer: median-like rules and Krum's family.

n: updates of a round, f: how many of them may be anything. Each rule has a bound on n and f, below
which it is refused. The weights of updates are what the plan says, and 1 each if it says nothing:
the number of samples is what a site claims.

Sources: trimmed mean: Yin et al. 2018, arXiv:1803.01498, definition 2. Geometric median (RFA):
Pillutla, Kakade, Harchaoui 2019, arXiv:1912.13445, the smoothed Weiszfeld algorithm. Krum,
Multi-Krum: Blanchard et al. 2017, arXiv:1703.02757. Bulyan: El Mhamdi, Guerraoui, Rouault 2018,
arXiv:1802.07927.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from openfed.errors import OpenFedError
from openfed.strategy.measure import Point, distances, middle, mixture, squared_distances
from openfed.strategy.reduce import Weighted
from openfed.tensors.record import Signature, Spec
from openfed.typing import Array

FEWEST: Mapping[str, Callable[[int], int]] = MappingProxyType(
    {
        "trimmed_mean": lambda f: 2 * f + 1,
        "krum": lambda f: 2 * f + 3,
        "multi_krum": lambda f: 2 * f + 3,
        "bulyan": lambda f: 4 * f + 3,
    }
)
"""The fewest updates with which a rule withstands f hostile ones."""


def shortfall(rule: str, n: int, f: int) -> str:
    """Why `rule` cannot work with n updates and f hostile ones; empty: it can."""
    fewest = FEWEST[rule](f)
    if f < 0:
        return f"{rule}: f is a number of updates, got {f}"
    if n >= fewest:
        return ""
    return f"{rule} with f = {f} needs at least {fewest} updates, got {n}"


def check(rule: str, n: int, f: int) -> None:
    """Raises: OpenFedError F10: too few updates for this f."""
    if problem := shortfall(rule, n, f):
        raise OpenFedError("F10", problem)


# -- coordinate by coordinate ----------------------------------------------------------------------


def _sorted(spec: Spec, start: int, out: Array, updates: Sequence[Weighted]) -> Array:
    """The updates' chunks, each element in ascending order: [updates, elements]."""
    found = np.empty((len(updates), out.size), out.dtype)
    for row, update in zip(found, updates, strict=True):
        update.source.read(spec.name, start, row)
    found.sort(axis=0)
    return found


def trimmed_mean(
    spec: Spec, start: int, out: Array, updates: Sequence[Weighted], *, f: int
) -> None:
    """A `Rule`: the mean of each element without its f smallest and f largest values; weights do
    not count. Raises: OpenFedError F10: n < 2f + 1."""
    check("trimmed_mean", len(updates), f)
    kept = _sorted(spec, start, out, updates)[f : len(updates) - f]
    with np.errstate(over="ignore"):
        out[...] = kept.mean(axis=0, dtype=np.float64)


def near_median(spec: Spec, start: int, out: Array, updates: Sequence[Weighted], *, f: int) -> None:
    """A `Rule`, the second half of Bulyan: the mean of each element's len(updates) - 2f values that
    are nearest to its median, which is one of them (the lower of two); weights do not count."""
    found = _sorted(spec, start, out, updates)
    with np.errstate(over="ignore"):
        away = np.abs(found - found[(len(updates) - 1) // 2])
        nearest = np.argsort(away, axis=0, kind="stable")[: len(updates) - 2 * f]
        kept = np.take_along_axis(found, nearest, axis=0)
        out[...] = kept.mean(axis=0, dtype=np.float64)


# -- whole updates ---------------------------------------------------------------------------------


def ranking(squared: Array, f: int) -> Array:
    """The places of n updates by Krum's score, the lowest first: the sum of the squared distances
    to the n - f - 2 nearest others, or to the nearest one if that is fewer.

    Equal scores, as two nearest neighbours of one another have where one is counted, are told apart
    by one neighbour more, and so on; at last the first comes first, as in the paper.
    `squared`: float64 [n, n]. Returns: int64 [n].
    """
    n = len(squared)
    others = np.sort(squared + np.diag(np.full(n, np.inf)), axis=1)
    sums = others.cumsum(axis=1)[:, max(n - f - 2, 1) - 1 :]
    return np.lexsort(sums.T[::-1])


def krum(updates: Sequence[Weighted], signature: Signature, *, f: int) -> list[Weighted]:
    """A `Screen`: the one update that comes first in Krum's ranking.

    Raises: OpenFedError F10: n < 2f + 3.
    """
    check("krum", len(updates), f)
    return [updates[int(ranking(squared_distances(updates, signature), f)[0])]]


def multi_krum(
    updates: Sequence[Weighted], signature: Signature, *, f: int, m: int | None = None
) -> list[Weighted]:
    """A `Screen`: the first m updates of Krum's ranking (default: n - f - 2, the most for which El
    Mhamdi et al. show that it withstands f).

    Raises: OpenFedError F10: n < 2f + 3, or m is not in 1 .. n - f - 2.
    """
    n = len(updates)
    check("multi_krum", n, f)
    most = n - f - 2
    m = most if m is None else m
    if not 1 <= m <= most:
        message = f"multi_krum with f = {f} and {n} updates needs m of 1 to {most}, got {m}"
        raise OpenFedError("F10", message)
    found = ranking(squared_distances(updates, signature), f)[:m]
    return [updates[int(index)] for index in np.sort(found)]


def bulyan(updates: Sequence[Weighted], signature: Signature, *, f: int) -> list[Weighted]:
    """A `Screen`, the first half of Bulyan: n - 2f times the one that Krum chooses of what is left.
    The second half is the rule `near_median` with the same f.

    Raises: OpenFedError F10: n < 4f + 3.
    """
    n = len(updates)
    check("bulyan", n, f)
    squared, left = squared_distances(updates, signature), list(range(n))
    for _ in range(n - 2 * f):
        left.pop(int(ranking(squared[np.ix_(left, left)], f)[0]))
    return [updates[index] for index in range(n) if index not in left]


def geometric_median(
    updates: Sequence[Weighted],
    signature: Signature,
    *,
    smoothing: float = 1e-6,
    passes: int = 32,
    tolerance: float = 1e-6,
) -> list[Weighted]:
    """A `Screen`: the updates with weights whose mean is their smoothed geometric median z, the
    point with the smallest sum of weighted distances. It withstands less than half of the weight.

    Weiszfeld's steps: b_i = w_i / max(smoothing, |z - x_i|), z <- sum b_i x_i / sum b_i, `passes`
    times at most, until no share b_i / sum b changes by more than `tolerance`. z begins at the
    coordinate median, where the authors leave it open: from the mean, a single huge update takes a
    pass for each factor of n to get rid of.
    Raises: OpenFedError F11: not one distance is finite.
    """
    weights = np.array([update.weight for update in updates])
    shares = np.zeros(len(updates))
    point: Point = middle
    for _ in range(passes):
        far = distances(updates, signature, point)
        if not np.isfinite(far).any():
            raise OpenFedError("F11", "the updates are so large that no distance can be computed")
        near = weights / np.maximum(smoothing, far)
        before, shares = shares, near / near.sum()
        if np.abs(shares - before).max() <= tolerance:
            break
        point = mixture(shares)
    pairs = zip(updates, shares, strict=True)
    return [replace(update, weight=float(share)) for update, share in pairs if share > 0]
