"""Data sets of LEAF: JSON files whose samples belong to users.

Source: Caldas et al. 2018, "LEAF: a benchmark for federated settings", arXiv:1812.01097:
{"users": [...], "num_samples": [...], "user_data": {user: {"x": [...], "y": [...]}}}.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openfed.data.opening import check_size, opened, refused, text_array
from openfed.parse import strict_json
from openfed.typing import Array

LEAF_LIMIT = 512 << 20
"""Bytes: JSON takes many times its size while it is read."""

MAX_DIMENSIONS = 8
"""Of all samples together."""


@dataclass(frozen=True)
class Leaf:
    """Samples in the order of the file's users.

    inputs: float64 or int64 of shape (n, ...), or texts; targets: of shape (n,) or (n, ...).
    users: int64 of shape (n,), the position of a sample's user in the file, for `by_key`; who the
    users are is not kept.
    """

    inputs: Array
    targets: Array
    users: Array


def read_leaf(path: str | Path, *, limit: int = LEAF_LIMIT) -> Leaf:
    """One file. `limit`: bytes of the file and of each array.

    Raises: TaskError: K41 no such file, or too large; K42 not JSON, or not of LEAF's form; K43
    values of several kinds or shapes; K48 counts that do not fit.
    """
    with opened(path, "leaf file", limit) as file:
        try:
            given = strict_json(file.read())
        except ValueError:
            raise refused("K42", "leaf file", "is not strict JSON in UTF-8") from None
    users, counts, data = _parts(given)
    x, y, owners = [], [], []
    for index, (user, count) in enumerate(zip(users, counts, strict=True)):
        what = f"leaf file, user {index + 1}"
        own = data[user]
        if not isinstance(own, dict) or not all(isinstance(own.get(k), list) for k in ("x", "y")):
            raise refused("K42", what, "expected lists x and y")
        if not len(own["x"]) == len(own["y"]) == count:
            raise refused("K48", what, "x, y and num_samples do not have the same count")
        x += own["x"]
        y += own["y"]
        owners += [index] * len(own["x"])
    return Leaf(_array(x, "x", limit), _array(y, "y", limit), np.array(owners, dtype=np.int64))


def _parts(given: Any) -> tuple[list[str], list[int], Mapping[str, Any]]:
    parts = given if isinstance(given, dict) else {}
    users, counts, data = (parts.get(key) for key in ("users", "num_samples", "user_data"))
    if not isinstance(users, list) or not isinstance(counts, list) or not isinstance(data, dict):
        raise refused("K42", "leaf file", "expected users, num_samples and user_data")
    if not all(isinstance(user, str) for user in users) or len(users) != len(counts):
        raise refused("K42", "leaf file", "expected names in users, and as many num_samples")
    if len(set(users)) < len(users) or set(users) != set(data):
        raise refused("K48", "leaf file", "users and user_data do not name the same users, once")
    return users, counts, data


def _array(values: list[Any], name: str, limit: int) -> Array:
    """Numbers of one shape, or texts of one shape."""
    what = f"leaf file, {name}"
    shape = _shape(values)
    if len(shape) > MAX_DIMENSIONS or not _regular(values, shape):
        raise refused("K43", what, "samples are not of one shape")
    flat = values
    for _ in shape[1:]:
        flat = [value for part in flat for value in part]
    kinds = {type(value) for value in flat}
    if kinds == {str}:
        return text_array(flat, what, limit).reshape(shape)
    if not kinds <= {int, float}:
        raise refused("K43", what, "expected numbers, or texts, and nothing else")
    check_size(8 * len(flat), what, limit)
    try:
        return np.array(flat, dtype=np.float64 if float in kinds else np.int64).reshape(shape)
    except OverflowError:
        raise refused("K43", what, "a number is too large") from None


def _shape(values: Any) -> tuple[int, ...]:
    """Of the first sample, and how many there are."""
    shape = []
    while isinstance(values, list):
        shape.append(len(values))
        values = values[0] if values else None
    return tuple(shape)


def _regular(values: Any, shape: tuple[int, ...]) -> bool:
    if not shape:
        return not isinstance(values, list)
    if not isinstance(values, list) or len(values) != shape[0]:
        return False
    return all(_regular(value, shape[1:]) for value in values)
