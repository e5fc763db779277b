"""What docs/methods.md says of exact methods on sums is true."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from openfed.exact.base import done, total
from openfed.exact.methods import make_method, sums_signature
from openfed.plan.choices import FLOWS
from openfed.plan.load import load_plan
from openfed.workspace import create

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "methods.md").read_text().split("## Exact methods on sums")[1]
TEXT = TEXT.split("\n## ")[0]


def rows(head: str) -> dict[str, list[str]]:
    table = TEXT[TEXT.index(head) :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    return {first.strip("` "): rest for first, *rest in cells}


METHODS = rows("| method | source |")


def code(cell: str) -> str:
    return str(re.findall(r"`([^`]+)`", cell)[-1])


def test_every_method_has_its_rows() -> None:
    assert list(METHODS) == list(rows("| method | entries")) and METHODS.keys() == FLOWS.keys()


def test_the_plan_loads(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
    create(tmp_path / "w", "tabular_statistics")
    path = tmp_path / "w" / "plan" / "plan.yaml"
    path.write_text(snippet.replace('"src.data:Tumours"', '{"src.data:Tumours": {columns: 10}}'))
    assert load_plan(path).flow is not None


def table_for(name: str, features: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = rng.normal(size=(60, features)) + y[:, None]
    if name in ("id3", "confusion", "kaplan_meier"):
        x = (x > 0).astype(float)
    return (1 / (1 + np.exp(-x)) if name == "scores" else x), y.astype(float)


@pytest.mark.parametrize("name", METHODS)
def test_the_line_runs_and_so_much_travels(tmp_path: Path, name: str) -> None:
    _, line, travels, rounds, _ = METHODS[name]
    flow = yaml.safe_load(code(line))["flow"]
    create(tmp_path / "w", "tabular_statistics")
    plan = load_plan(tmp_path / "w" / "plan" / "plan.yaml", [f"flow={code(line)[6:]}"])
    assert plan.flow is not None and list(flow) == [name]
    method = make_method(plan.flow.name, plan.flow.settings)
    x, y = table_for(name, method.features)
    none = name == "kaplan_meier"
    state, sizes = method.start(), []
    while not done(state):
        sizes.append(sum(spec.count for spec in sums_signature(method, state)))
        state = method.step(state, total({"a": method.lift(state, x, None if none else y)}))
    if name != "id3":
        known: dict[str, Any] = {**plan.flow.settings, "o": 1}
        known = {key: len(x) if isinstance(x, list) else x for key, x in known.items()}
        assert max(sizes) == eval(code(travels), {"max": max}, known)  # noqa: S307 (our own file)
    if rounds.isdigit():
        assert len(sizes) == int(rounds)
    (entries,) = rows("| method | entries")[name]
    assert set(re.findall(r"`(\w+)`", entries)) <= state.keys()


def test_the_tests_that_are_named_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    found = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert named and {name for name in named if f"def {name}(" not in found} == set()
