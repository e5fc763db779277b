"""What is measured on whole updates, in passes over their chunks: norms and distances.

Two contracts make all rules of aggregation. A `Screen` (here) sees whole updates: it measures them
and gives back updates, some of them with another weight, scaled, or left out. A `Rule` (reduce.py)
then makes one update of them, chunk by chunk. Memory is a chunk of every update (512 KiB in
float64), and never a model of each. Only floating entries are measured and scaled.

Sums are float64 and made without BLAS, so that they do not depend on its number of threads.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from openfed.strategy.reduce import Weighted
from openfed.tensors.frame import Source, chunks
from openfed.tensors.record import DTYPES, FLOATING, Empty, Signature, Spec
from openfed.typing import Array, Numbers, Tensors

Screen = Callable[[Sequence[Weighted], Signature], Sequence[Weighted]]
"""From the accepted updates, in name order, to those that count, in the same order."""

Point = Callable[[Spec, int, Array], Array]
"""What updates are compared with, a chunk at a time: (entry, first element, the updates' chunks as
float64 [updates, elements]) -> float64 [elements]."""


@dataclass(frozen=True)
class Scaled:
    """`scale * x + (1 - scale) * center` in place of each entry x in `names`, others as they are.

    Entries without a center are scaled from zero. `scale` >= 0 is rounded to the entry's type.
    """

    source: Source
    scale: float
    names: frozenset[str]
    center: Tensors = field(default_factory=lambda: Empty)

    @property
    def specs(self) -> Signature:
        return self.source.specs

    @property
    def numbers(self) -> Numbers:
        return self.source.numbers

    def read(self, name: str, start: int, out: Array) -> None:
        self.source.read(name, start, out)
        if name not in self.names or self.scale == 1:
            return
        np.multiply(out, out.dtype.type(self.scale), out=out)
        if name in self.center:
            rest = out.dtype.type(1 - self.scale)
            np.add(out, rest * part(self.center, name, start, out.size), out=out)


def floating(signature: Signature) -> frozenset[str]:
    """The names of the floating entries."""
    return frozenset(spec.name for spec in signature if spec.dtype in FLOATING)


def scaled(
    updates: Sequence[Weighted],
    scales: Sequence[float],
    names: frozenset[str],
    center: Tensors = Empty,
) -> list[Weighted]:
    """Each update moved towards `center` (zero where it has no entry), its weight kept."""
    return [
        replace(update, source=Scaled(update.source, scale, names, center))
        for update, scale in zip(updates, scales, strict=True)
    ]


def part(tensors: Tensors, name: str, start: int, count: int) -> Array:
    """Some elements of an entry, flat; no copy of a contiguous one."""
    return np.asarray(tensors[name]).reshape(-1)[start : start + count]


def rows(updates: Sequence[Weighted], signature: Signature) -> Iterator[tuple[Spec, int, Array]]:
    """(entry, first element, float64 [updates, elements]) of each chunk of a floating entry."""
    for spec in signature:
        if spec.dtype not in FLOATING:
            continue
        for start, count in chunks(spec):
            found = np.empty((len(updates), count))
            chunk = np.empty(count, DTYPES[spec.dtype])
            for row, update in zip(found, updates, strict=True):
                update.source.read(spec.name, start, chunk)
                row[...] = chunk
            yield spec, start, found


def norms(updates: Sequence[Weighted], signature: Signature) -> Array:
    """Euclidean norm of each update, float64 [updates]; infinite where its square overflows."""
    total = np.zeros(len(updates))
    with np.errstate(over="ignore"):
        for index, update in enumerate(updates):
            for _, _, found in rows([update], signature):
                total[index] += np.square(found[0]).sum()
    return np.asarray(np.sqrt(total))


def distances(updates: Sequence[Weighted], signature: Signature, point: Point) -> Array:
    """Euclidean distance of each update to a point, float64 [updates]; infinite on overflow."""
    total = np.zeros(len(updates))
    with np.errstate(over="ignore"):
        for spec, start, found in rows(updates, signature):
            there = point(spec, start, found)
            for index, row in enumerate(found):
                total[index] += np.square(row - there).sum()
    return np.asarray(np.sqrt(total))


def squared_distances(updates: Sequence[Weighted], signature: Signature) -> Array:
    """Squared distances of all pairs, float64 [updates, updates]; infinite on overflow.

    Made of differences, one pair after the other: products of updates would be faster, and let a
    single huge update wipe out the digits of all others.
    """
    total = np.zeros((len(updates), len(updates)))
    with np.errstate(over="ignore"):
        for _, _, found in rows(updates, signature):
            for i, row in enumerate(found):
                for j in range(i):
                    total[i, j] += np.square(row - found[j]).sum()
    return np.asarray(total + total.T)


def mixture(shares: Array, center: Tensors = Empty) -> Point:
    """The point sum_i shares[i] * update i, plus (1 - sum of shares) * center where that has the
    entry. `shares`: float64 [updates], >= 0."""

    def point(spec: Spec, start: int, found: Array) -> Array:
        there = np.zeros(found.shape[1])
        for share, row in zip(shares, found, strict=True):
            if share:
                there += share * row
        if spec.name in center:
            there += (1 - shares.sum()) * part(center, spec.name, start, there.size)
        return there

    return point


def middle(spec: Spec, start: int, found: Array) -> Array:
    """The coordinate median, as a point."""
    ordered = np.sort(found, axis=0)
    low, high = ordered[(len(found) - 1) // 2], ordered[len(found) // 2]
    return np.asarray(low * 0.5 + high * 0.5)
