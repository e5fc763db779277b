"""User code that fails in every way it can: said by name, and the nodes live."""

import re

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
        "def FAULT(record):\n    doomed = Path('doomed')\n"
        "    doomed.unlink() if doomed.exists() else doomed.touch()\n"  # once more, and no more
        "    os.kill(os.getpid(), signal.SIGKILL)\n",
        ["K26", "killed by signal 9"],
    ),
    "prints 100 MB": (
        "def FAULT(record):\n    for _ in range(100):\n        print('x' * 1_000_000)\n"
        "    return record\n",
        ["K06", "printed"],
    ),
}


EVERYDAY = ("raises", "is killed", "prints 100 MB")
CASES = [pytest.param(f, marks=() if f in EVERYDAY else pytest.mark.slow) for f in FAULTS]


@pytest.mark.parametrize("fault", CASES)
def test_a_failing_task_is_named_and_the_run_ends_failed(workspace, fault):
    code, expected = FAULTS[fault]
    here = workspace.line(fault=code)
    here.go()
    ran = here.fx("run")
    assert ran.returncode == 5, ran.stderr
    for part in ("round 1/5", "round 2  train  mill FAILED  K", *expected):
        assert part in ran.stderr
    why = ran.stdout.splitlines()[0]
    assert why.startswith("failed after 1 round: ") and "mill: K" in why
    assert f"  logs      {here.root / 'logs'}\n" in ran.stdout
    (ended,) = here.events("run.ended")
    assert ended["status"] == "failed" and ended["reason"] in why
    said = ran.stdout + ran.stderr
    assert said.count("Traceback") <= 1, "the user's own, no other"
    assert not re.search(r"openfed/\w+/\w+\.py", said), "no line of ours"
    assert not here.processes()
    size = sum(path.stat().st_size for path in (here.root / "logs").iterdir())
    assert size < 40_000_000


def test_the_run_goes_on_without_the_failing_site_if_the_quorum_holds(workspace):
    code, _ = FAULTS["is killed"]
    here = workspace.line(fault=code, more="cohort: {quorum: 1, deadline: 60s}")
    here.go()
    ran = here.fx("run", "--json")
    assert ran.returncode == 0, ran.stderr
    closed = [e for e in here.events("ask.closed") if e["task"] == "train"]
    assert [e["accepted"] for e in closed] == [["farm", "mill"], ["farm"]] + [["farm", "mill"]] * 3
