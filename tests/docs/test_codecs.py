"""What docs/codecs.md says is true."""

import re
from pathlib import Path

import pytest
import yaml

from openfed.codec.advice import idle_stages, ratio
from openfed.plan.choices import CODECS
from openfed.plan.load import load_plan, ready_plans
from openfed.plan.schema import OPENFL, Plan
from openfed.tensors.record import Spec
from openfed.workspace import create

TEXT = (Path(__file__).parents[2] / "docs" / "codecs.md").read_text()
SNIPPETS = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)


SHAPES = {
    "body.0.bias": (16,),
    "body.0.weight": (16, 1, 3, 3),
    "body.3.bias": (32,),
    "body.3.weight": (32, 16, 3, 3),
    "head.bias": (10,),
    "head.weight": (10, 128),
}
DIGITS = tuple(Spec(name, "float32", shape) for name, shape in SHAPES.items())
"""The model of the template that a newcomer tries the snippets on."""


def rows(title: str) -> dict[str, list[str]]:
    """The table whose head begins with `title`: first cell -> the others."""
    table = TEXT[TEXT.index(f"| {title} |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    return {first.strip("| "): rest for first, *rest in cells}


def loaded(folder: Path, snippet: str) -> Plan:
    create(folder, "torch_digits")
    plan = folder / "plan" / "plan.yaml"
    plan.write_text(plan.read_text() + snippet)
    return load_plan(plan)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_every_snippet_loads_and_each_of_its_stages_saves_something(
    tmp_path: Path, snippet: str
) -> None:
    pipeline = loaded(tmp_path / "w", snippet).compression_pipeline
    assert list(idle_stages(pipeline)) == []
    assert list(idle_stages(pipeline, DIGITS)) == []


def test_every_codec_and_setting_has_its_row() -> None:
    assert [name.strip("`") for name in rows("codec | what it does")] == list(CODECS)
    told = {
        name: set(re.findall(r"`(\w+)`:", cells[0]))
        for names, cells in rows("codec | settings").items()
        for name in re.findall(r"\w+", names)
    }
    wanted = {name: set(model.model_fields) for name, model in CODECS.items()}
    assert told == {name: keys for name, keys in wanted.items() if keys}


def test_the_ready_plans_are_the_snippets() -> None:
    named = re.findall(r"`extends: (\w+)`.*?```yaml\n(.*?)```", TEXT, re.S)
    assert [name for name, _ in named] == ["lossless", "compressed_8x", "compressed_30x"]
    for name, snippet in named:
        assert yaml.safe_load(ready_plans()[name].read_text()) == yaml.safe_load(snippet)


@pytest.mark.parametrize(
    ("name", "times"), [("lossless", 1.15), ("compressed_8x", 12), ("compressed_30x", 64)]
)
def test_the_ready_plans_save_what_is_said(tmp_path: Path, name: str, times: float) -> None:
    pipeline = loaded(tmp_path / "w", f"extends: {name}\n").compression_pipeline
    for way in (pipeline.uplink, pipeline.downlink):
        assert times < 1 / ratio(way) < times * 1.05


def test_the_pipelines_of_openfl_are_those_that_the_plan_answers() -> None:
    table = rows("OpenFL 1.9")
    assert {name.strip("`") for name in table} == set(OPENFL)
    for name, instead in OPENFL.items():
        (here,) = table[f"`{name}`"]
        assert instead.startswith("remove it") or here.strip("|` ") in instead


def test_measured_tables_have_their_place() -> None:
    for title in ("Accuracy", "Speed"):
        assert f"\n## {title}\n" in TEXT
