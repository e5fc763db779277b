"""OpenFL's plan to openfed's, key by key: what each became, or why it became nothing.

A key that is not known here is named in the report and left out; one that is known and cannot be
carried over without changing the experiment is a problem, and nothing is written then.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from openfed.migrate.code import (
    Class,
    Source,
    asked_of_data,
    class_finding,
    look,
    made_without_data,
    own_transfer,
    refused_runner,
    returned_metric,
)
from openfed.migrate.source import DEFAULTS, OPENFLS, TASKS_TORCH, OpenFL, Section
from openfed.parse import NAME, host, join_address
from openfed.plan.choices import METRICS, STRATEGIES
from openfed.plan.schema import RESERVED
from openfed.plan.source import Finding, Node, Place, plain
from openfed.plan.values import CODE, shown

RUNNER, LOADER = "src.openfl_adapter:Runner", "src.openfl_adapter:data"
ADAPTERS = {"task_runner": RUNNER, "data_loader": LOADER}
NAMES = "src.openfl_metrics"
"""The module that the generated workspace has for metrics whose names are the code's own."""

KEPT, NEAR, DROPPED, UNKNOWN, TODO = "translated", "approximate", "dropped", "unknown", "to do"


@dataclass(frozen=True)
class Row:
    """What became of one key."""

    key: str
    found: str
    verdict: str
    says: str


@dataclass
class Draft:
    """What has been translated so far. `metrics` are the names that the code returns."""

    plan: dict[str, Any] = field(default_factory=dict)
    local: dict[str, str] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    problems: list[Finding] = field(default_factory=list)

    def row(self, key: str, value: Any, verdict: str, says: str) -> None:
        self.rows.append(
            Row(key, value if isinstance(value, str) else _short(value), verdict, says)
        )

    def problem(self, at: Place, code: str, key: str, message: str) -> None:
        self.problems.append(Finding(at, code, key, message))


def _short(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return shown(value)


def translate(openfl: OpenFL, sources: Mapping[str, Source], name: str) -> Draft:
    """`name` is what the federation is to be called; `sources` are the modules in use."""
    draft = Draft()
    if _other_api(openfl, draft):
        return draft
    runner = _class(openfl, sources, "task_runner", draft)
    if any(problem.code == "U52" for problem in draft.problems):
        return draft  # nothing of the rest would help
    loader = _class(openfl, sources, "data_loader", draft)
    draft.plan["federation"] = name
    for part in (_rounds, _network, _sites):
        part(openfl, draft)
    tasks = _chosen_tasks(openfl, runner, draft)
    if runner.reference:
        _runner(openfl, runner, loader, tasks, draft)
    if loader.reference:
        settings = _settings(openfl, "data_loader", loader, draft)
        draft.plan["data_loader"] = {LOADER: _call("loader", loader, settings)}
    _strategy(openfl, tasks, draft)
    _pipeline(openfl, draft)
    _stragglers(openfl, draft)
    for name, keys in DROP.items():
        _leftovers(openfl, name, keys, draft)
    for name in sorted(set(openfl.sections) - _SECTIONS):
        draft.row(name, "a section", UNKNOWN, "openfed knows no such section of OpenFL's; left out")
    return draft


# -- what is not a task-runner workspace ----------------------------------------------------------


def _other_api(openfl: OpenFL, draft: Draft) -> bool:
    """Whether the workspace is of another API of OpenFL's, said as a problem."""
    for name, section in openfl.sections.items():
        workflow = "experimental" in section.template or "workflow" in section.template
        if name == "federated_flow" or workflow:
            told = "is of OpenFL's Workflow API, whose flows are code, not a plan"
            remedy = (
                "write the flow's train and validate steps as a task runner (docs/migration.md)"
            )
            draft.problem(section.at, "U52", name, f"{told}: {remedy}")
            return True
        if name == "connector":
            told = f"{section.template or name} runs another framework inside OpenFL"
            remedy = "run that framework itself, or write its training as a task runner (README)"
            draft.problem(section.at, "U52", name, f"{told}: {remedy}")
            return True
    for name, kind in (("aggregator", "Aggregator"), ("collaborator", "Collaborator")):
        section = openfl.section(name)
        if section.template and section.template.rpartition(".")[2] != kind:
            told = f"{section.template} is a class of your own, which runs nowhere in openfed"
            draft.problem(section.at, "U52", f"{name}.template", told)
    return False


# -- rounds, addresses, sites ---------------------------------------------------------------------


def _rounds(openfl: OpenFL, draft: Draft) -> None:
    section = openfl.section("aggregator")
    rounds = section.value("rounds_to_train")
    if type(rounds) is not int or rounds < 1:
        told = f"expected how many rounds, a whole number from 1, got {shown(rounds)}"
        place = section.place("rounds_to_train")
        draft.problem(place, "U51", "aggregator.settings.rounds_to_train", told)
        return
    draft.plan["rounds"] = rounds
    _said(draft, openfl, "aggregator", "rounds_to_train", KEPT, f"rounds: {rounds}")


def _network(openfl: OpenFL, draft: Draft) -> None:
    section = openfl.section("network")
    name, port = section.value("agg_addr", "auto"), section.value("agg_port", "auto")
    alone = name in ("auto", "localhost", "127.0.0.1")
    if port == "auto":
        port = 0 if alone else 50051
    try:
        advertised = "localhost" if alone else host(str(name))
        listen = join_address("127.0.0.1" if alone else "0.0.0.0", int(port))
    except ValueError as error:
        draft.problem(section.place("agg_addr"), "U51", "network.settings", str(error))
        return
    draft.plan["aggregator"] = {"listen": listen, "advertise": [advertised]}
    says = f"aggregator.advertise: [{advertised}]"
    if name == "auto":
        says += "; for several machines: fx plan initialize -a NAME"
    elif not alone:  # OpenFL writes the name of the machine that it runs on, unasked
        says += "; where the aggregator runs elsewhere now, change it: [localhost] to try all of "
        says += "it on this machine"
    _said(draft, openfl, "network", "agg_addr", KEPT if alone else TODO, says)
    says = f"aggregator.listen: {listen}"
    if not port:
        says += " (any free port, for runs on this machine; give one for several machines)"
    _said(draft, openfl, "network", "agg_port", KEPT, says)
    for key, off in (("tls", False), ("use_tls", False), ("disable_tls", True)):
        if section.value(key) is off:
            told = "WITHOUT ENCRYPTION before; openfed has no plaintext mode: mutual TLS is on"
            _said(draft, openfl, "network", key, DROPPED, told)
    for key, off in (("require_client_auth", False), ("disable_client_auth", True)):
        if section.value(key) is off:
            told = "ANYBODY COULD JOIN before; every collaborator needs a certificate in openfed"
            _said(draft, openfl, "network", key, DROPPED, told)


def _sites(openfl: OpenFL, draft: Draft) -> None:
    if openfl.unread:
        draft.problems += openfl.unread
        return
    names, data = openfl.collaborators, openfl.data
    key, at = "plan/cols.yaml", Place(0, 0, 0, "plan/cols.yaml")
    if not names:
        names, key = tuple(data), "plan/data.yaml"
    if not names:
        told = "names no collaborators, and plan/data.yaml none either: add them, as OpenFL does"
        draft.problem(at, "U53", "collaborators", told)
        return
    for name in names:
        if not NAME.fullmatch(name) or name.lower() in RESERVED:
            told = f"{name!r} cannot name a collaborator here: letters, digits, - and _, up to 63"
            draft.problem(at, "U53", "collaborators", f"{told}; rename it in both files")
    draft.plan["collaborators"] = list(names)
    draft.row(key, ", ".join(names), KEPT, "collaborators, in plan.yaml")
    for name in names:
        if name not in data:
            draft.row("plan/data.yaml", name, TODO, f"has no path: add {name}: PATH to local.yaml")
            continue
        inside = openfl.root / data[name]
        draft.local[name] = str(inside.resolve()) if inside.exists() else data[name]
        draft.row("plan/data.yaml", f"{name},{data[name]}", KEPT, f"local.yaml: {name}")
    for name in sorted(set(data) - set(names)):
        draft.row("plan/data.yaml", name, DROPPED, "is not in plan/cols.yaml")


# -- tasks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One of OpenFL's tasks that sites are given; `kind` is what it is called here."""

    name: str
    kind: str  # train, validate, validate_tuned
    node: Node
    function: str
    kwargs: Mapping[str, Any]


_ORDER = ("validate", "train", "validate_tuned")
_TRAIN = ("train_task", "train_batches", "train")
_VALIDATE = ("validate_task", "validate")


def _chosen_tasks(openfl: OpenFL, runner: Class, draft: Draft) -> tuple[Task, ...]:
    """The tasks that the assigner gives to the sites, in openfed's order."""
    parts = openfl.section("tasks").parts
    wanted = _assigned(openfl, draft, tuple(parts))
    found: dict[str, Task] = {}
    for name in wanted:
        node = parts.get(name)
        if node is None:
            at = openfl.section("assigner").at
            draft.problem(at, "U54", "assigner.settings.task_groups", f"no task {name} in tasks")
            continue
        task = _task(name, node)
        if isinstance(task, str):
            draft.problem(node.at, "U54", f"tasks.{name}", task)
        elif task.kind in found:
            told = f"is a second {task.kind}, after {found[task.kind].name}"
            draft.problem(node.at, "U54", f"tasks.{name}", told)
        else:
            found[task.kind] = task = _as_defined(task, runner, draft)
            draft.row(f"tasks.{name}", _origin(node.at, task.function), KEPT, f"tasks: {task.kind}")
            _task_kwargs(task, draft)
    for name in sorted(set(parts) - set(wanted)):
        draft.row(f"tasks.{name}", "a task", DROPPED, "the assigner gives it to nobody")
    if "train" not in found and not draft.problems:
        told = "nothing trains: an evaluation alone is not a run of openfed yet"
        draft.problem(openfl.section("tasks").at, "U54", "tasks", told)
    chosen = tuple(found[kind] for kind in _ORDER if kind in found)
    draft.plan["tasks"] = [task.kind for task in chosen]
    return chosen


def _task(name: str, node: Node) -> Task | str:
    """The task, or what is wrong with it."""
    given = plain(node)
    if not isinstance(given, dict):
        return f"expected function and kwargs, got {shown(given)}"
    function, kwargs = given.get("function"), given.get("kwargs") or {}
    if not isinstance(kwargs, dict):
        return f"expected kwargs as a mapping, got {shown(kwargs)}"
    if function in _TRAIN:
        return Task(name, "train", node, function, kwargs)
    if function in _VALIDATE and kwargs.get("apply", "global") in ("global", "local"):
        kind = "validate" if kwargs.get("apply", "global") == "global" else "validate_tuned"
        return Task(name, kind, node, function, {**kwargs, "apply": kwargs.get("apply", "global")})
    told = f"function {shown(function)} with {shown(kwargs)} is no training and no validation"
    return f"{told} that openfed knows"


_OF_1_5 = {"validate_task": ("validate", "validate_"), "train_task": ("train_batches", "train_")}
"""By the method that OpenFL 1.6 to 1.9 call: what 1.5 calls, and what the newer one calls."""


def _as_defined(task: Task, runner: Class, draft: Draft) -> Task:
    """A task of OpenFL's own defaults, which differ by version, by the method that is there."""
    old, inner = _OF_1_5.get(task.function, ("", ""))
    newer = {task.function, inner} & set(runner.methods)
    if task.node.at.file != f"{OPENFLS}{DEFAULTS}/{TASKS_TORCH}" or newer:
        return task
    if old not in runner.methods:
        return task
    says = f"{old}, as in OpenFL 1.5: your class defines it, and no {task.function}"
    draft.row(f"tasks.{task.name}.function", task.function, NEAR, says)
    return replace(task, function=old)


def _task_kwargs(task: Task, draft: Draft) -> None:
    for key, value in task.kwargs.items():
        where = f"tasks.{task.name}.kwargs.{key}"
        says = f"task_runner: calls.{task.kind}.kwargs.{key}, handed to {task.function}"
        if key == "metrics":
            names = ", ".join(map(str, value)) if isinstance(value, list) else _short(value)
            says += "; what is reported is what your code returns"
            draft.row(where, names, KEPT, says)
        elif key != "apply":
            draft.row(where, value, KEPT, says)


def _assigned(openfl: OpenFL, draft: Draft, known: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the tasks that sites get."""
    section = openfl.section("assigner")
    groups = section.value("task_groups")
    if groups is None:
        return known
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        told = f"expected a list of groups, got {shown(groups)}"
        draft.problem(section.place("task_groups"), "U51", "assigner.settings.task_groups", told)
        return known
    key, at = "assigner.settings.task_groups", section.place("task_groups")
    groups, chosen = _selected(openfl, groups, draft)
    static = "Static" in section.template
    busy: list[tuple[dict[str, Any], Any]] = []
    for group in groups:
        share = group.get("collaborators") if static else group.get("percentage", 1.0)
        share = 1.0 if chosen and not static else share
        if share:
            busy.append((group, share))
        else:
            draft.row(f"{key}.{group.get('name')}", "0", DROPPED, "nobody is in this group")
    if not groups:
        return ()
    if len(busy) != 1:
        return _split(openfl, draft, busy, static=static)
    (group, share), tasks = busy[0], tuple(map(str, busy[0][0].get("tasks") or []))
    everyone = set(openfl.collaborators or openfl.data)
    if static and set(map(str, share)) != everyone:
        draft.problem(at, "U54", key, "leaves some sites without tasks: openfed gives all the same")
    if not static and share != 1.0:
        draft.problem(at, "U54", key, f"expected all sites (1.0) in the group, got {shown(share)}")
    draft.row(f"{key}.{group.get('name')}", _origin(at, ", ".join(tasks)), KEPT, "tasks")
    return tasks


def _selected(
    openfl: OpenFL, groups: list[dict[str, Any]], draft: Draft
) -> tuple[list[dict[str, Any]], bool]:
    """The group that the plan selects, if it does (OpenFL 1.8 and 1.9): then nobody is in others,
    and all sites in it. Else all groups."""
    section = openfl.section("assigner")
    name = section.value("selected_task_group")
    if name is None:
        return groups, False
    key, at = "assigner.settings.selected_task_group", section.place("selected_task_group")
    chosen = [group for group in groups if group.get("name") == name]
    if len(chosen) != 1:
        known = ", ".join(str(group.get("name")) for group in groups)
        draft.problem(at, "U54", key, f"expected one of the groups ({known}), got {shown(name)}")
        return [], True
    draft.row(key, _short(name), KEPT, "tasks: those of this group, for all sites")
    for group in (group for group in groups if group not in chosen):
        where = f"assigner.settings.task_groups.{group.get('name')}"
        draft.row(where, "a group", DROPPED, "is not the selected one")
    return chosen, True


def _split(
    openfl: OpenFL, draft: Draft, busy: list[tuple[dict[str, Any], Any]], *, static: bool
) -> tuple[str, ...]:
    """Several groups: a share of the sites trains, the others validate only."""
    section = openfl.section("assigner")
    key, at = "assigner.settings.task_groups", section.place("task_groups")
    training = [(g, s) for g, s in busy if any("train" in str(t) for t in g.get("tasks") or [])]
    if static or len(training) != 1 or not isinstance(training[0][1], int | float):
        told = "different sites get different tasks, which openfed does not have"
        draft.problem(at, "U54", key, told)
        return ()
    group, share = training[0]
    draft.plan.setdefault("cohort", {})["fraction"] = float(share)
    says = f"cohort.fraction: {share} of the sites are asked in a round; all of them validate"
    draft.row(f"{key}.{group.get('name')}", share, NEAR, says)
    return tuple(map(str, group.get("tasks") or []))


# -- the code -------------------------------------------------------------------------------------


def _class(openfl: OpenFL, sources: Mapping[str, Source], key: str, draft: Draft) -> Class:
    """The class that a section names, or none, after telling what is wrong with it."""
    section, runner = openfl.section(key), key == "task_runner"
    module, _, name = section.template.rpartition(".")
    reference = f"{module}:{name}"
    if CODE.fullmatch(reference):
        wrong = class_finding(sources, reference, section.at, f"{key}.template", runner=runner)
    else:
        told = f"expected a class of src, as in src.module.Name, got {shown(section.template)}"
        told = (refused_runner(name, name) if runner else "") or told
        wrong = Finding(section.at, "U52", f"{key}.template", told)
    draft.problems += [wrong] if wrong else []
    return look(sources, "" if wrong else reference)


def _settings(openfl: OpenFL, key: str, code: Class, draft: Draft) -> dict[str, Any]:
    """The settings of a section's class, after rows for it and for them."""
    section, adapter = openfl.section(key), ADAPTERS[key]
    draft.row(f"{key}.template", section.template, KEPT, f"{key}: {adapter} stands around it")
    settings = {}
    for setting, node in section.settings.items():
        if (key, setting) == ("data_loader", "data_path"):
            says = "the path comes from local.yaml, or from the site itself"
            _said(draft, openfl, key, setting, DROPPED, says)
            continue
        settings[setting] = plain(node)
        says = f"{key}: settings.{setting}, handed to {code.name}"
        _said(draft, openfl, key, setting, KEPT, says)
    return settings


def _call(role: str, code: Class, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {role: code.reference, **({"settings": dict(settings)} if settings else {})}


def _runner(
    openfl: OpenFL, runner: Class, loader: Class, tasks: tuple[Task, ...], draft: Draft
) -> None:
    draft.problems += own_transfer(runner)
    settings = _settings(openfl, "task_runner", runner, draft)
    for name in sorted({"save_native", "load_native"} & set(runner.methods)):
        says = "never called: models are safetensors, `fx model save` makes other formats of them"
        draft.row(runner.reference, name, DROPPED, says)
    whole = _call("runner", runner, settings)
    whole["optimizer_state"] = _treatment(openfl, draft)
    whole["calls"] = {
        task.kind: {"function": task.function, "kwargs": dict(task.kwargs)} for task in tasks
    }
    whole["reports"] = _reports(runner, tasks, draft)
    whole |= _without_data(openfl, runner, loader, draft)
    draft.plan["task_runner"] = {RUNNER: whole}


def _without_data(openfl: OpenFL, runner: Class, loader: Class, draft: Draft) -> dict[str, Any]:
    """What the first model may have to know of the data: openfed makes it without."""
    section, asked = openfl.section("data_loader"), asked_of_data(runner)
    if asked and made_without_data(loader):
        says = "task_runner: empty_loader, for the first model: made with data_path=None, as "
        draft.row(loader.reference, ", ".join(asked), KEPT, f"{says}OpenFL 1.9 does")
        settings = {key: plain(node) for key, node in section.settings.items()}
        settings.pop("data_path", None)
        return {"empty_loader": _call("loader", loader, settings)}
    facts = {key: section.value(key) for key in asked if key in section.settings}
    for key in asked:
        if key in facts:
            says = f"task_runner: data_facts.{key}, for the first model, made without data"
            draft.row(f"data_loader.settings.{key}", facts[key], KEPT, says)
        else:
            says = "your runner may ask the data loader for it, and the first model is made "
            says += f"without data: if fx run says so, add data_facts: {{{key}: ...}} to "
            draft.row(runner.reference, key, TODO, f"{says}plan.yaml, beside `calls`")
    return {"data_facts": facts} if facts else {}


_TREATMENT = {"RESET": "reset", "CONTINUE_LOCAL": "keep", "CONTINUE_GLOBAL": "average"}


def _treatment(openfl: OpenFL, draft: Draft) -> str:
    section = openfl.section("collaborator")
    given = section.value("opt_treatment", "RESET")
    if given not in _TREATMENT:
        told = f"expected {' | '.join(_TREATMENT)}, got {shown(given)}"
        place = section.place("opt_treatment")
        draft.problem(place, "U51", "collaborator.settings.opt_treatment", told)
        return "reset"
    says = f"task_runner: optimizer_state: {_TREATMENT[given]}"
    _said(draft, openfl, "collaborator", "opt_treatment", KEPT, says)
    return _TREATMENT[given]


_MEANS = ("accuracy", "mae", "mse")
"""Shipped metrics whose value over all sites is the mean of the sites' values, by samples."""


def _reports(runner: Class, tasks: tuple[Task, ...], draft: Draft) -> dict[str, str]:
    """The names under which the code's two numbers are reported, and the plan's `metrics`."""
    methods = {task.kind: task.function for task in tasks}
    validate = methods.get("validate", methods.get("validate_tuned", "validate_task"))
    train = (methods.get("train", "train_task"), "train_", "train_epoch")
    made = {
        "train": returned_metric(runner, train, None),
        "validate": returned_metric(runner, (validate, "validate_"), "accuracy"),
    }
    reports = {}
    for task, fallback in (("train", "loss"), ("validate", "score")):
        name = made[task]
        key = f"{runner.name}, metric of {task}"
        if name is None:
            reports[task] = fallback
            says = f"its name is made at run time: reported as {fallback}"
            draft.row(key, "not in the source", NEAR, says)
        else:
            reports[task] = _metric(name)
            draft.row(key, name, KEPT, f"reported as {reports[task]}, weighted by samples")
    for name in (reports["validate"], reports["train"]):
        if name != "loss" and name not in draft.metrics:
            draft.metrics.append(name)
    draft.plan["metrics"] = [
        name if name in METRICS else f"{NAMES}:{name}" for name in draft.metrics
    ]
    if "validate" in draft.plan["tasks"]:
        _best(reports["validate"], draft)
    return reports


def _metric(name: str) -> str:
    """A name that a plan can hold; not that of a shipped metric that is no mean of the sites'."""
    text = re.sub(r"[^A-Za-z0-9_]", "_", name, flags=re.ASCII) or "score"
    text = f"metric_{text}" if text[0].isdigit() else text
    return f"site_{text}" if text in METRICS and text not in _MEANS else text


def _best(name: str, draft: Draft) -> None:
    mode = "min" if name == "loss" or METRICS.get(name) == "min" else "max"
    draft.plan["best"] = {"metric": name, "mode": mode}
    if mode == "max" and re.search("loss|error", name, re.IGNORECASE):
        says = f"OpenFL keeps the model with the highest {name}; is lower better? write mode: min"
        draft.row("best", name, TODO, says)


# -- aggregation, compression, stragglers ---------------------------------------------------------

_STRATEGIES = {
    "WeightedAverage": "fedavg",
    "Median": "median",
    "GeometricMedian": "geometric_median",
    "AdamAdaptiveAggregation": "fedadam",
    "YogiAdaptiveAggregation": "fedyogi",
    "AdagradAdaptiveAggregation": "fedadagrad",
}


_REDDI = "; openfed's is that of Reddi et al. 2021, without a correction of the first steps"
_NEAR = {
    "geometric_median": "; openfed's is of whole updates, OpenFL's of each tensor; every site "
    "counts the same, unless you write weights: samples"
}


def _strategy(openfl: OpenFL, tasks: tuple[Task, ...], draft: Draft) -> None:
    """The aggregation function of training; those of validations only average metrics."""
    draft.plan["strategy"] = "fedavg"
    for task in tasks:
        given = plain(task.node).get("aggregation_type")
        key = f"tasks.{task.name}.aggregation_type"
        if given is None:
            continue
        template = given.get("template") if isinstance(given, dict) else given
        if task.kind != "train":
            draft.row(key, str(template), DROPPED, "metrics are summed and divided once, always")
            continue
        name = _STRATEGIES.get(str(template).rpartition(".")[2])
        if name is None:
            told = f"{template} is not available here; there are: {', '.join(STRATEGIES)}"
            draft.problem(task.node.at, "U54", key, told)
            continue
        settings = given.get("settings") if isinstance(given, dict) else None
        own = _server(name, settings or {}, key, draft)
        draft.plan["strategy"] = {name: own} if own else name
        near = _REDDI if "Adaptive" in str(template) else _NEAR.get(name, "")
        draft.row(key, str(template), NEAR if near else KEPT, f"strategy: {name}{near}")


def _server(name: str, given: Mapping[str, Any], key: str, draft: Draft) -> dict[str, Any]:
    """The settings of a server optimiser, OpenFL's defaults written out."""
    own: dict[str, Any] = {}
    if name in ("fedadam", "fedyogi", "fedadagrad"):
        own = {"lr": given.get("learning_rate", 0.01), "tau": given.get("epsilon", 1e-8)}
        betas = given.get("betas", [0.9, 0.999])
        if name != "fedadagrad" and isinstance(betas, list) and len(betas) == 2:
            own |= {"beta1": betas[0], "beta2": betas[1]}
    known = {"learning_rate", "epsilon", "betas"} if own else set()
    for setting in sorted(set(given) - known):
        draft.row(f"{key}.settings.{setting}", given[setting], UNKNOWN, "left out")
    return own


def _pipeline(openfl: OpenFL, draft: Draft) -> None:
    section = openfl.section("compression_pipeline")
    kind = section.template.rpartition(".")[2]
    sparsity, centers = section.value("p_sparsity"), section.value("n_clusters", 6)
    chains: dict[str, Callable[[], Any]] = {
        "KCPipeline": lambda: [{"kmeans": {"centers": centers}}, "zstd"],
        "SKCPipeline": lambda: [
            {"topk": {"fraction": sparsity or 0.01}},
            {"kmeans": {"centers": centers}},
            "zstd",
        ],
        "STCPipeline": lambda: {
            "feedback": True,
            "codecs": [{"ternary": {"fraction": sparsity or 0.1}}],
        },
        "EdenPipeline": lambda: ["rotate", {"lloyd": {"bits": _bits(section.value("n_bits", 8))}}],
    }
    if kind == "NoCompressionPipeline":
        draft.row("compression_pipeline", kind, KEPT, "none: models travel as they are")
    elif kind == "RandomShiftPipeline":
        says = "left out: it makes nothing smaller, and hides nothing from who has the seed"
        draft.row("compression_pipeline", kind, DROPPED, says)
    elif kind in chains:
        uplink = chains[kind]()
        draft.plan["compression_pipeline"] = {"uplink": uplink}
        says = f"uplink: {_words(uplink)}; the way down is not compressed; see docs/codecs.md"
        draft.row("compression_pipeline", kind, NEAR, says)
    elif kind:
        says = f"openfed knows no {kind}; models travel as they are"
        draft.row("compression_pipeline", section.template, UNKNOWN, says)
    used = {"SKCPipeline": ("p_sparsity", "n_clusters"), "KCPipeline": ("n_clusters",)}
    used |= {"STCPipeline": ("p_sparsity",), "EdenPipeline": ("n_bits",)}
    for key in section.settings:
        known = key in used.get(kind, ())
        says = f"{kind} has it not, or openfed does not know it; left out"
        says = "in compression_pipeline" if known else says
        _said(draft, openfl, "compression_pipeline", key, NEAR if known else UNKNOWN, says)


def _bits(given: Any) -> int:
    """The bits that there are, at least as many as given."""
    return next((bits for bits in (1, 2, 4) if isinstance(given, int) and given <= bits), 8)


def _words(uplink: Any) -> str:
    codecs = uplink["codecs"] if isinstance(uplink, dict) else uplink
    return ", ".join(codec if isinstance(codec, str) else next(iter(codec)) for codec in codecs)


def _stragglers(openfl: OpenFL, draft: Draft) -> None:
    section = openfl.section("straggler_handling_policy")
    kind = section.template.rpartition(".")[2]
    key = "straggler_handling_policy"
    verdict, says = UNKNOWN, "all sites are waited for"
    if kind.startswith("Cutoff"):
        verdict, says = _cutoff(section, draft)
    elif kind.startswith("Percentage"):
        says = "openfed has no end of a round by share alone: all sites are waited for. Instead: "
        verdict, says = TODO, f"{says}cohort: {{quorum: N, deadline: 10m}}"
    elif kind in ("NoPolicy", "WaitForAllPolicy"):
        verdict = KEPT
    if kind:
        draft.row(key, _origin(section.at, kind), verdict, says)
    for setting in section.settings:
        same = DROPPED if verdict in (TODO, KEPT) else verdict
        _said(draft, openfl, key, setting, same, f"see {key}")


def _cutoff(section: Section, draft: Draft) -> tuple[str, str]:
    """Verdict and words of a policy with a cut-off, which becomes a deadline and a quorum."""
    seconds, least = section.value("straggler_cutoff_time"), section.value("minimum_reporting", 1)
    if seconds in (None, math.inf):
        return KEPT, "without a cut-off time all sites are waited for, in openfed too"
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        told = f"expected seconds, got {shown(seconds)}"
        at, key = section.place("straggler_cutoff_time"), "straggler_handling_policy.settings"
        draft.problem(at, "U51", f"{key}.straggler_cutoff_time", told)
        return UNKNOWN, ""
    sites = len(draft.plan.get("collaborators", ()))
    quorum = max(1, min(least if type(least) is int else 1, sites))
    cohort = {"deadline": f"{float(seconds):g}s", "quorum": quorum}
    draft.plan["cohort"] = {**draft.plan.get("cohort", {}), **cohort}
    says = f"cohort: deadline: {cohort['deadline']}, quorum: {quorum}"
    return NEAR, f"{says}; who is late or too few: see docs/migration.md"


# -- the rest -------------------------------------------------------------------------------------

_OWN_DB = "the journal keeps what a restart needs, for the whole run"
_DELTAS = "what travels is always the difference"
_NAMES = "models are save/<name>_{init,last,best}.safetensors"

DROP: Mapping[str, Mapping[str, str]] = {
    "aggregator": {
        "rounds_to_train": "",
        "init_state_path": f"{_NAMES}; the first model is made anew: a .pbuf is not read",
        "best_state_path": _NAMES,
        "last_state_path": _NAMES,
        "db_store_rounds": _OWN_DB,
        "persist_checkpoint": _OWN_DB,
        "persistent_db_path": _OWN_DB,
        "write_logs": "logs/metrics.jsonl and logs/events.jsonl are always written",
        "log_metric_callback": "no code of yours runs at the aggregator; read logs/metrics.jsonl",
        "callbacks": "no code of yours runs at the aggregator; read logs/events.jsonl",
        "log_memory_usage": "not measured",
        "enable_remote_attestation": "there is none",
        "single_col_cert_common_name": "every collaborator has a certificate of its own name",
        "delta_updates": _DELTAS,
        "use_delta_updates": _DELTAS,
    },
    "collaborator": {
        "opt_treatment": "",
        "delta_updates": _DELTAS,
        "use_delta_updates": _DELTAS,
        "epochs_per_round": "OpenFL 1.5 to 1.9 does not read it either: epochs are the task's",
        "polling_interval": "OpenFL 1.5 to 1.9 does not read it either",
        "db_store_rounds": _OWN_DB,
        "persist_checkpoint": _OWN_DB,
        "persistent_db_path": _OWN_DB,
        "device_assignment_policy": "local.yaml or site.yaml says `device`",
        "callbacks": "no callbacks at the agent; read logs/events.jsonl",
        "log_memory_usage": "not measured",
        "enable_remote_attestation": "there is none",
    },
    "network": {
        "agg_addr": "",
        "agg_port": "",
        "tls": "mutual TLS is always on",
        "use_tls": "mutual TLS is always on",
        "disable_tls": "mutual TLS is always on",
        "require_client_auth": "mutual TLS is always on",
        "disable_client_auth": "mutual TLS is always on",
        "hash_salt": "ports are not made from hashes",
        "cert_folder": "certificates are in cert/",
        "client_reconnect_interval": "retries wait longer and longer by themselves",
        "cert_common_name": "certificates name their node",
        "enable_remote_attestation": "there is none",
        "enable_atomic_connections": "every call is its own, over one connection",
        "transport_protocol": "gRPC, always",
    },
    "assigner": {"task_groups": "", "selected_task_group": ""},
    "data_loader": {},
    "task_runner": {},
    "tasks": {},
    "compression_pipeline": {},
    "straggler_handling_policy": {},
}
"""Settings by section: why each is left out; nothing: another function has said it."""

_SECTIONS = {
    *("aggregator", "collaborator", "data_loader", "task_runner", "network", "assigner", "tasks"),
    *("compression_pipeline", "straggler_handling_policy"),
}


def _leftovers(openfl: OpenFL, name: str, known: Mapping[str, str], draft: Draft) -> None:
    """Every setting of a section that nothing else has spoken of."""
    section = openfl.section(name)
    said = {row.key for row in draft.rows}
    for key in section.settings:
        if key == "secure_aggregation":
            if section.value(key):
                told = "secure aggregation of OpenFL has no counterpart here: set it to false first"
                draft.problem(section.place(key), "U54", f"{name}.settings.{key}", told)
            else:
                _said(draft, openfl, name, key, DROPPED, "was off")
        elif f"{name}.settings.{key}" not in said and known.get(key) != "":
            says = known.get(key, "openfed knows no such setting of OpenFL's; left out")
            _said(draft, openfl, name, key, DROPPED if key in known else UNKNOWN, says)
    for key in section.parts if name != "tasks" else ():
        draft.row(f"{name}.{key}", "a key", UNKNOWN, "openfed knows no such key; left out")


def _said(draft: Draft, openfl: OpenFL, name: str, key: str, verdict: str, says: str) -> None:
    section = openfl.section(name)
    found = _short(section.value(key)) if key in section.settings else "not given"
    draft.row(f"{name}.settings.{key}", _origin(section.place(key), found), verdict, says)


def _origin(at: Place, found: str) -> str:
    """What was found, and that it is a default of OpenFL's where the workspace does not say it."""
    return f"{found} ({at.file})" if at.file.startswith(OPENFLS) else found
