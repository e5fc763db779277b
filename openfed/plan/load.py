"""From the plan's file to the plan: parse, merge, check. Nothing is imported, nothing written."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from openfed.errors import PlanError
from openfed.files import shipped
from openfed.plan.chains import Broken
from openfed.plan.check import checked, finding
from openfed.plan.code import code_findings
from openfed.plan.rules import broken_rules
from openfed.plan.schema import Plan
from openfed.plan.source import MAX_BYTES, Finding, Node, Place, parse
from openfed.plan.tree import merged, normalised, override
from openfed.plan.values import shown, suggest

MAX_EXTENDS = 8


def load_plan(path: Path, overrides: Sequence[str] = (), *, workspace: Path | None = None) -> Plan:
    """The plan of `path`, with what it extends below it and `key.path=value` overrides on top.

    `workspace` holds `src/`; by default it is the folder around `plan/`.
    Raises: PlanError: with every problem, in file order.
    """
    workspace = workspace or workspace_of(path)
    tree, found = read_tree(path, overrides, workspace)
    plan = None
    if tree is not None:
        plan, more = _check(tree, workspace)
        found += more
    if found or plan is None:
        raise PlanError(problems(found))
    return plan


def refusal(path: Path, overrides: Sequence[str], broken: Iterable[Broken]) -> PlanError:
    """The error that says what is wrong with a plan that loads, at its lines."""
    tree, found = read_tree(path, overrides, workspace_of(path))
    tree = tree or Node({}, Place(0, 0, 0, str(path)))
    return PlanError(problems([*found, *(finding(tree, *each) for each in broken)]))


def workspace_of(plan: Path) -> Path:
    folder = plan.absolute().parent
    return folder.parent if folder.name == "plan" else folder


def problems(found: Sequence[Finding]) -> tuple[Any, ...]:
    """In file order, one for each place and path."""
    first: dict[tuple[Place, str], Finding] = {}
    for each in sorted(found, key=lambda each: each.at):
        first.setdefault((each.at, each.path), each)
    return tuple(each.problem() for each in first.values())


def _check(tree: Node, workspace: Path) -> tuple[Plan | None, list[Finding]]:
    plan, found = checked(tree, Plan)
    parts = _right_parts(tree, plan)
    found += [finding(tree, *broken) for broken in broken_rules(parts, workspace)]
    found += code_findings(tree, Plan, workspace)
    return plan, found


_STUB: dict[str, Any] = {
    "federation": "stub",
    "rounds": 1,
    "collaborators": ["stub"],
    "task_runner": {"name": "src.stub:Stub"},
    "data_loader": {"name": "src.stub:Stub"},
}


def _right_parts(tree: Node, plan: Plan | None) -> dict[str, Any]:
    """The top-level parts that are right by themselves, so that rules can speak of them even
    when others are wrong."""
    if plan is not None:
        return dict(plan)
    assert isinstance(tree.value, dict)
    right: dict[str, Node] = {}
    for key, node in tree.value.items():
        if key in Plan.model_fields:
            stub = {name: _node(value, tree.at) for name, value in _STUB.items() if name != key}
            if checked(Node({**stub, key: node}, tree.at), Plan)[0] is not None:
                right[key] = node
    stub = {name: _node(value, tree.at) for name, value in _STUB.items()}
    whole, _ = checked(Node({**stub, **right}, tree.at), Plan)
    wrong = (tree.value.keys() - right.keys()) | (_STUB.keys() - right.keys())
    return {key: value for key, value in dict(whole or {}).items() if key not in wrong}


def _node(value: Any, at: Place) -> Node:
    if isinstance(value, dict):
        return Node({key: _node(child, at) for key, child in value.items()}, at)
    if isinstance(value, list):
        return Node([_node(child, at) for child in value], at)
    return Node(value, at)


# -- reading --------------------------------------------------------------------------------------


def read_tree(
    path: Path, overrides: Sequence[str], workspace: Path
) -> tuple[Node | None, list[Finding]]:
    """The normalised tree of a plan file, merged; None where it cannot be had."""
    tree, found = _file(path, workspace, ())
    for index, text in enumerate(overrides):
        over, more = override(text, 1000 + index)
        found += more
        if tree is not None and over is not None:
            tree = merged(tree, normalised(over, Plan, tree))
    return tree, found


def read_file(path: Path, workspace: Path, rank: int = 0) -> tuple[Node | None, list[Finding]]:
    """The tree of one YAML file, which must hold a mapping."""
    name = shown_path(path, workspace)
    start = Place(rank, 0, 0, name)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        return None, [Finding(start, "P16", "", f"cannot be read: {error.strerror}")]
    node, found = parse(data, name, rank)
    if node is not None and not isinstance(node.value, dict):
        message = f"expected a mapping (key: value), got {shown(node.value)}"
        return None, [*found, Finding(node.at, "P07", "", message)]
    return node, found


def shown_path(path: Path, workspace: Path) -> str:
    """The path as messages show it: from the workspace, if it is in there."""
    try:
        return path.resolve().relative_to(workspace.resolve()).as_posix()
    except ValueError:
        return f"plans/{path.name}" if path.parent == shipped("plans") else str(path)


def _file(
    path: Path, workspace: Path, chain: tuple[Path, ...]
) -> tuple[Node | None, list[Finding]]:
    node, found = read_file(path, workspace, len(chain))
    if node is None or not isinstance(node.value, dict):
        return None, found
    values = dict(node.value)
    below = values.pop("extends", None)
    tree = normalised(Node(values, node.at, node.keys), Plan)
    if below is None:
        return tree, found
    target = _target(below, path, workspace, (*chain, path.resolve()))
    if isinstance(target, Finding):
        return tree, [*found, target]
    base, more = _file(target, workspace, (*chain, path.resolve()))
    return (tree if base is None else merged(base, tree)), [*found, *more]


def _target(below: Node, path: Path, workspace: Path, chain: tuple[Path, ...]) -> Path | Finding:
    """The file that `extends` names, or what is wrong with it."""
    name = below.value

    def wrong(message: str) -> Finding:
        return Finding(below.at, "P16", "extends", message)

    if not isinstance(name, str) or not name or len(name) > 200:
        return wrong(f"expected the name of a ready plan, or a path, got {shown(name)}")
    if "/" not in name and not name.endswith((".yaml", ".yml")):
        ready = ready_plans()
        if name not in ready:
            listed = ", ".join(sorted(ready)) or "none"
            return wrong(f"no ready plan {shown(name)}. {suggest(name, ready)}there are: {listed}")
        target = ready[name]
    else:
        target = path.parent / name
        if not target.resolve().is_relative_to(workspace.resolve()):
            return wrong(f"expected a file inside the workspace, got {shown(name)}")
        if not target.is_file():
            return wrong(f"there is no file {name} (looked at {shown_path(target, workspace)})")
    if target.resolve() in chain:
        return wrong(f"{name} extends itself: {' -> '.join(each.name for each in chain)}")
    if len(chain) > MAX_EXTENDS:
        return wrong(f"expected at most {MAX_EXTENDS} plans to extend each other")
    return target


def ready_plans() -> dict[str, Path]:
    """The plans that ship, by name."""
    return {file.stem: file for file in shipped("plans").glob("*.yaml")}
