"""User code that fails in every way it can: said by name, and the nodes live."""

import json

import pytest

FAULTS = {
    "raises": (
        "def FAULT(record):\n    return explode()\n"
        "def explode():\n    raise ValueError('no data today')\n",
        ["no data today", "src/linear.py", "explode()"],
    ),
    "returns NaN": (
        "def FAULT(record):\n    record['slope'] = record['slope'] * np.nan\n    return record\n",
        ["slope", "finite"],
    ),
    "returns another shape": (
        "def FAULT(record):\n    record['slope'] = np.zeros(2)\n    return record\n",
        ["slope", "K22"],
    ),
    "exits": ("def FAULT(record):\n    sys.exit(3)\n", ["3", "src/linear.py"]),
    "leaves the process": ("def FAULT(record):\n    os._exit(3)\n", ["K26", "exit code 3"]),
    "is killed": (
        "def FAULT(record):\n    os.kill(os.getpid(), signal.SIGKILL)\n",
        ["K26", "killed by signal 9"],
    ),
    "prints 100 MB": (
        "def FAULT(record):\n    for _ in range(100):\n        print('x' * 1_000_000)\n"
        "    return record\n",
        ["K06", "printed"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_task_is_named_and_the_run_ends_failed(workspace, fault):
    code, expected = FAULTS[fault]
    here = workspace.line(fault=code, port=0)
    here.go()
    ran = here.fx("run", "--json")
    assert ran.returncode == 5 or ran.returncode == 1, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert result["status"] == "failed"
    assert "mill: K" in result["reason"]
    for part in ("mill", *expected):
        assert part in ran.stderr
    assert "round 1/5" in ran.stderr
    assert ran.stderr.count("Traceback") <= 1
    assert not here.processes()
    size = sum(path.stat().st_size for path in (here.root / "logs").iterdir())
    assert size < 40_000_000


def test_the_run_goes_on_without_the_failing_site_if_the_quorum_holds(workspace):
    code, _ = FAULTS["is killed"]
    here = workspace.line(fault=code, port=0, more="cohort: {quorum: 1, deadline: 60s}")
    here.go()
    ran = here.fx("run", "--json")
    assert ran.returncode == 0, ran.stderr
    closed = [e for e in here.events("ask.closed") if e["task"] == "train"]
    assert [e["accepted"] for e in closed] == [["farm", "mill"], ["farm"]] + [["farm", "mill"]] * 3
