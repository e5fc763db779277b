"""Names for shapes of data that every floor uses."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
"""What canonical JSON can hold. Numbers are finite."""

Array = NDArray[Any]
Tensors = Mapping[str, np.ndarray[Any, Any]]
"""Flat: dotted names as in a `state_dict`, C order, little-endian."""

Numbers = Mapping[str, tuple[float, ...]]
"""Short vectors of finite floats: a metric's sums, `n`, `seconds`."""

Emit = Callable[[str, Mapping[str, Any]], None]
"""Tells observers that something happened: `emit("round.started", {"round": 3})`."""
