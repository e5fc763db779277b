"""Whether a reply is what the plan allows; both ends ask this of every reply."""

import math
from collections.abc import Collection
from typing import Any

import numpy as np

from openfed.errors import TaskError
from openfed.tensors.record import FLOATING, Signature
from openfed.typing import Numbers

BLOCK = 1 << 18
"""Elements that are checked at a time."""

ABOUT = frozenset({"n", "seconds", "import_seconds"})
"""Numbers that every reply may hold, one value each."""

MAX_SECONDS = 1e9

MAX_SAMPLES = 2.0**53
"""Above this a float64 no longer counts one by one."""


def check_entries(got: Signature, expected: Signature) -> None:
    """Names, dtypes and shapes; kinds are not compared.

    Raises: TaskError: K21 an entry is missing or unknown, K22 another dtype or shape.
    """
    wanted = {spec.name: spec for spec in expected}
    given = {spec.name for spec in got}
    for what, names in (("lacks", wanted.keys() - given), ("has unknown", given - wanted.keys())):
        if names:
            raise TaskError("K21", f"the reply {what} {_list(names)}; expected the model's entries")
    for spec in got:
        want = wanted[spec.name]
        if (spec.dtype, spec.shape) != (want.dtype, want.shape):
            found = f"{spec.dtype}{list(spec.shape)}"
            message = f"{spec.name}: expected {want.dtype}{list(want.shape)}, got {found}"
            raise TaskError("K22", message)


def check_finite(name: str, values: np.ndarray[Any, Any]) -> None:
    """Raises: TaskError K23: a floating entry holds NaN or an infinity."""
    at = _first_not_finite(values)
    if at is not None:
        found = values.reshape(-1)[at]
        raise TaskError("K23", f"{name}: expected finite numbers, got {found} at {at}")


def is_finite(values: np.ndarray[Any, Any]) -> bool:
    """Whether it is integers, booleans, or finite floating numbers."""
    return _first_not_finite(values) is None


def _first_not_finite(values: np.ndarray[Any, Any]) -> int | None:
    if values.dtype.name not in FLOATING:
        return None
    flat = values.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        finite = np.isfinite(flat[start : start + BLOCK])
        if not finite.all():
            return start + int(np.argmin(finite))
    return None


def check_numbers(numbers: Numbers, allowed: Collection[str], *, trained: bool) -> None:
    """Names, finiteness, and the sample count of a reply.

    Raises: TaskError: K24 `n` is not a whole positive number (0 is allowed when nothing was
    trained), K25 a number that the plan does not declare, or one that is not finite.
    """
    unknown = numbers.keys() - set(allowed)
    if unknown:
        raise TaskError(
            "K25", f"the reply holds numbers the plan does not declare: {_list(unknown)}"
        )
    for name, values in numbers.items():
        if not all(math.isfinite(x) for x in values):
            raise TaskError("K25", f"{name}: expected finite numbers, got {values[:4]}")
    for name in ABOUT & numbers.keys() - {"n"}:
        if len(numbers[name]) != 1 or not 0 <= numbers[name][0] <= MAX_SECONDS:
            raise TaskError("K25", f"{name}: expected seconds, got {numbers[name][:4]}")
    samples = numbers.get("n", ())
    least = 1 if trained else 0
    if len(samples) != 1 or not least <= samples[0] <= MAX_SAMPLES or samples[0] % 1:
        raise TaskError(
            "K24", f"n: expected a number of samples of at least {least}, got {samples}"
        )


LEAST = {"steps": 1.0, "loss_before": 0.0}
"""Numbers that a strategy may need of each training, and the least that each can be."""


def check_reports(numbers: Numbers, needed: Collection[str]) -> None:
    """What the strategy needs of this training is there. Raises: TaskError: K25."""
    for name in needed:
        given = numbers.get(name, ())
        if len(given) != 1 or not LEAST[name] <= given[0] <= MAX_SAMPLES:
            message = f"{name}: expected a number of at least {LEAST[name]:g}, which the strategy"
            raise TaskError("K25", f"{message} of this plan needs, got {given[:4]}")


def frame_limit(signature: Signature, numbers: int = 4 << 20) -> int:
    """Most bytes of a frame that holds these entries and some numbers."""
    entries = sum(spec.size + 64 + len(spec.name) * 6 + 256 for spec in signature)
    return 64 + entries + numbers


def _list(names: Collection[str]) -> str:
    shown = ", ".join(repr(name[:80]) for name in sorted(names)[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
