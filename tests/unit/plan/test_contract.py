"""The data contract in a plan: its places, its canonical form, its digest, its words."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from openfed.data.column import Column
from openfed.data.contract import Contract, contract_of
from openfed.errors import PlanError
from openfed.plan.digest import digest_of
from openfed.plan.explain import explain
from openfed.plan.schema import Plan, canonical, json_schema

jsonschema = pytest.importorskip("jsonschema")

TEXT = """\
data_contract:
  columns:
    - {name: age, kind: integer, range: [0, 120.0]}
    - {name: bmi, kind: number, range: [10.5, null], missing: true}
    - name: sex
      kind: text
      values: [f, m]
    - {name: ill, kind: integer}
  target: ill
  classes: [0, 1]
  samples: 50
"""
FIRST = 31
"""The line of the plan on which it begins."""

Load = Callable[..., Plan]


def test_the_plan_holds_it_in_canonical_form(load: Load, plan_text: str) -> None:
    plan = load(plan_text + TEXT)
    open_ = {"missing": False, "range": None, "values": None}
    assert canonical(plan)["data_contract"] == {
        "columns": [
            {**open_, "name": "age", "kind": "integer", "range": [0, 120]},
            {**open_, "name": "bmi", "kind": "number", "range": [10.5, None], "missing": True},
            {**open_, "name": "sex", "kind": "text", "values": ["f", "m"]},
            {**open_, "name": "ill", "kind": "integer"},
        ],
        "target": "ill",
        "shape": None,
        "dtype": None,
        "classes": [0, 1],
        "samples": 50,
    }
    assert Plan.model_validate(canonical(plan)) == plan
    assert contract_of(plan.data_contract).columns[1] == Column("bmi", "number", True, 10.5)
    assert canonical(load(plan_text))["data_contract"] is None


def test_it_is_in_the_digest_however_it_is_written(load: Load, plan_text: str) -> None:
    def digest(text: str, *overrides: str) -> str:
        return digest_of(canonical(load(plan_text + text, *overrides)))

    full = TEXT.replace("samples: 50", "shape: null\n  samples: 50").replace("120.0", "120")
    assert digest(TEXT) == digest(full)
    assert digest(TEXT) != digest("")
    assert digest(TEXT, "data_contract.samples=51") != digest(TEXT)
    assert digest(TEXT) != digest(TEXT.replace("10.5", "10.6"))


BAD = (
    ("samples: 50", "samples: 0", "P26", 11, ".samples", "1 or more"),
    ("samples: 50", "sample: 50", "P26", 11, ".sample", "unknown key; known: columns,"),
    ("bmi, kind: number", "bmi, kind: float", "P26", 4, ".columns[1].kind", "one of number,"),
    ("bmi, kind: number", "bmi, knd: number", "P26", 4, ".columns[1].kind", "one of number,"),
    ("values: [f, m]", "values: [f, 1]", "P26", 7, ".columns[2].values", "each once"),
    ("values: [f, m]", "range: [1, 2]", "P27", 7, ".columns[2].range", "only of numbers"),
    ("[10.5, null]", "[2, 1]", "P27", 4, ".columns[1].range", "begins after its end"),
    ("target: ill", "target: sick", "P27", 9, ".target", "'bmi', 'sex', 'ill'"),
    ("samples: 50", "shape: [28, 28]", "P27", 11, ".shape", "not of tables"),
    ("name: age", f"name: {'a' * 201}", "P26", 3, ".columns[0].name", "at most 200"),
    ("name: age", "name: {a.b: 1}", "P26", 3, ".columns[0].name", "the column's name"),
)


@pytest.mark.parametrize(("old", "new", "code", "line", "path", "message"), BAD)
def test_what_is_wrong_is_said_with_its_line(
    load: Load, plan_text: str, old: str, new: str, code: str, line: int, path: str, message: str
) -> None:
    assert plan_text.count("\n") == FIRST - 1 and TEXT.count(old) == 1
    with pytest.raises(PlanError) as caught:
        load(plan_text + TEXT.replace(old, new))
    found = [(p.code, p.where.split(":")[1], p.path) for p in caught.value.problems]
    assert (code, str(FIRST + line - 1), f"data_contract{path}") in found
    assert any(message in problem.message for problem in caught.value.problems)


def test_all_of_it_is_said_at_once_with_the_rest_of_the_plan(load: Load, plan_text: str) -> None:
    wrong = TEXT.replace("50", "0").replace("kind: text", "kind: word")
    with pytest.raises(PlanError) as caught:
        load(plan_text.replace("rounds: 10", "rounds: 0") + wrong)
    assert [p.code for p in caught.value.problems] == ["P08", "P26", "P26"]


def test_of_another_form_altogether(load: Load, plan_text: str) -> None:
    with pytest.raises(PlanError, match=f":{FIRST}:16  P26  data_contract  expected a mapping"):
        load(plan_text + "data_contract: [age]\n")


GOOD = (
    TEXT,
    "data_contract: null\n",
    "data_contract: {}\n",
    "data_contract: {shape: [null, 3], dtype: float32, classes: [cat, dog], samples: 9}\n",
    "data_contract: {columns: null, shape: [], classes: null}\n",
)


@pytest.mark.parametrize("text", GOOD)
def test_schema_and_loader_take_it(load: Load, plan_text: str, text: str) -> None:
    load(plan_text + text)
    jsonschema.validate(yaml.safe_load(plan_text + text), json_schema())


@pytest.mark.parametrize("case", [case for case in BAD if case[2] == "P26"])
def test_the_schema_refuses_the_form_that_the_loader_refuses(plan_text: str, case: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            yaml.safe_load(plan_text + TEXT.replace(case[0], case[1])), json_schema()
        )


def test_an_empty_one_demands_a_sample(load: Load, plan_text: str) -> None:
    assert contract_of(load(plan_text + GOOD[2]).data_contract) == Contract(samples=1)


def test_it_is_explained(load: Load, plan_text: str) -> None:
    said = explain(load(plan_text + TEXT))
    assert said[said.index("What every") : said.index("\n\nWhat happens")] == (
        "What every site's data have to be\n"
        "  At least 50 samples\n"
        "  A table with the columns (it may have others)\n"
        "    - age: integer from 0 to 120\n"
        "    - bmi: number from 10.5, may be missing\n"
        "    - sex: text, one of f, m\n"
        "    - ill: integer\n"
        "  Nothing but the classes 0, 1 in the column ill\n"
        "  Each site checks this by itself before the first round. Where it does not hold, the\n"
        "      aggregator is told which of these rules, never a value or a number of samples"
    )
    images = explain(load(plan_text + GOOD[3]))
    assert "Arrays: each sample any length x 3\n  Numbers stored as float32\n" in images
    assert "Nothing but the classes cat, dog as targets" in images
    assert "Each sample one number" not in images
    assert "What every site" not in explain(load(plan_text))
