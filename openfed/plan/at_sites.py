"""What strategies that also run at the sites demand of runner, optimiser and scope."""

from collections.abc import Iterator
from typing import Any

from openfed.plan.chains import Broken
from openfed.plan.choices import AT_SITES

BY_PLAIN_SGD = ("scaffold", "feddyn", "mimelite")
"""Their formulas read gradients out of steps of plain SGD."""
OWN_LOOP = ("ditto", "fedrep", "fedrecon")
"""They train in parts, which a loop of the user's does not know."""
BY_SCOPE = ("fedrep", "fedrecon")
"""They train what stays at the site apart from what is shared."""


def site_rules(
    strategy: Any, task_runner: Any, tasks: tuple[Any, ...], scope: tuple[tuple[str, str], ...]
) -> Iterator[Broken]:
    name = strategy.name
    if name not in AT_SITES:
        return
    if task_runner.name != "torch":
        told = f"{name} changes how sites train, which openfed can do for task_runner: torch only"
        yield ("strategy", "name"), "P25", told
        return
    yield from _of_torch(name, task_runner.settings)
    local = any(where == "local" for _, where in scope)
    if name in BY_SCOPE and not local:
        told = (
            'trains apart what stays at the site: say what does, as in scope: [{"head.*": local}]'
        )
        yield ("strategy", "name"), "P25", told
    if name == "ditto" and local:
        yield ("scope",), "P25", "ditto keeps a whole model at each site: remove scope"
    for index, task in enumerate(tasks):
        if name == "fedrecon" and task.name == "validate_tuned":
            told = "fedrecon keeps nothing at the site that could be scored: remove it"
            yield ("tasks", index), "P25", told


def _of_torch(name: str, settings: dict[str, Any]) -> Iterator[Broken]:
    at = ("task_runner", "settings")
    optimizer = settings["optimizer"]
    plain = optimizer["name"] == "sgd" and not optimizer["settings"].get("momentum")
    if name in BY_PLAIN_SGD and not plain:
        found = "sgd with momentum" if optimizer["name"] == "sgd" else optimizer["name"]
        told = f"{name}'s formula holds for plain sgd, not for {found}: write sgd without momentum"
        yield (*at, "optimizer"), "P25", told
    if name in OWN_LOOP and settings["train"] is not None:
        told = f"{name} trains in parts, which a loop of your own does not know: remove it"
        yield (*at, "train"), "P25", told
    if name == "ditto" and settings["optimizer_state"] != "reset":
        told = "ditto trains two models with one optimizer: write optimizer_state: reset"
        yield (*at, "optimizer_state"), "P25", told
