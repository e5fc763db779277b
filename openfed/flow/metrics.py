"""From the sums that sites report to the values that people read: pure functions."""

from collections.abc import Sequence
from typing import Any, Literal

from openfed.errors import TaskError
from openfed.parse import AGGREGATE
from openfed.plan.schema import Stop
from openfed.tasks.metrics import finish, fits, metric_name
from openfed.tensors.check import ABOUT
from openfed.typing import Numbers

PREFIX = "metrics/"

MAY_REPORT = {
    "train": ("train", "validate_tuned"),
    "validate": ("validate",),
    "lift": ("lift",),
}
"""Whose metrics the reply to a task may hold."""


def declared(metrics: Sequence[str], task: str, reports: Sequence[str] = ()) -> frozenset[str]:
    """The names of all numbers that a plan with these metrics lets a site answer to `task`;
    `reports`: what its strategy needs of each training."""
    names = {"loss", *(metric_name(metric) for metric in metrics)}
    parts = MAY_REPORT.get(task, ())
    told = ABOUT | set(reports if task == "train" else ())
    return told | {f"{PREFIX}{part}/{name}" for part in parts for name in names}


DECODED = "validate_decoded"
"""What scores of a model are called that reached the sites with a loss."""


def rows(
    round: int, model: int, replies: Sequence[tuple[str, Numbers]], *, decoded: bool = False
) -> list[dict[str, Any]]:
    """One row per (task, metric, collaborator), and the aggregate of the summed sums.

    `decoded`: what was validated is not the model of record, but what the sites decoded of it.
    A site whose denominator is 0, or whose value is not finite, has no row; a metric that no site
    has, none at all.
    """
    found = []
    names = sorted({name for _, numbers in replies for name in numbers if name.startswith(PREFIX)})
    for name in names:
        _, task, metric = name.split("/", 2)
        task = DECODED if decoded and task == "validate" else task
        given = [(who, numbers[name], _n(numbers)) for who, numbers in replies if name in numbers]
        merged = merge([sums for _, sums, _ in given])
        total = (AGGREGATE, merged, sum(n for _, _, n in given))
        for who, sums, n in (*given, total):
            value = finish(metric, sums) if sums else None
            if value is not None:
                row = {"round": round, "model": model, "collaborator": who, "task": task}
                found.append({**row, "metric": metric, "value": value, "n": n})
    return found


def _n(numbers: Numbers) -> int:
    return int(numbers["n"][0])


def check_sums(numbers: Numbers) -> None:
    """Raises: TaskError K25: a metric's sums are not as many as the metric has."""
    for name, sums in numbers.items():
        if name.startswith(PREFIX) and not fits(name.split("/", 2)[2], sums):
            raise TaskError("K25", f"{name}: {len(sums)} numbers are not the sums of this metric")


def merge(sums: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Element by element, in the order given; empty where sites report different numbers of them
    (another number of classes): there is no sum then."""
    if len({len(each) for each in sums}) != 1:
        return ()
    return tuple(sum(column) for column in zip(*sums, strict=True))


def aggregate(rows: Sequence[dict[str, Any]], task: str, metric: str) -> float | None:
    """The aggregated value among the rows of one ask, if it is there."""
    for row in rows:
        if (row["collaborator"], row["task"], row["metric"]) == (AGGREGATE, task, metric):
            return float(row["value"])
    return None


def better(value: float, than: float, mode: Literal["max", "min"]) -> bool:
    """Strictly: a tie keeps the earlier."""
    return value > than if mode == "max" else value < than


def exhausted(
    history: Sequence[float], mode: Literal["max", "min"], patience: int, min_delta: float
) -> bool:
    """Whether the last `patience` values all failed to improve on the best before by
    `min_delta`."""
    if not history:
        return False
    best, since = history[0], 0
    for value in history[1:]:
        target = best + min_delta if mode == "max" else best - min_delta
        if better(value, target, mode):
            best, since = value, 0
        else:
            since += 1
    return since >= patience


def stops(rule: Stop, history: Sequence[float]) -> str:
    """Why the scores so far (oldest first) end the run by the plan's rule; empty: they don't."""
    if rule.reaches is not None and history:
        value, aim = history[-1], rule.reaches
        if value == aim or better(value, aim, rule.mode):
            return f"{rule.metric} has reached {rule.reaches:g}"
    if rule.patience and exhausted(history, rule.mode, rule.patience, rule.min_delta):
        return f"{rule.metric} did not improve in {rule.patience} validations"
    return ""
