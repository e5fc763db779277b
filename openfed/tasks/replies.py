"""What the runners that ship have in common: what they draw from, what they score, how they answer.

Every number of an answer that belongs to a metric is named `metrics/<task>/<metric>`.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from openfed.errors import TaskError
from openfed.tasks.base import TRAIN, Task
from openfed.tasks.metrics import METRICS, Sums, add, fits
from openfed.tensors.record import Scope, is_local
from openfed.typing import Array, Numbers, Tensors


def reseed(seed: int) -> None:
    """Seed Python's generator and numpy's."""
    random.seed(seed)
    np.random.seed(seed % 2**32)


def held_out(data: Any) -> Iterable[Any]:
    """The validation batches of the user's loader, which may have none."""
    give = getattr(data, "validate", None)
    return (give() if give else None) or ()


def add_scores(
    sums: dict[str, Sums],
    metrics: Mapping[str, Any],
    loss: Sums,
    given: tuple[Any, Any],
    shipped: Callable[[str], Sums],
) -> None:
    """Add one batch's sums of the loss and of `metrics` to `sums`.

    The user's functions are called with `given`; for the shipped metrics, which are None in
    `metrics`, `shipped` makes the sums from their names.
    Raises: TaskError: K13 a shipped one that these outputs and targets do not have.
    """
    for name, function in {"loss": None, **metrics}.items():
        if name in ("loss", "perplexity"):
            made = loss
        elif function is None:
            made = _made(name, shipped)
        else:
            made = function(*given)
        sums[name] = add(sums.get(name), made)


def _made(name: str, shipped: Callable[[str], Sums]) -> Sums:
    try:
        return shipped(name)
    except (ValueError, TypeError, IndexError) as error:
        told = f"the plan's `metrics` asks for {name}, which cannot be computed here: {error}"
        raise TaskError("K13", f"{told}. It needs {METRICS[name].needs}") from None


def scored(task: str, samples: int, sums: Mapping[str, Sums]) -> Numbers:
    """The numbers of a reply; `n` alone where no batch was scored."""
    return {"n": (float(samples),)} | {f"metrics/{task}/{k}": v for k, v in sums.items()}


def reported(task: str, given: Mapping[str, Any], declared: Iterable[str], n: float) -> Numbers:
    """What the user's function says of its metrics, as the numbers of a reply.

    A number stands for a mean over the `n` samples; a sequence holds the metric's sums.
    Raises: TaskError: K08 the plan does not declare it, or these are not its sums. K12 no numbers.
    """
    known = {"loss", *declared}
    numbers = {}
    for name, value in given.items():
        try:
            sums = (float(value) * n, float(n)) if np.ndim(value) == 0 else tuple(map(float, value))
        except (TypeError, ValueError):
            found = type(value).__name__
            told = f"the metric {name} is a {found}, expected a number or the metric's sums"
            raise TaskError("K12", told) from None
        if name not in known:
            among = ", ".join(sorted(known))
            raise TaskError("K08", f"the metric {name} is not in the plan, which has: {among}")
        if not fits(name, sums):
            raise TaskError("K08", f"{len(sums)} numbers are not the sums of the metric {name}")
        numbers[f"metrics/{task}/{name}"] = sums
    return numbers


def wants(task: Task, number: str) -> bool:
    """Whether the plan's strategy needs this number of the training."""
    reports = task.settings.get("reports")
    return task.name == TRAIN and isinstance(reports, Sequence) and number in reports


def mean(sums: Sums | None) -> tuple[float, ...]:
    """A mean loss as a number of a reply. Raises: TaskError: K04 it is of no samples."""
    if not sums or not sums[1]:
        raise TaskError("K04", "the training data have no samples to compute a loss on")
    return (sums[0] / sums[1],)


def with_tuned(task: Task, numbers: Numbers, validate: Callable[[str], Numbers]) -> Numbers:
    """The numbers of training; with those of the trained model's validation if the task asks.

    `validate` gets the name that this validation is reported under. `n` stays that of training.
    """
    if not task.settings.get("tuned"):
        return numbers
    return {**numbers, **validate("validate_tuned"), "n": numbers["n"]}


def split(tensors: Tensors, scope: Scope) -> tuple[dict[str, Array], dict[str, Array]]:
    """The entries that are shared, and those that the plan keeps at the site."""
    kept = {name: value for name, value in tensors.items() if is_local(name, scope)}
    return {name: value for name, value in tensors.items() if name not in kept}, kept
