"""What must hold between the parts of a plan, each of them right by itself.

A rule gets the parts that are right, by key, and is left out where one that it needs is not.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from openfed.parse import split_address
from openfed.plan.at_sites import site_rules
from openfed.plan.chains import Broken, pipeline_rules
from openfed.plan.choices import LOSS, METRICS, better, metric_name
from openfed.plan.methods import covered, enough
from openfed.plan.schema import RESERVED, Cohort, Enrolled, Plan, fewest
from openfed.plan.values import is_loopback, shown, suggest

Parts = Mapping[str, Any]

SHORTEST_IDLE_S = 5.0
"""A peer that is well is heard every few seconds; one that computes with all cores, later."""


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
        if chosen is None or chosen.metric is None:
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
    if not {"train", "lift"} & {*names}:
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
    sites = fewest(collaborators)
    wanted = cohort.size(sites)
    spare = isinstance(collaborators, Enrolled) or wanted < sites
    for key, message in _round_policy(cohort, wanted, spare):
        yield ("cohort", key), "P15", message


def _round_policy(cohort: Any, wanted: int, spare: bool) -> Iterator[tuple[str, str]]:
    """`spare`: there are more sites than are wanted."""
    some = cohort.quorum != "all"
    if cohort.count is not None and cohort.fraction != 1.0:
        yield "count", "is another way to say fraction: keep one of the two"
    if cohort.over > 1 and not spare:
        yield "over", "all sites are wanted, so there is nobody else to ask: lower fraction"
    if some and cohort.quorum > wanted:
        message = f"expected at most {wanted}, the sites wanted in a round, got {cohort.quorum}"
        yield "quorum", message
    if some and cohort.deadline is None and cohort.grace is None:
        message = "a quorum needs a deadline, after which it counts: add deadline: 10m"
        yield "quorum", f"{message}, or a grace: how long the others have once it is there"
    if cohort.grace is not None and not some:
        yield "grace", "begins when a quorum has answered, and all must: add quorum: N"
    if cohort.grace is not None and cohort.deadline is not None:
        yield from _shorter("grace", cohort.grace, "cohort.deadline", cohort.deadline)
    if cohort.late == "next_round" and not some and cohort.over == 1:
        yield "late", "nobody can be late where all must answer: add quorum: N, or over"


def _shorter(key: str, seconds: float, other: str, most: float) -> Iterator[tuple[str, str]]:
    if seconds >= most:
        yield key, f"expected less than {other}, which is {most:g}s, got {seconds:g}s"


def _timeouts(timeouts: Any, cohort: Any, stop: Any) -> Iterator[Broken]:
    found = [*_shorter("idle", timeouts.idle, "timeouts.connect", timeouts.connect)]
    if timeouts.idle < SHORTEST_IDLE_S:
        found.append(("idle", f"expected at least {SHORTEST_IDLE_S:g}s, got {timeouts.idle:g}s"))
    if timeouts.task is not None and cohort.deadline is not None:
        found += _shorter("task", timeouts.task, "cohort.deadline", cohort.deadline)
    for key, message in found:
        yield ("timeouts", key), "P15", message
    if stop is not None and stop.after is not None and cohort.deadline is not None:
        for key, message in _shorter("deadline", cohort.deadline, "stop.after", stop.after):
            yield ("cohort", key), "P15", message


def _stop(stop: Any) -> Iterator[Broken]:
    if stop is None:
        return
    if stop.metric is None and stop.after is None:
        message = "expected metric, with reaches or patience, or after: what is it to stop at?"
        yield ("stop",), "P15", message
    if stop.metric is not None and stop.reaches is None and stop.patience is None:
        yield ("stop", "metric"), "P15", "add reaches: 0.95, or patience: 5"
    for key in ("reaches", "patience"):
        if stop.metric is None and getattr(stop, key) is not None:
            yield ("stop", key), "P15", "of which metric? add metric: accuracy"


def _numpy(task_runner: Any, tasks: tuple[Any, ...]) -> Iterator[Broken]:
    if task_runner.name != "numpy":
        return
    scored = [i for i, task in enumerate(tasks) if task.name != "train"]
    if scored and task_runner.settings.get("validate") is None:
        message = "needs a function: add numpy.validate: src.module:Name, or tasks: [train]"
        yield ("task_runner", "name"), "P15", message


def _flow(flow: Any, tasks: tuple[Any, ...]) -> Iterator[Broken]:
    names = [task.name for task in tasks]
    if flow is None and "lift" in names:
        message = "lift is what flows on sums ask for: remove it, or add flow: ..."
        yield ("tasks", names.index("lift")), "P15", message
    elif flow is not None and names != ["lift"]:
        yield ("tasks",), "P15", f"flow: {flow.name} asks for lift only: remove tasks"


def _flow_runner(flow: Any, task_runner: Any) -> Iterator[Broken]:
    if flow is None and task_runner.name == "exact":
        yield ("task_runner", "name"), "P15", "expected a flow beside it: add flow: {ridge: {...}}"
    elif flow is not None and task_runner.name != "exact":
        message = f"flow: {flow.name} says itself what the sites compute: remove task_runner"
        yield ("task_runner", "name"), "P15", message


_AVERAGING = {
    "strategy": "sums are added",
    "weights": "sums are added, and every row counts once",
    "compression_pipeline": "sums travel as they are",
    "scope": "sums have no local part",
    "metrics": "no model is validated",
    "validation": "no model is validated",
    "stop": "the method ends by itself, after rounds at the latest",
    "init": "the method begins from its settings",
}
"""Keys that say something about averaging only, and why a flow on sums has no use for them."""


def _no_use_for(key: str) -> Callable[..., Iterator[Broken]]:
    default = Plan.model_fields[key].get_default(call_default_factory=True, validated_data={})

    def rule(flow: Any, value: Any) -> Iterator[Broken]:
        if flow is not None and value != default:
            yield (key,), "P15", f"flow: {flow.name}: {_AVERAGING[key]}: remove {key}"

    return rule


def _flow_cohort(flow: Any, cohort: Any) -> Iterator[Broken]:
    whole = Cohort().model_copy(update={"deadline": cohort.deadline})
    if flow is not None and cohort != whole:
        message = f"flow: {flow.name} needs the rows of every site in every round: keep deadline "
        yield ("cohort",), "P15", f"{message}only"


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
    (("timeouts", "cohort", "stop"), _timeouts),
    (("stop",), _stop),
    (("compression_pipeline",), pipeline_rules),
    (("best", "metrics", "tasks"), _known_metric("best")),
    (("stop", "metrics", "tasks"), _known_metric("stop")),
    (("task_runner", "tasks"), _numpy),
    (("strategy", "task_runner", "tasks", "scope"), site_rules),
    (("strategy", "cohort", "collaborators"), enough),
    (("strategy", "task_runner"), covered),
    (("flow", "tasks"), _flow),
    (("flow", "task_runner"), _flow_runner),
    (("flow", "cohort"), _flow_cohort),
    *((("flow", key), _no_use_for(key)) for key in _AVERAGING),
)
