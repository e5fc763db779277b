"""A record: named tensors and numbers, and what a plan says they must look like."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from openfed.typing import Numbers, Tensors

DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        name: np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)
        for name in (
            "bool",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
            "int8",
            "int16",
            "int32",
            "int64",
            "float16",
            "bfloat16",
            "float32",
            "float64",
        )
    }
)
"""The dtypes a frame may hold, by name. Closed: nothing else is ever decoded."""

FLOATING = frozenset({"float16", "bfloat16", "float32", "float64"})

Empty: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Record:
    """Named tensors and short number vectors; what one node hands to another."""

    tensors: Tensors = field(default_factory=lambda: Empty)
    numbers: Numbers = field(default_factory=lambda: Empty)


class Kind(StrEnum):
    """What an entry of a model is; strategies, noise and lossy codecs see parameters only."""

    PARAMETER = "parameter"  # floating; trained, averaged by the strategy
    BUFFER = "buffer"  # floating: averaged; integer: the largest value
    STATE = "state"  # optimiser state that the plan averages
    CONTROL = "control"  # floating; what a method exchanges beside the model; for its strategy
    FROZEN = "frozen"  # fixed for the whole run; fetched once, never sent up


@dataclass(frozen=True)
class Spec:
    """Name, dtype (a key of `DTYPES`), shape and kind of one entry."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: Kind = Kind.PARAMETER

    @property
    def count(self) -> int:
        """Elements of the entry."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes of the entry."""
        return self.count * DTYPES[self.dtype].itemsize


def spec_json(spec: Spec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "dtype": spec.dtype,
        "shape": list(spec.shape),
        "kind": spec.kind.value,
    }


def spec_of(entry: Mapping[str, Any]) -> Spec:
    """What `spec_json` was given; raises KeyError, TypeError or ValueError for anything else."""
    name, dtype, shape, kind = (entry[key] for key in ("name", "dtype", "shape", "kind"))
    whole = all(type(extent) is int and 0 <= extent < 2**40 for extent in shape)
    if len(entry) != 4 or dtype not in DTYPES or not isinstance(name, str) or not whole:
        raise ValueError(f"signature of {str(name)[:60]}")
    return Spec(name, dtype, tuple(shape), Kind(kind))


Signature = tuple[Spec, ...]
"""The entries of a model that travel, sorted by name."""


def layout_of(specs: Signature) -> list[tuple[str, str, tuple[int, ...]]]:
    """Names, dtypes and shapes: what bytes can say of a signature."""
    return [(spec.name, spec.dtype, spec.shape) for spec in specs]


def dtype_name(array: np.ndarray[Any, Any]) -> str:
    """The name in `DTYPES` of an array's dtype; raises `KeyError` for one that has none."""
    name = str(array.dtype.name)
    if name not in DTYPES:
        raise KeyError(name)
    return name


def signature_of(tensors: Tensors, kinds: Mapping[str, Kind] = Empty) -> Signature:
    """Describe `tensors`; an entry not in `kinds` is a parameter."""
    return tuple(
        Spec(name, dtype_name(value), tuple(value.shape), kinds.get(name, Kind.PARAMETER))
        for name, value in sorted(tensors.items())
    )


Scope = tuple[tuple[str, str], ...]
"""`((glob, "local" | "global"), ...)`: the first match wins; no match is global."""


def is_local(name: str, scope: Scope) -> bool:
    """Whether the plan keeps the entry `name` at its site."""
    for pattern, where in scope:
        if fnmatchcase(name, pattern):
            return where == "local"
    return False


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether any of the globs matches (case-sensitive, `fnmatch` rules)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
