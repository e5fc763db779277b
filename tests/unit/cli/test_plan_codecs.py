"""`fx plan` and a plan's codecs: what is told where."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from openfed.cli.main import main
from openfed.workspace import create

Call = Callable[..., tuple[int, str, str]]

MODEL = """
import numpy as np

def train(record, data, settings):
    return record, 1, {}

class Points:
    def __init__(self, source):
        pass
"""

PLAN = """\
federation: line
rounds: 2
collaborators: [mill, farm]
tasks: [train]
task_runner:
  numpy: {train: "src.big:train", shapes: {w: [400, 100], b: [10]}}
data_loader: "src.big:Points"
compression_pipeline:
  uplink:
    feedback: true
    codecs: [rotate, {lloyd: {bits: 1}}]
    except: [{b: []}]
"""


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Call:
    """Runs `fx` in this process, in a workspace: (exit code, stdout, stderr)."""
    create(tmp_path / "w", "numpy_linear")
    monkeypatch.chdir(tmp_path / "w")
    Path("src/big.py").write_text(MODEL)
    Path("plan/plan.yaml").write_text(PLAN)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        captured = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, captured.out, captured.err

    return call


def write(old: str, new: str) -> None:
    text = Path("plan/plan.yaml").read_text()
    assert old in text
    Path("plan/plan.yaml").write_text(text.replace(old, new))


def test_a_stage_that_saves_nothing_is_named_with_its_line(call: Call) -> None:
    assert call("plan", "check")[0] == 0
    write("[rotate, {lloyd: {bits: 1}}]", "[rotate, {lloyd: {bits: 8}}, zstd]")
    code, out, err = call("plan", "check")
    assert (code, out) == (2, "")
    assert "plan/plan.yaml:11:42  P23  compression_pipeline.uplink.codecs[2]" in err
    assert "zstd saves nothing" in err


def test_the_model_is_looked_at_where_it_is_made(call: Call) -> None:
    write("except: [{b: []}]", "except: [{c: []}]")
    assert call("plan", "check")[0] == 0, "the model is not known yet"
    code, _, err = call("plan", "initialize")
    assert code == 2 and "Traceback" not in err
    assert "plan/plan.yaml:12:18  K11  compression_pipeline.uplink.except[0].c" in err
    assert "'c' matches no entry of the model, which has b, w" in err
    assert not Path("plan/plan.lock").exists()


def test_a_plan_check_knows_the_model_of_the_lock(call: Call) -> None:
    assert call("plan", "initialize")[0] == 0
    assert json.loads(Path("plan/plan.lock").read_text())["codecs"] == {"lloyd": 1, "rotate": 1}
    override = "compression_pipeline.uplink.except=[{'w*': []}, {c: []}]"
    code, _, err = call("plan", "check", "-s", override)
    assert code == 2
    assert f"-s {override}  K11  compression_pipeline.uplink.except[1].c" in err
    assert call("plan", "check", "-s", override, "-s", "task_runner.shapes={v: [3]}")[0] == 0
    Path("src/big.py").write_text(MODEL + "\n")
    assert call("plan", "check", "-s", override)[0] == 0, "other code may make another model"


def test_what_may_not_be_meant_is_noted(call: Call) -> None:
    code, out, err = call("plan", "check", "-s", "cohort.fraction=0.5")
    assert code == 0 and "ok, 2 rounds" in out
    assert err.startswith("note: compression_pipeline.uplink.feedback and not every site")
    assert call("plan", "check")[2] == ""


def test_an_explanation_says_how_much_is_left(call: Call) -> None:
    code, out, _ = call("plan", "explain")
    said = " ".join(out.split())
    assert code == 0
    assert "1 bit a number (Lloyd-Max levels); something is lost; about 3.1% of its size" in said
    assert call("plan", "initialize")[0] == 0
    # of 320,080 bytes (float64) 80 stay, and 320,000 become 5,000 and a scale
    assert "about 1.6% of its size" in " ".join(call("plan", "explain")[1].split())
