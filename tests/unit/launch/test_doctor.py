"""What `fx doctor` reads and says, and what it makes of a trial's workspace."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openfed.errors import CODES, CertificateError, PlanError, Problem, TransportError
from openfed.launch.doctor import examine
from openfed.launch.findings import (
    Level,
    as_told,
    exit_code,
    failed,
    filesystem,
    needed,
    passed,
    shown,
    warned,
    within,
)
from openfed.pki.files import ensure_federation
from openfed.workspace import TEMPLATES, Workspace, create

MOUNTS = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /dev/shm rw - tmpfs tmpfs rw
31 22 0:40 / /home rw,relatime shared:5 master:1 - nfs4 files:/home rw
32 31 0:41 / /home/a\040b rw - xfs /dev/vdb rw
33 22 0:42 / /data rw - xfs /dev/vdc rw
34 33 0:43 / /data rw - fuse.sshfs me@there: rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/work/w", "ext4"),
        ("/", "ext4"),
        ("/dev/shm/w", "tmpfs"),
        ("/dev/shmoo/w", "ext4"),
        ("/home/me/w", "nfs4"),
        ("/home", "nfs4"),
        ("/home/a b/w", "xfs"),
        ("/data/w", "fuse.sshfs"),
    ],
)
def test_a_path_is_on_the_innermost_mount_and_of_two_on_the_later(path, kind):
    assert filesystem(MOUNTS, path) == kind


def test_without_a_list_of_mounts_nothing_is_said():
    assert filesystem("", "/work") == ""


@pytest.mark.parametrize(
    ("version", "bounds", "fits"),
    [
        ("8.1", "<9,>=8.1", True),
        ("8.1.0", "==8.1", True),
        ("8.10", ">=8.9", True),
        ("9.0", "<9,>=8.1", False),
        ("9.0rc1", "<9", False),
        ("8.0.9", ">=8.1", False),
        ("2.1", "!=2.1", False),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_number_by_number(version, bounds, fits):
    assert within(version, bounds) is fits


def test_what_an_extra_needs_is_not_looked_for():
    assert needed("ml-dtypes<1,>=0.5") == ("ml-dtypes", "<1,>=0.5")
    assert needed("torch>=2.6; extra == 'torch'") is None


def test_the_first_failure_gives_the_exit_code_and_warnings_none():
    late = TransportError("T05", "nothing listens")
    early = CertificateError("C05", "expired")
    assert exit_code([passed("a", "b"), warned("c", "U64", "d")]) == 0
    assert exit_code([*failed("a", early), *failed("b", late)]) == 3
    assert exit_code([warned("c", "U64", "d"), *failed("b", late), *failed("a", early)]) == 4


def test_each_problem_of_a_plan_is_a_failure_of_its_own():
    problems = (Problem("P01", "plan.yaml:1:1", "x", "no"), Problem("P08", "", "y", "too many"))
    found = list(failed("plan", PlanError(problems)))
    assert [each.code for each in found] == ["P01", "P08"]
    assert [each.found for each in found] == ["plan.yaml:1:1  x  no", "y  too many"]
    assert [each.remedy for each in found] == [CODES["P01"].remedy, CODES["P08"].remedy]
    assert as_told(found)["exit_code"] == 2


def test_a_line_says_what_and_the_next_one_what_to_do():
    assert list(shown(passed("disk", "is ext4"))) == ["PASS  disk: is ext4"]
    lines = list(shown(warned("disk", "U66", "is tmpfs", "Move it.")))
    assert lines == ["WARN  disk: U66  is tmpfs", "      -> Move it."]


def test_the_table_of_faults_has_codes_that_there_are():
    table = (Path(__file__).parents[3] / "docs" / "troubleshooting.md").read_text()
    told = set(re.findall(r"\b[A-Z][0-9]{2}\b", table))
    assert len(told) > 40 and told <= set(CODES)


# -- a trial, where everybody is in one workspace --------------------------------------------------


@pytest.fixture
def trial(tmp_path, monkeypatch) -> Workspace:
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    create(tmp_path / "w", "numpy_linear")
    return Workspace(tmp_path / "w")


@pytest.fixture(scope="module")
def initialized(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("made") / "w"
    create(root, "numpy_linear")
    fx = [sys.executable, "-m", "openfed", "plan", "initialize"]
    subprocess.run(fx, cwd=root, check=True, capture_output=True)
    ensure_federation(root / "cert", "line", ("localhost",), ("mill", "farm"), time.time())
    return root


def test_in_a_new_workspace_only_what_fx_run_makes_is_missing(trial):
    found = list(examine(trial))
    assert {each.code for each in found if each.level is not Level.PASS} == {"P19", "C12"}
    assert all("fx run" in each.remedy for each in found if each.level is not Level.PASS)
    assert exit_code(found) == 0
    assert sorted(path.name for path in trial.root.iterdir()) == sorted(
        path.name for path in (TEMPLATES / "numpy_linear").iterdir()
    )


def test_a_trial_that_can_run_passes_for_everybody(initialized, trial):
    shutil.rmtree(trial.root)
    shutil.copytree(initialized, trial.root)
    found = list(examine(trial))
    assert {each.level for each in found} == {Level.PASS}
    nodes = {each.what for each in found if each.what.startswith("certificate")}
    assert nodes == {f"certificate of {name}" for name in ("aggregator", "mill", "farm")}


def test_a_site_that_local_yaml_lacks_is_told(initialized, trial):
    shutil.rmtree(trial.root)
    shutil.copytree(initialized, trial.root)
    trial.local.write_text("sites: {mill: data/mill.csv}\n")
    wrong = [each for each in examine(trial) if each.level is not Level.PASS]
    assert [each.code for each in wrong] == ["P21"] and "farm" in wrong[0].found


def test_data_that_is_no_path_is_left_to_the_loader(trial):
    trial.local.write_text("sites: {mill: {shard: 1}, farm: 's3://bucket/farm'}\n")
    told = {each.what: each for each in examine(trial)}
    for site in ("mill", "farm"):
        finding = told[f"data of {site}"]
        assert (finding.level, "no path" in finding.found) == (Level.PASS, True)
