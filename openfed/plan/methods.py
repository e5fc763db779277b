"""What a strategy demands of the rest of the plan: enough answers, and a local optimiser that its
formula covers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from openfed.plan.chains import Broken
from openfed.plan.check import Loc
from openfed.plan.choices import FEWEST
from openfed.plan.schema import Cohort, Enrolled, fewest
from openfed.plan.values import Choice

# -- how many answers --------------------------------------------------------------------------


def enough(
    strategy: Choice, cohort: Cohort, collaborators: tuple[str, ...] | Enrolled
) -> Iterator[Broken]:
    """Whether a round can end with fewer updates than the strategy needs for its f."""
    if strategy.name not in FEWEST:
        return
    settings: Any = strategy.settings
    answers, f, (per, more) = (
        cohort.fewest(fewest(collaborators)),
        settings["f"],
        FEWEST[strategy.name],
    )
    needed, keeps, m = per * f + more, answers - f - 2, settings.get("m")
    if answers < needed:
        best = (answers - more) // per
        remedy = f"f can be {best} at most" if best >= 0 else f"it needs {more} even for f = 0"
        what = f"needs {needed} updates ({per} f + {more}), and a round can end with {answers}"
        yield ("strategy", "settings", "f"), "P24", f"with f = {f} {what}: {remedy}"
    elif m is not None and m > keeps:
        what = f"keeps at most {keeps} of {answers} updates (n - f - 2), got m = {m}"
        yield ("strategy", "settings", "m"), "P24", f"with f = {f} {what}"


# -- which local optimiser ----------------------------------------------------------------------

Misfit = tuple[Loc, str]
"""Where below `task_runner` sites do what a formula does not cover, and why it does not."""

_OPTIMIZER = {"torch": "optimizer", "sklearn": "estimator"}
"""The key that holds the local optimiser and its settings, by runner."""


def covered(strategy: Choice, task_runner: Choice) -> Iterator[Broken]:
    """Whether the strategy's formula holds for what the sites do."""
    for loc, message in COVERS[strategy.name](task_runner) if strategy.name in COVERS else ():
        yield ("task_runner", *loc), "P25", f"{strategy.name} {message}"


def local_settings(strategy: Choice, task_runner: Choice) -> dict[str, float]:
    """What the strategy's formula takes from the local optimiser, of a plan that it covers."""
    if strategy.name not in COVERS:
        return {}
    sgd = _local(task_runner)["settings"]
    if strategy.name == "fednova":
        return {"momentum": float(sgd.get("momentum", 0.0))}
    return {"rate": float(sgd["lr"] if "lr" in sgd else sgd["eta0"])}


def _local(runner: Choice) -> Any:
    return runner.settings[_OPTIMIZER[runner.name]]


def _fednova(runner: Choice) -> Iterator[Misfit]:
    yield from _sgd(runner, "divides an update by how far SGD goes in so many steps")
    sgd = _local(runner)["settings"] if runner.name == "torch" else {}
    at = ("settings", "optimizer", "settings")
    for key in ("nesterov", "dampening"):
        if sgd.get(key):
            yield (*at, key), f"knows how far plain momentum goes: remove {key}"
    if sgd.get("momentum") and runner.settings["optimizer_state"] != "reset":
        message = "knows how far momentum goes that begins anew in every round: write reset"
        yield ("settings", "optimizer_state"), message


def _qfedavg(runner: Choice) -> Iterator[Misfit]:
    why = "takes an update, divided by the learning rate, for a gradient"
    yield from _sgd(runner, why)
    if runner.name != "torch":
        return
    if _local(runner)["settings"].get("momentum"):
        at = ("settings", "optimizer", "settings", "momentum")
        yield at, f"{why}: remove momentum"
    if runner.settings["scheduler"] is not None:
        yield ("settings", "scheduler"), f"{why}, one for all rounds: remove scheduler"


COVERS: Mapping[str, Callable[[Choice], Iterator[Misfit]]] = {
    "fednova": _fednova,
    "qfedavg": _qfedavg,
}
"""Strategies that do not go with everything: what of a runner does not fit."""


def _sgd(runner: Choice, why: str) -> Iterator[Misfit]:
    """All that is not SGD with a learning rate that stays the same within a round."""
    if runner.name == "torch":
        yield from _torch_sgd(runner.settings, why)
    elif runner.name == "sklearn":
        estimator, at = _local(runner), ("settings", "estimator")
        if estimator["name"].endswith("LogisticRegression"):
            yield (*at, "name"), f"{why}, and LogisticRegression takes none: SGDClassifier does"
        elif estimator["settings"].get("learning_rate", "constant") != "constant":
            yield (*at, "settings", "learning_rate"), f"{why} of one size: write constant"
    else:
        message = f"{why}, and what code of your own does is not known: choose torch or sklearn"
        yield ("name",), message


def _torch_sgd(settings: Mapping[str, Any], why: str) -> Iterator[Misfit]:
    name, scheduler = settings["optimizer"]["name"], settings["scheduler"]
    if name != "sgd":
        yield ("settings", "optimizer", "name"), f"{why}, and {name} takes others: write sgd"
    if settings["train"] is not None:
        message = f"{why}, and what a loop of your own does is not known: remove train"
        yield ("settings", "train"), message
    for index, group in enumerate(settings["param_groups"]):
        if set(group) - {"match", "weight_decay"}:
            message = f"{why}, the same for all parameters: leave only weight_decay here"
            yield ("settings", "param_groups", index), message
    if scheduler and (":" in scheduler["name"] or scheduler["settings"].get("over") == "steps"):
        message = f"{why} of one size: choose one that ships, over: rounds"
        yield ("settings", "scheduler", "name"), message
