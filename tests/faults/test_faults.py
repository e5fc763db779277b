"""The runner itself; and runs over bad lines, as root, in network namespaces of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


def run(*words, seconds):
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_run_under_faults_violates_nothing(tmp_path):
    out = tmp_path / "figures.json"
    words = ("--seed", "1", "--minutes", "0.1", "--cohort", "whole", "--out", out)
    told = run("tests.faults", *map(str, words), seconds=480)
    figures = json.loads(out.read_text())
    assert figures["violations"] == 0 and figures["ended"] == {"whole completed": 1}, told
    assert sum(figures["faults"].values()) >= 5, told


LINES = {
    "4 Mbit/s": ("--mbit", "4", "--weights", "250000"),
    "4 Mbit/s, 28 % of the packets lost each way": (
        *("--loss", "28", "--mbit", "4"),
        *("--weights", "1000"),
    ),
}


@root
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("fault", LINES)
def test_ten_rounds_complete_with_default_settings_over(fault):
    told = json.loads(run("tests.faults.lines", *LINES[fault], seconds=1400).splitlines()[-1])
    assert (told["status"], told["rounds"], told["violations"]) == ("completed", 10, [])
    assert bool(told["packets dropped"]) == ("--loss" in LINES[fault])
