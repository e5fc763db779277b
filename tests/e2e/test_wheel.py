"""The built wheel, alone in an empty environment: no checkout, no extras, no torch."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EMPTY = {"PATH": os.environ["PATH"]}


def run(*command: object, cwd: Path, **more: str) -> str:
    """Standard output of a command that must succeed."""
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**EMPTY, **pip, "HOME": str(cwd), **more},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=ROOT)
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_brings_templates_plans_and_profiles_and_never_a_key(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for template in ("numpy_linear", "sklearn_breast_cancer", "tabular_statistics", "torch_digits"):
        assert f"openfed/_workspace_templates/{template}/plan/plan.yaml" in names
    assert any(name.startswith("openfed/_certs/") for name in names)
    assert "openfed/py.typed" in names
    strange = [name for name in names if name.endswith((".key", ".pem", ".pyc", "plan.lock"))]
    assert strange == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_alone_creates_a_workspace_and_runs_it(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    fx = tmp_path / "venv" / "bin" / "fx"
    run(fx, "workspace", "create", "--prefix", "w", "--template", "numpy_linear", cwd=tmp_path)
    told = json.loads(run(fx, "run", "--json", cwd=tmp_path / "w").splitlines()[-1])
    assert told["status"] == "completed" and told["metrics"]["rmse"] < 0.2
    load = "import sys, safetensors.numpy as s; print(len(s.load_file(sys.argv[1])))"
    alone = run(python, "-I", "-c", load, told["model"]["path"], cwd=tmp_path)
    assert int(alone) >= 1
    listed = run(python, "-m", "pip", "list", "--format", "freeze", cwd=tmp_path)
    assert "torch" not in listed and "scikit-learn" not in listed
