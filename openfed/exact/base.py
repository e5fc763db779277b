"""The contract of methods that are exact on sums: no record leaves a site, only sums over them.

A method is a frozen dataclass of settings with three pure functions:

    start() -> state            tensors; the same everywhere, from the settings alone
    lift(state, x, y) -> sums   at a site: float64 arrays, each a sum over the site's rows
    step(state, sums) -> state  at the aggregator: from the sites' added sums to the next state

Merging is plain addition in the order of the sites' names. Names and shapes of the sums depend on
the state alone (`shapes`); no rows lift to zeros, so a site without rows changes nothing. A state
holds finite numbers only; its entry "done" (int64, shape ()) is 1 after the last step, and a method
that predicts does so from that state. Lengths of entries may grow from round to round (trees).

A sum over one row is that row: suppression is in `statistics`, noise and secure sums are others'.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from openfed.errors import OpenFedError, TaskError
from openfed.typing import Array, Tensors

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Sums = dict[str, Floats]
State = dict[str, Array]

EPS = float(np.finfo(np.float64).eps)


class Method(Protocol):
    """What is done with a table of `features` columns, and labels where the method needs them."""

    @property
    def features(self) -> int: ...
    def start(self) -> State: ...
    def lift(self, state: Tensors, x: Array, y: Array | None) -> Sums: ...
    def step(self, state: Tensors, sums: Sums) -> State: ...


def flag(value: bool | int) -> Ints:
    """An int64 of shape ()."""
    return np.asarray(int(value), np.int64)


def done(state: Tensors) -> bool:
    """Whether no further step is needed."""
    return bool(state["done"])


def table(x: Array, columns: int) -> Floats:
    """`x` as float64, C order. Raises: TaskError K50: not (rows, `columns`), or not finite."""
    found = np.ascontiguousarray(x, np.float64)
    if found.ndim != 2 or found.shape[1] != columns:
        message = f"expected a table of {columns} columns, got an array of shape {np.shape(x)}"
        raise TaskError("K50", message)
    if not np.isfinite(found).all():
        column = int(np.flatnonzero(~np.isfinite(found).all(axis=0))[0])
        raise TaskError("K50", f"column {column} has a value that is missing or not finite")
    return found


def values(y: Array | None, rows: int) -> Floats:
    """`y` as float64 (rows,). Raises: TaskError K50: absent, of another length, or not finite."""
    found = np.asarray([] if y is None else y, np.float64)
    if found.shape != (rows,) or not np.isfinite(found).all():
        got = "none" if y is None else f"an array of shape {np.shape(y)}"
        raise TaskError("K50", f"expected {rows} finite labels, one a row, got {got}")
    return found


def labels(y: Array | None, rows: int, classes: int, what: str = "label") -> Ints:
    """`y` as int64 (rows,) in 0 to `classes` - 1. Raises: TaskError K50; K51: out of range."""
    found = values(y, rows)
    wrong = found[(found != np.floor(found)) | (found < 0) | (found >= classes)]
    if wrong.size:
        raise TaskError("K51", f"expected a {what} from 0 to {classes - 1}, got {wrong[0]:g}")
    return found.astype(np.int64)


def members(y: Ints, classes: int) -> Floats:
    """(rows, classes): 1 where the row is of the class."""
    return np.asarray(y[:, None] == np.arange(classes), np.float64)


def total(sites: Mapping[str, Mapping[str, Array]]) -> Sums:
    """The sites' sums added in name order, entry by entry.

    Raises: OpenFedError K54: no site, or one whose entries or shapes differ from the others'.
    """
    names = sorted(sites)
    if not names:
        raise OpenFedError("K54", "there are no sums to add")
    found = {key: np.array(x, np.float64) for key, x in sites[names[0]].items()}
    for name in names[1:]:
        here = sites[name]
        if {key: np.shape(x) for key, x in here.items()} != {k: x.shape for k, x in found.items()}:
            raise OpenFedError("K54", f"the sums of {name} and {names[0]} differ in their entries")
        for key, x in found.items():
            x += here[key]
    return found


def shapes(method: Method, state: Tensors) -> dict[str, tuple[int, ...]]:
    """Entries and shapes that every site's sums have at this state."""
    empty = method.lift(state, np.empty((0, method.features)), np.empty(0))
    return {key: x.shape for key, x in empty.items()}


def solve(method: Method, sites: Mapping[str, tuple[Array, Any]], rounds: int) -> tuple[State, int]:
    """The whole flow in one process: `sites` are (x, y) by name.

    Returns: the last state, and how many rounds that took (`rounds` at most).
    """
    state = method.start()
    for taken in range(rounds):
        if done(state):
            return state, taken
        sums = total({name: method.lift(state, x, y) for name, (x, y) in sites.items()})
        state = method.step(state, sums)
    return state, rounds
