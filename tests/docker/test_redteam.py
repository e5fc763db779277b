"""Hostile code in the task container of a real run: every attempt is refused, the run completes and
the other site notices nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.redteam.prey import Prey

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
FX = (sys.executable, "-m", "openfed")

HOSTILE = """

_train, _first = train, []

def train(record, data, settings):
    if not _first:
        import json
        from src import attacks
        _first.append(1)
        print("ATTEMPTS", json.dumps(attacks.attempts(SKIP)), flush=True)
    return _train(record, data, settings)
"""

# Containers have control groups, and no limits of each process.
SKIP = ("larger limits",)
GIB = 1 << 30


def test_nothing_that_a_task_container_tries_gets_anywhere(tmp_path, images):
    root = tmp_path / "w"
    shutil.copytree(ROOT / "workspace_templates" / "numpy_linear", root)
    with (root / "src" / "linear.py").open("a") as code:
        code.write(f"SKIP = {SKIP!r}{HOSTILE}")
    shutil.copy(ROOT / "tests" / "redteam" / "attacks.py", root / "src")
    secrets = ["cert/mill/node.key", "cert/farm/node.key", "cert/authority.pem", "local.yaml"]
    secrets = [str(root / name) for name in secrets] + ["/etc/shadow-", __file__]
    (root / "site.secret").write_text("secret")
    spoils = [str(root / "src" / "linear.py"), "/usr/bin/spoilt", "/opt/openfed/spoilt", str(root)]
    prey = Prey(tmp_path)
    with prey.closing:
        targets = prey.targets(secrets=secrets, spoils=spoils, memory=6 * GIB)
        (root / "src" / "targets.json").write_text(targets)
        done = subprocess.run(
            [*FX, "run", "--launcher", "docker", "-s", "rounds=3"],
            cwd=root, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for site in ("mill", "farm"):  # neither sees what the other has
        (told,) = [
            json.loads(line.partition("ATTEMPTS ")[2])
            for line in (root / "logs" / f"{site}.log").read_text().splitlines()
            if "ATTEMPTS" in line
        ]
        gained = [name for name, got in told.items() if got.startswith("DONE")]
        assert gained == [] and len(told) > 30, (gained, told)
    assert prey.heard == []
    assert os.path.getsize(root / "src" / "linear.py") > 0
