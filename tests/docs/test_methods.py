"""What docs/methods.md says: its plan lines load, its tests are there, no method is missing."""

import re
from pathlib import Path

import pytest

from openfed.plan.choices import STRATEGIES, UNWEIGHTED
from openfed.plan.load import load_plan
from openfed.workspace import create

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "methods.md").read_text()
HEAD = "| method | paper | plan lines | what travels | what it costs | test that holds it |"


def rows() -> dict[str, list[str]]:
    """Method -> the other cells, of every table."""
    found = {}
    for table in TEXT.split(HEAD)[1:]:
        for line in table.split("\n\n")[0].splitlines()[2:]:
            method, *rest = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert method.strip("` ") not in found and len(rest) == 5, method
            found[method.strip("` ")] = rest
    return found


ROWS = rows()


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_strategy_has_its_row() -> None:
    assert STRATEGIES.keys() <= ROWS.keys()


@pytest.mark.parametrize("method", ROWS)
def test_the_plan_lines_of_a_method_load(tmp_path: Path, method: str) -> None:
    create(tmp_path / "w", "torch_digits")
    lines = [span.replace(": ", "=", 1) for span in spans(ROWS[method][1])]
    assert lines
    lines.append("collaborators=[a, b, c, d, e, f, g]")
    plan = load_plan(tmp_path / "w" / "plan" / "plan.yaml", lines)
    if method in STRATEGIES:
        assert plan.strategy.name == method


@pytest.mark.parametrize("method", ROWS)
def test_the_tests_of_a_method_are_there(method: str) -> None:
    named = spans(ROWS[method][4])
    assert named
    for test in named:
        path, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.M), test


def test_the_rules_without_weights_are_those_of_the_plan() -> None:
    (told,) = re.findall(r"evidence; (.*?) look at no weights", TEXT.replace("\n", " "))
    assert set(spans(told)) == UNWEIGHTED
