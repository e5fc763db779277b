"""Starting, stopping and starting again: what is left behind, and what the person is told."""

import signal

RAISES = "\ndef FAULT(record):\n    return 1 / 0\n"
FORKS = """
def FAULT(record):
    if not os.fork():
        time.sleep(600)
        os._exit(0)
    return record
"""


def contents(root) -> dict:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_run_ends_though_user_code_left_a_process_behind(workspace):
    here = workspace.line(fault=FORKS)
    here.go()
    done = here.fx("run", timeout=60)
    assert done.returncode == 0, done.stderr
    assert "completed" not in done.stderr and done.stdout.count("completed after 5 rounds") == 1
    assert not here.processes()


def test_sigterm_stops_a_run_as_ctrl_c_does_and_the_hint_has_its_overrides(workspace):
    here = workspace.line()
    run = here.hold("run", "-s", "rounds=4")
    run.send_signal(signal.SIGTERM)
    assert run.wait(30) == 130
    assert "`fx run -s rounds=4` resumes it" in here.said(run)
    assert not here.processes()
    assert "`fx run -s rounds=4` resumes it" in here.fx("status").stdout
    before = contents(here.root)
    refused = here.fx("run", "--resume")
    assert refused.returncode == 2 and refused.stderr.startswith("U40  ")
    assert contents(here.root) == before, "another plan: nothing is written"
    here.go()
    done = here.fx("run", "--resume", "-s", "rounds=4")
    assert done.returncode == 0 and "resumes run" in done.stderr, done.stderr


def test_after_a_failed_run_only_new_begins_another(workspace):
    here = workspace.line(fault=RAISES)
    here.go()
    assert here.fx("plan", "initialize").returncode == 0
    aggregator = here.start("aggregator", "start")
    for name in ("farm", "mill"):
        here.start("collaborator", "start", "-n", name)
    assert aggregator.wait(60) == 5, here.said(aggregator)
    assert "listening on 127.0.0.1:" in here.said(aggregator)
    events = contents(here.root / "logs")
    again = here.fx("aggregator", "start")
    assert again.returncode == 1 and "failed: " in again.stderr, again.stderr
    assert "--new begins another run" in again.stderr
    assert contents(here.root / "logs") == events
    here.edit("rounds: 5", "rounds: 6")
    new = here.start("aggregator", "start", "--new")
    here.wait_until(lambda: "a new run, as asked" in here.said(new), "another run")
    assert "frozen from other settings than plan.yaml has now" in here.said(new)
    new.send_signal(signal.SIGTERM)
    assert new.wait(30) == 130
