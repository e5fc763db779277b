"""What the task process itself refuses to write; the agent checks it all again."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from openfed.errors import TaskError
from openfed.tasks.metrics import fits
from openfed.tensors.check import check_entries, check_finite
from openfed.tensors.record import Scope, Signature, is_local, signature_of
from openfed.typing import Numbers, Tensors


def check_update(tensors: Tensors, expected: Signature, scope: Scope) -> None:
    """Exactly the entries that travel, each of its dtype and shape, all finite.

    Raises: TaskError: K09 a local entry, K07 a dtype that no frame holds, K21 to K23.
    """
    for name in sorted(tensors):
        if is_local(name, scope):
            raise TaskError("K09", f"the plan keeps {name} local, and the task returned it")
    check_entries(_described(tensors), expected)
    for name, value in sorted(tensors.items()):
        check_finite(name, value)


def check_local(tensors: Tensors, model: Iterable[str]) -> None:
    """Local entries: of dtypes that a frame holds, finite, and none that is shared.

    Raises: TaskError: K09, K07, K23.
    """
    for name in sorted(set(tensors) & set(model)):
        raise TaskError("K09", f"the plan shares {name}, and the task kept it as local")
    _described(tensors)
    for name, value in sorted(tensors.items()):
        check_finite(name, value)


def check_numbers(numbers: Numbers) -> None:
    """Raises: TaskError: K25, naming the first that is not finite."""
    for name, values in sorted(numbers.items()):
        if not all(math.isfinite(value) for value in values):
            raise TaskError("K25", f"{name} is not finite: {list(values)[:4]}")


def _described(tensors: Tensors) -> Signature:
    for name, value in sorted(tensors.items()):
        if not hasattr(value, "dtype"):
            raise TaskError("K07", f"{name} is a {type(value).__name__}, expected an array")
    try:
        return signature_of(tensors)
    except KeyError as error:
        raise TaskError("K07", f"entries of dtype {error.args[0]} cannot travel") from None


def reported(task: str, given: Mapping[str, Any], declared: Iterable[str], n: int) -> Numbers:
    """What the user's function says of its metrics, as the numbers of a reply.

    A number stands for a mean over the `n` samples; a sequence holds the metric's sums.
    Raises: TaskError: K08 the plan does not declare it, or these are not its sums.
    """
    known = {"loss", *declared}
    numbers = {}
    for name, value in given.items():
        sums = (float(value) * n, float(n)) if np.ndim(value) == 0 else tuple(map(float, value))
        if name not in known:
            among = ", ".join(sorted(known))
            raise TaskError("K08", f"the metric {name} is not in the plan, which has: {among}")
        if not fits(name, sums):
            raise TaskError("K08", f"{len(sums)} numbers are not the sums of the metric {name}")
        numbers[f"metrics/{task}/{name}"] = sums
    return numbers
