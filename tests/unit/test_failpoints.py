"""Each failpoint is at one place, known, and has its case; without the variable they do nothing."""

import ast
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import openfed
from openfed.errors import OpenFedError
from openfed.failpoints import POINTS, VARIABLE, arm
from openfed.launch.processes import Kind, NodeSpec, environment
from openfed.tasks.child import ENVIRONMENT
from tests.e2e.crash import CASES

PACKAGE = Path(openfed.__file__).parent

PASS = """
import os
from openfed.failpoints import arm, failpoint
arm(os.environ)
for number in range(3):
    failpoint("spool.block")
    print(number, flush=True)
    failpoint("spool.synced")
"""


DURABLE = ("os.fsync", "os.replace", "os.rename", "os.link", "sync_folder", ".commit")
"""What makes something durable, or puts it in place; and SQL that says `commit`."""


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def placed():
    """The argument of every call of `failpoint` in the package, as it is written."""
    for path in PACKAGE.rglob("*.py"):
        for call in calls(ast.parse(path.read_text())):
            if ast.unparse(call.func).endswith("failpoint"):
                (argument,) = call.args
                yield ast.literal_eval(argument)


def unguarded(source):
    """Functions that make something durable and have no point."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            called = {ast.unparse(call.func) for call in calls(function)}
            said = {node.value for node in ast.walk(function) if isinstance(node, ast.Constant)}
            durable = any(name.endswith(DURABLE) for name in called) or "commit" in said
            if durable and "failpoint" not in called:
                yield function.name


def test_every_point_is_at_one_place_of_the_code():
    assert Counter(placed()) == dict.fromkeys(POINTS, 1)


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    os.fsync(file)",
        "def f():\n    with x:\n        os.replace(a, b)",
        "async def f():\n    self._db.execute('commit')",
        "def f():\n    self._db.commit()",
    ],
)
def test_a_place_without_a_point_would_be_found(source):
    assert list(unguarded(source)) == ["f"]


@pytest.mark.parametrize("part", ["files.py", "store", "node"])
def test_what_a_run_makes_durable_has_a_point_beside_it(part):
    paths = [PACKAGE / part] if part.endswith(".py") else (PACKAGE / part).glob("*.py")
    found = {name for path in paths for name in unguarded(path.read_text())}
    assert found <= {"sync_folder"}  # those who call it have points around it


def test_every_point_has_a_fault_case():
    assert {point for points in CASES.values() for point in points} == POINTS


def passing(told=None) -> subprocess.CompletedProcess:
    variables = {} if told is None else {VARIABLE: told}
    words = [sys.executable, "-c", PASS]
    return subprocess.run(words, env=variables, capture_output=True, text=True, timeout=60)


def test_the_process_dies_at_the_passage_that_was_asked_for_and_says_so():
    done = passing("spool.synced=kill@2;spool.block=note")
    assert done.returncode == -signal.SIGKILL and done.stdout == "0\n1\n"
    first, *said = done.stderr.splitlines()
    assert first.startswith(f"{VARIABLE} is set: this process is made to fail")
    assert [(words[1], words[2], words[-1]) for words in map(str.split, said)] == [
        ("spool.block", "passed", "1"),
        ("spool.block", "passed", "2"),
        ("spool.synced", "killed", "2"),
    ]


@pytest.mark.parametrize("told", [None, ""])
def test_nothing_happens_and_nothing_is_said_where_it_is_not_set(told):
    done = passing(told)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n1\n2\n", "")


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("spool.sync=kill@1", "no failpoint 'spool.sync'"),
        ("spool.synced", "spool.synced: expected note or kill@N, got ''"),
        ("spool.synced=kill@0", "got 'kill@0'"),
        ("spool.synced=kill", "got 'kill'"),
        ("spool.synced=hang@1", "got 'hang@1'"),
        ("spool.synced=kill@1;", "no failpoint ''"),
    ],
)
def test_what_cannot_be_understood_is_refused(told, found):
    with pytest.raises(OpenFedError, match=re.escape(found)) as refused:
        arm({VARIABLE: told})
    assert refused.value.code == "S14"


@pytest.mark.parametrize(
    "words",
    [
        "launch.node aggregator --workspace w --run r --listen h:1",
        "tasks.child --exchange e",
    ],
)
def test_a_node_that_cannot_understand_it_does_not_start(tmp_path, words):
    module, *arguments = words.split()
    with subprocess.Popen(
        [sys.executable, "-m", f"openfed.{module}", *arguments],
        env={VARIABLE: "spool=kill"},
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as node:
        assert node.stderr
        said = node.stderr.read()
    assert node.returncode == 1 and "S14" in said and "no failpoint 'spool'" in said
    assert "Traceback" not in said and not list(tmp_path.iterdir())


def test_what_fx_starts_does_not_get_it_nor_does_the_users_code(tmp_path):
    spec = NodeSpec("mill", Kind.AGENT, "openfed.launch.node", (), tmp_path, tmp_path / "log")
    assert VARIABLE not in environment({VARIABLE: "spool.synced=kill@1", "PATH": "/bin"}, spec)
    assert VARIABLE not in ENVIRONMENT
