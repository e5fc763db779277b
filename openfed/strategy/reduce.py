"""Many updates into one, block by block: memory does not grow with collaborators.

The formula, to which every new model is bit-equal. For a floating entry, over the accepted
updates in the order of their collaborators' names, in the entry's accumulator type:

    acc = w_1 * d_1;  acc = acc + w_i * d_i  for i = 2..N;  mean = acc / W

with w_i and W = sum of w_i (a float64 sum) rounded to the accumulator type. Entries of float64
accumulate in float64, all others in float32. An integer or boolean entry takes the largest value.
Source: FedAvg, McMahan et al. 2017, arXiv:1602.05629, algorithm 1, on differences of weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from openfed.tensors.frame import Source, chunks
from openfed.tensors.record import DTYPES, FLOATING, Signature, Spec
from openfed.typing import Array, Tensors


@dataclass(frozen=True)
class Weighted:
    """One accepted update. `weight` > 0 and finite."""

    source: Source
    weight: float


Rule = Callable[[Spec, int, Array, Sequence[Weighted]], None]
"""Fills a chunk of a floating entry, from its first element on, with the reduced update."""


def empty(signature: Signature) -> Tensors:
    """Memory for every entry."""
    return {spec.name: np.empty(spec.shape, DTYPES[spec.dtype]) for spec in signature}


def reduce_updates(
    updates: Sequence[Weighted],
    signature: Signature,
    rule: Rule | None = None,
    allocate: Callable[[Signature], Tensors] = empty,
) -> Tensors:
    """The reduced update over `updates`, which are in name order; `signature` describes one.

    `rule`: what is done with floating entries; None is the weighted mean.
    Raises: ValueError: no updates, or a weight that is not a positive finite number.
    """
    if not updates or not all(0 < update.weight < np.inf for update in updates):
        raise ValueError("expected updates with positive finite weights")
    reduced = allocate(signature)
    for spec in signature:
        flat = reduced[spec.name].reshape(-1)
        chosen = (rule or weighted_mean) if spec.dtype in FLOATING else _largest
        for start, count in chunks(spec):
            chosen(spec, start, flat[start : start + count], updates)
    return reduced


def weighted_mean(spec: Spec, start: int, out: Array, updates: Sequence[Weighted]) -> None:
    """The formula above, into `out`, which doubles as the accumulator."""
    kind = out.dtype.type
    term = np.empty_like(out)
    for index, update in enumerate(updates):
        into = term if index else out
        update.source.read(spec.name, start, into)
        np.multiply(into, kind(update.weight), out=into)
        if index:
            np.add(out, term, out=out)
    np.divide(out, kind(sum(update.weight for update in updates)), out=out)


def added(spec: Spec, start: int, out: Array, updates: Sequence[Weighted]) -> None:
    """The plain sum, one after the other; weights do not count."""
    out[...] = 0
    term = np.empty_like(out)
    for update in updates:
        update.source.read(spec.name, start, term)
        np.add(out, term, out=out)


def coordinate_median(spec: Spec, start: int, out: Array, updates: Sequence[Weighted]) -> None:
    """The middle value of each element, or the mean of the two middle ones; weights do not count.

    Needs all updates at once: N chunks of memory. Source: Yin et al. 2018, arXiv:1803.01498,
    definition 1.
    """
    found = np.empty((len(updates), out.size), out.dtype)
    for row, update in zip(found, updates, strict=True):
        update.source.read(spec.name, start, row)
    found.sort(axis=0)
    low, high = found[(len(updates) - 1) // 2], found[len(updates) // 2]
    np.multiply(low, out.dtype.type(0.5), out=out)
    np.add(out, high * out.dtype.type(0.5), out=out)


def _largest(spec: Spec, start: int, out: Array, updates: Sequence[Weighted]) -> None:
    term = np.empty_like(out)
    for index, update in enumerate(updates):
        into = term if index else out
        update.source.read(spec.name, start, into)
        if index:
            np.maximum(out, term, out=out)
