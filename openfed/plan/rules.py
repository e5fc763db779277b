"""What must hold between the parts of a plan, each of them right by itself.

A rule gets the parts that are right, by key, and is left out where one that it needs is not.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from openfed.parse import split_address
from openfed.plan.chains import Broken, pipeline_rules
from openfed.plan.choices import LOSS, METRICS, better, metric_name
from openfed.plan.schema import RESERVED, Enrolled, fewest
from openfed.plan.values import is_loopback, shown, suggest

Parts = Mapping[str, Any]


def broken_rules(parts: Parts, workspace: Path) -> Iterator[Broken]:
    for needed, rule in RULES:
        if all(key in parts for key in needed):
            yield from rule(*(parts[key] for key in needed))
    if parts.get("init") is not None:
        yield from _init(parts["init"], workspace)


def _names(collaborators: tuple[str, ...] | Enrolled) -> Iterator[Broken]:
    if not isinstance(collaborators, Enrolled):
        for index, message in clashes(collaborators):
            yield ("collaborators", index), "P14", message


def clashes(names: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Names of sites that are taken, or there twice: their places, and what to do about them."""
    seen: dict[str, str] = {}
    for index, name in enumerate(names):
        first = seen.get(name.lower())
        if name.lower() in RESERVED:
            yield index, f"{name} is what openfed calls something else: choose another name"
        elif first == name:
            yield index, f"{name} is there twice: every site has a name of its own"
        elif first is not None:
            yield index, f"{name} and {first} are one file name on some computers: rename one"
        seen.setdefault(name.lower(), name)


def _addresses(aggregator: Any) -> Iterator[Broken]:
    host, _ = split_address(aggregator.listen)
    names = aggregator.advertise
    for index, name in enumerate(names):
        if name.lower() in [other.lower() for other in names[:index]]:
            yield ("aggregator", "advertise", index), "P13", f"{name} is there twice: remove one"
    if is_loopback(host) and not any(is_loopback(name) for name in names):
        yield (
            ("aggregator", "listen"),
            "P13",
            f"{host} answers this machine only, and collaborators dial {names[0]}: listen on "
            "0.0.0.0 (or on the address of one network card)",
        )


def _metrics(metrics: tuple[str, ...]) -> Iterator[Broken]:
    seen: dict[str, str] = {}
    for index, metric in enumerate(metrics):
        loc, name = ("metrics", index), metric_name(metric)
        if ":" not in metric and metric not in METRICS and metric != LOSS:
            hint = suggest(metric, METRICS)
            known = f"{' | '.join(METRICS)} | src.module:Name"
            yield loc, "P12", f"expected a metric: {known}, got {shown(metric)}. {hint}"
        elif metric == LOSS:
            yield loc, "P15", "the loss is always reported: remove it here"
        elif name in seen or (":" in metric and (name in METRICS or name == LOSS)):
            taken = seen.get(name, name)
            yield loc, "P15", f"{metric} would be reported as {name}, which {taken} is: rename it"
        seen.setdefault(name, metric)


_WAYS = {"max": "higher", "min": "lower"}


def _known_metric(key: str) -> Callable[..., Iterator[Broken]]:
    def rule(chosen: Any, metrics: tuple[str, ...], tasks: tuple[Any, ...]) -> Iterator[Broken]:
        if chosen is None:
            return
        known = [LOSS, *map(metric_name, metrics)]
        told = all(":" in metric or metric in METRICS for metric in metrics)  # else, said there
        if chosen.metric not in known and told:
            hint = suggest(chosen.metric, known)
            message = f"expected one of {' | '.join(known)}, got {shown(chosen.metric)}. {hint}"
            add = " or add it to metrics" if chosen.metric in METRICS else ""
            yield (key, "metric"), "P12", message.rstrip(". ") + add
        shipped = chosen.metric in METRICS or chosen.metric == LOSS
        if shipped and chosen.mode != (way := better(chosen.metric)):
            message = f"{chosen.metric} is better when it is {_WAYS[way]}: write mode: {way}"
            yield (key, "mode"), "P15", message
        if not any(task.name == "validate" for task in tasks):
            yield (key,), "P15", "looks at the task validate, which is not in tasks: add it"

    return rule


def _tasks(tasks: tuple[Any, ...]) -> Iterator[Broken]:
    names = [task.name for task in tasks]
    if "train" not in names:
        yield ("tasks",), "P15", "expected train among them: scoring alone is not a run yet"
    for index, name in enumerate(names):
        before = names[:index]
        if name in before:
            yield ("tasks", index), "P15", f"{name} is there twice: remove one"
        elif name == "validate_tuned" and "train" not in before:
            message = "scores what train has just tuned: put train before it"
            yield ("tasks", index), "P15", message
        elif name == "validate" and "train" in before:
            message = "scores the model that the round begins with: put it before train"
            yield ("tasks", index), "P15", message


def _cohort(cohort: Any, collaborators: tuple[str, ...] | Enrolled) -> Iterator[Broken]:
    if cohort.quorum == "all":
        return
    asked = cohort.size(fewest(collaborators))
    if cohort.quorum > asked:
        message = f"expected at most {asked}, the sites asked in a round, got {cohort.quorum}"
        yield ("cohort", "quorum"), "P15", message
    if cohort.deadline is None:
        message = "a quorum needs a deadline, after which it counts: add deadline: 10m"
        yield ("cohort", "quorum"), "P15", message


def _numpy(task_runner: Any, tasks: tuple[Any, ...]) -> Iterator[Broken]:
    if task_runner.name != "numpy":
        return
    scored = [i for i, task in enumerate(tasks) if task.name != "train"]
    if scored and task_runner.settings.get("validate") is None:
        message = "needs a function: add numpy.validate: src.module:Name, or tasks: [train]"
        yield ("task_runner", "name"), "P15", message


def _init(init: str, workspace: Path) -> Iterator[Broken]:
    path = PurePosixPath(init)
    if path.is_absolute() or ".." in path.parts or path.suffix != ".safetensors":
        yield (
            ("init",),
            "P16",
            f"expected a .safetensors file inside the workspace, got {shown(init)}",
        )
    elif not (workspace / init).is_file():
        yield ("init",), "P16", f"there is no file {init} in the workspace"


RULES: tuple[tuple[tuple[str, ...], Callable[..., Iterator[Broken]]], ...] = (
    (("aggregator",), _addresses),
    (("collaborators",), _names),
    (("metrics",), _metrics),
    (("tasks",), _tasks),
    (("cohort", "collaborators"), _cohort),
    (("compression_pipeline",), pipeline_rules),
    (("best", "metrics", "tasks"), _known_metric("best")),
    (("stop", "metrics", "tasks"), _known_metric("stop")),
    (("task_runner", "tasks"), _numpy),
)
