"""An OpenFL workspace as it lies there: its plan with the defaults below it, its sites, its data.

Formats: plan/plan.yaml (sections of `template`, `settings` and `defaults`), plan/cols.yaml, and
plan/data.yaml, which is lines of `name,path`. OpenFL keeps the files that `defaults` names in its
own package; those of its torch workspaces are in `KNOWN` below.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from openfed.errors import PlanError, UsageError
from openfed.plan.load import problems, read_file
from openfed.plan.source import Finding, Node, Place, plain
from openfed.plan.values import shown

DEFAULTS = PurePosixPath("plan/defaults")
_SCORE, _TUNED = "aggregated_model_validation", "locally_tuned_model_validation"
_SCORED = {"function": "validate_task", "kwargs": {"apply": "global", "metrics": ["acc"]}}


def _groups(**named: tuple[float, list[str]]) -> Mapping[str, Any]:
    """An assigner with these groups: share of the sites, tasks."""
    groups = [
        {"name": name, "percentage": share, "tasks": tasks}
        for name, (share, tasks) in named.items()
    ]
    template = "openfl.component.RandomGroupedAssigner"
    return {"template": template, "settings": {"task_groups": groups}}


TASKS_TORCH = "tasks_torch.yaml"
_ELSEWHERE = (
    *("tasks_keras.yaml", "tasks_tensorflow.yaml", "tasks_fast_estimator.yaml", "tasks_xgb.yaml"),
    *("tasks_flower.yaml", "tasks_connector.yaml", "connector.yaml", "connector_flower.yaml"),
)
"""Of frameworks whose runners are refused, whatever these files say."""

KNOWN: Mapping[str, Mapping[str, Any]] = {
    "aggregator.yaml": {
        "settings": {
            "db_store_rounds": 2,
            "init_state_path": "save/init.pbuf",
            "best_state_path": "save/best.pbuf",
            "last_state_path": "save/last.pbuf",
        }
    },
    "collaborator.yaml": {
        "settings": {
            "opt_treatment": "CONTINUE_LOCAL",
            "use_delta_updates": True,
            "db_store_rounds": 1,
        }
    },
    "network.yaml": {"settings": {"agg_addr": "auto", "agg_port": "auto"}},
    "assigner.yaml": _groups(learning=(1.0, [_SCORE, "train", _TUNED]), evaluation=(0, [_SCORE])),
    TASKS_TORCH: {
        _SCORE: _SCORED,
        _TUNED: {"function": "validate_task", "kwargs": {"apply": "local", "metrics": ["acc"]}},
        "train": {"function": "train_task", "kwargs": {"metrics": ["loss"], "epochs": 1}},
    },
    "federated-evaluation/aggregator.yaml": {"settings": {"rounds_to_train": 1}},
    "federated-evaluation/assigner.yaml": _groups(evaluation=(1.0, [_SCORE])),
    "federated-evaluation/tasks_torch.yaml": {_SCORE: _SCORED},
    "data_loader.yaml": {"template": "openfl.federated.DataLoader"},
    "task_runner.yaml": {"template": "openfl.federated.task_runner.CoreTaskRunner"},
    "compression_pipeline.yaml": {},
    "straggler_handling_policy.yaml": {},
    **dict.fromkeys(_ELSEWHERE, {}),
}
"""What of OpenFL's own plan/defaults matters here, where a workspace does not bring the files."""

OPENFLS = "OpenFL's own "
"""Begins the name of a file that is in `KNOWN` and not in the workspace."""


@dataclass(frozen=True)
class Section:
    """One section, its defaults below it. `parts` are its other keys: of `tasks`, the tasks."""

    at: Place
    template: str = ""
    settings: Mapping[str, Node] = field(default_factory=dict)
    parts: Mapping[str, Node] = field(default_factory=dict)

    def value(self, key: str, default: Any = None) -> Any:
        """A setting without its place."""
        return plain(self.settings[key]) if key in self.settings else default

    def place(self, key: str) -> Place:
        return self.settings[key].at if key in self.settings else self.at


@dataclass(frozen=True)
class OpenFL:
    """A workspace. `collaborators` are those of cols.yaml, `data` the paths of data.yaml; `unread`
    is what is wrong in these two, which other APIs of OpenFL write in another way."""

    root: Path
    sections: Mapping[str, Section]
    collaborators: tuple[str, ...]
    data: Mapping[str, str]
    unread: tuple[Finding, ...] = ()

    def section(self, name: str) -> Section:
        return self.sections.get(name, Section(Place(0, 0, 0, "plan/plan.yaml")))


def read_openfl(root: Path) -> OpenFL:
    """Raises: UsageError U50, not an OpenFL workspace; PlanError, every line of the plan and its
    defaults that is not readable.

    Reads below `root` only.
    """
    if not (root / "plan" / "plan.yaml").is_file():
        raise UsageError("U50", f"{root} is not an OpenFL workspace: it has no plan/plan.yaml")
    tree, found = read_file(root / "plan" / "plan.yaml", root)
    fields = _mapping(tree, "plan", found)
    sections = {name: _section(name, node, root, found) for name, node in fields.items()}
    if tree is not None and not ({"aggregator", "task_runner", "federated_flow"} & set(sections)):
        told = f"{root}/plan/plan.yaml has none of OpenFL's sections (aggregator, task_runner, ...)"
        raise UsageError("U50", f"{told}: it has {', '.join(list(sections)[:8]) or 'none'}")
    if found:
        raise PlanError(problems(found))
    unread: list[Finding] = []
    collaborators, data = _collaborators(root, unread), _data(root, unread)
    return OpenFL(root, sections, collaborators, data, tuple(unread))


def _mapping(node: Node | None, path: str, found: list[Finding]) -> dict[str, Node]:
    """The fields of a mapping; none of what is empty; anything else is a finding."""
    if node is None or node.value is None:
        return {}
    if isinstance(node.value, dict):
        return node.value
    told = f"expected a mapping (key: value), got {shown(plain(node))}"
    found.append(Finding(node.at, "U51", path, told))
    return {}


def _section(name: str, node: Node, root: Path, found: list[Finding]) -> Section:
    fields = dict(_mapping(node, name, found))
    named = fields.pop("defaults", None)
    below = _defaults(name, named, root, found) if named and named.value is not None else {}
    settings = {
        **_mapping(below.pop("settings", None), f"{name}.settings", found),
        **_mapping(fields.pop("settings", None), f"{name}.settings", found),
    }
    whole = {**below, **fields}
    template = whole.pop("template", None)
    text = template.value if template is not None and isinstance(template.value, str) else ""
    at = template.at if template is not None and text else node.at
    return Section(at, text, settings, whole)


def _defaults(name: str, named: Node, root: Path, found: list[Finding]) -> dict[str, Node]:
    """The file of a `defaults` key: the workspace's own, else OpenFL's as far as it is known."""
    text = str(named.value)
    path = root / text
    if path.resolve().is_relative_to(root.resolve()) and path.is_file():
        tree, more = read_file(path, root)
        found += more
        return dict(_mapping(tree, name, found))
    own = PurePosixPath(text)
    known = None
    if own.is_relative_to(DEFAULTS):
        known = KNOWN.get(own.relative_to(DEFAULTS).as_posix())
    if known is None:
        told = f"there is no file {text} in the workspace, and openfed does not know OpenFL's own"
        remedy = "write its settings into plan.yaml, and remove `defaults`"
        found.append(Finding(named.at, "U51", f"{name}.defaults", f"{told}: {remedy}"))
        return {}
    node = _node(known, Place(0, 0, 0, f"{OPENFLS}{text}"))
    return dict(_mapping(node, name, found))


def _node(value: Any, at: Place) -> Node:
    if isinstance(value, Mapping):
        return Node({key: _node(child, at) for key, child in value.items()}, at)
    if isinstance(value, list):
        return Node([_node(child, at) for child in value], at)
    return Node(value, at)


def _collaborators(root: Path, found: list[Finding]) -> tuple[str, ...]:
    path = root / "plan" / "cols.yaml"
    if not path.is_file() or not _lines(path, found):
        return ()
    tree, more = read_file(path, root)
    found += more
    node = _mapping(tree, "", found).get("collaborators")
    if node is None or node.value is None:
        return ()
    names = plain(node)
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        found.append(Finding(node.at, "U51", "collaborators", "expected a list of names"))
        return ()
    return tuple(str(name) for name in names)


def _data(root: Path, found: list[Finding]) -> dict[str, str]:
    path = root / "plan" / "data.yaml"
    paths: dict[str, str] = {}
    for number, line in _lines(path, found) if path.is_file() else ():
        name, comma, where = (part.strip() for part in line.partition(","))
        if not (name and comma and where):
            at = Place(0, number, 1, "plan/data.yaml")
            told = f"expected a line of name,path, got {shown(line)}"
            found.append(Finding(at, "U51", "", told))
        paths[name] = where
    return paths


def _lines(path: Path, found: list[Finding]) -> list[tuple[int, str]]:
    """The lines that are neither empty nor comments, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot be read: {str(error)[:100]}"
        found.append(Finding(Place(0, 0, 0, f"plan/{path.name}"), "U51", "", what))
        return []
    lines = enumerate(text.splitlines(), start=1)
    return [(n, line.strip()) for n, line in lines if line.strip() and line.strip()[0] != "#"]
