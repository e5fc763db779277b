"""A workspace from OpenFL, imported and run: real processes, certificates, sockets."""

import json
from pathlib import Path

import pytest

from openfed.observe.files import read

STYLE = Path(__file__).parents[1] / "data" / "openfl_style"


@pytest.mark.slow
def test_an_imported_workspace_learns_over_mtls_with_its_code_unchanged(workspace, tmp_path):
    here = workspace.line()
    done = here.fx("workspace", "import-openfl", str(STYLE / "digits"), "--prefix", "../new")
    assert done.returncode == 0, done.stderr
    here.root = tmp_path / "new"
    checked = here.fx("plan", "check")
    assert checked.returncode == 0, checked.stderr
    ran = here.fx("run", "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["status"] == "completed" and told["rounds"] == 4
    rows = read(here.root / "logs" / "metrics.jsonl")
    every = {
        row["model"]: row["value"]
        for row in rows
        if (row["collaborator"], row["task"], row["metric"])
        == ("aggregate", "validate", "accuracy")
    }
    assert every[0] < 0.3 and every[4] > 0.9
    assert told["metrics"]["accuracy"] == every[4]
    for path in (STYLE / "digits" / "src").glob("*.py"):
        assert (here.root / "src" / path.name).read_bytes() == path.read_bytes()
