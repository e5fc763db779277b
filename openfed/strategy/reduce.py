"""Many updates into one, block by block: memory does not grow with collaborators.

The formula, to which every new model is bit-equal. For a floating entry, over the accepted
updates in the order of their collaborators' names, in the entry's accumulator type:

    acc = w_1 * d_1;  acc = acc + w_i * d_i  for i = 2..N;  mean = acc / W

with w_i and W = sum of w_i (a float64 sum) rounded to the accumulator type. Entries of float64
accumulate in float64, all others in float32. An integer or boolean entry takes the largest value.
Source: FedAvg, McMahan et al. 2017, arXiv:1602.05629, algorithm 1, on differences of weights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from openfed.tensors.record import DTYPES, FLOATING, Kind, Signature, Spec
from openfed.typing import Tensors

BLOCK = 1 << 16
"""Elements that are reduced at a time: three buffers of it stay in a core's cache."""


class Source(Protocol):
    """Where an update's elements come from: an open frame, or a test's arrays."""

    def read(self, name: str, start: int, out: np.ndarray[Any, Any]) -> None:
        """Fill `out` with elements of the entry `name` from `start` on."""
        ...


@dataclass(frozen=True)
class Weighted:
    """One accepted update. `weight` > 0 and finite."""

    source: Source
    weight: float


def accumulator(dtype: str) -> np.dtype[Any]:
    """The type in which differences of an entry of `dtype` travel and are added."""
    return DTYPES["float64"] if dtype == "float64" else DTYPES["float32"]


def update_signature(model: Signature) -> Signature:
    """What an update of `model` looks like: differences of the floating entries, values of the
    others; frozen entries are not in it."""
    return tuple(
        Spec(spec.name, accumulator(spec.dtype).name, spec.shape, spec.kind)
        if spec.dtype in FLOATING
        else spec
        for spec in model
        if spec.kind is not Kind.FROZEN
    )


def difference(trained: Tensors, base: Tensors, model: Signature) -> Tensors:
    """The update: `trained - base` for floating entries, the trained value for the others."""
    update = {}
    for spec in model:
        if spec.kind is Kind.FROZEN:
            continue
        if spec.dtype in FLOATING:
            kind = accumulator(spec.dtype)
            new, old = trained[spec.name].astype(kind), base[spec.name].astype(kind)
            update[spec.name] = np.asarray(new - old)
        else:
            update[spec.name] = trained[spec.name]
    return update


def add(model: Tensors, delta: Tensors) -> Tensors:
    """The new model: floating entries moved by `delta`, in the accumulator's type and rounded to
    the entry's; integer and boolean entries replaced by it."""
    moved = dict(model)
    for name, change in delta.items():
        old = model[name]
        if old.dtype.name in FLOATING:
            moved[name] = np.asarray(old.astype(change.dtype) + change).astype(old.dtype)
        else:
            moved[name] = change
    return moved


def reduce_updates(updates: Sequence[Weighted], signature: Signature) -> Tensors:
    """The reduced update over `updates`, which are in name order; `signature` describes one.

    Raises: ValueError: no updates, or a weight that is not a positive finite number.
    """
    if not updates or not all(0 < update.weight < np.inf for update in updates):
        raise ValueError("expected updates with positive finite weights")
    total = sum(update.weight for update in updates)
    reduced = {}
    for spec in signature:
        flat = np.empty(int(np.prod(spec.shape, dtype=np.int64)), DTYPES[spec.dtype])
        for start, block in _blocks(flat):
            if spec.dtype in FLOATING:
                _mean(spec.name, start, block, updates, total)
            else:
                _largest(spec.name, start, block, updates)
        reduced[spec.name] = flat.reshape(spec.shape)
    return reduced


def _blocks(flat: np.ndarray[Any, Any]) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    for start in range(0, flat.size, BLOCK):
        yield start, flat[start : start + BLOCK]


def _mean(
    name: str,
    start: int,
    out: np.ndarray[Any, Any],
    updates: Sequence[Weighted],
    total: float,
) -> None:
    """Into `out`, which doubles as the accumulator."""
    kind = out.dtype.type
    term = np.empty_like(out)
    for index, update in enumerate(updates):
        into = term if index else out
        update.source.read(name, start, into)
        np.multiply(into, kind(update.weight), out=into)
        if index:
            np.add(out, term, out=out)
    np.divide(out, kind(total), out=out)


def _largest(name: str, start: int, out: np.ndarray[Any, Any], updates: Sequence[Weighted]) -> None:
    term = np.empty_like(out)
    for index, update in enumerate(updates):
        into = term if index else out
        update.source.read(name, start, into)
        if index:
            np.maximum(out, term, out=out)
