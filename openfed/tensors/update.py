"""What an update is: the difference between a trained model and the one that was sent."""

from typing import Any

import numpy as np

from openfed.tensors.record import DTYPES, FLOATING, Kind, Signature, Spec
from openfed.typing import Array, Tensors


def accumulator(dtype: str) -> np.dtype[Any]:
    """The type in which differences of an entry of `dtype` travel and are added."""
    return DTYPES["float64"] if dtype == "float64" else DTYPES["float32"]


def travelling(model: Signature) -> Signature:
    """The entries that go down and come up in every round."""
    return tuple(spec for spec in model if spec.kind is not Kind.FROZEN)


def update_signature(model: Signature) -> Signature:
    """What an update of `model` looks like: differences of the floating entries, values of the
    others; frozen entries are not in it."""
    return tuple(
        Spec(spec.name, accumulator(spec.dtype).name, spec.shape, spec.kind)
        if spec.dtype in FLOATING
        else spec
        for spec in travelling(model)
    )


def difference(trained: Array, base: Array) -> Array:
    """The update of some elements: `trained - base`, in the accumulator's type, for floating
    entries, the trained values for the others."""
    if trained.dtype.name not in FLOATING:
        return trained
    kind = accumulator(trained.dtype.name)
    return np.asarray(trained.astype(kind, copy=False) - base.astype(kind, copy=False))


def add(model: Tensors, delta: Tensors) -> Tensors:
    """The new model: floating entries moved by `delta`, in the accumulator's type and rounded to
    the entry's; integer and boolean entries replaced by it. Takes over the memory of `delta`."""
    moved = dict(model)
    for name, change in delta.items():
        old = model[name]
        if old.dtype.name in FLOATING:
            moved[name] = np.add(old, change, out=change, dtype=change.dtype, casting="same_kind")
            moved[name] = moved[name].astype(old.dtype, copy=False)
        else:
            moved[name] = change
    return moved
