"""An aggregator that gives no sign of life: its sites stop what they compute, and wait for it."""

import os
import signal
import time

import pytest

LEASE_S = 5.0
PLAN = "timeouts: {idle: 5s}"


def begin(here):
    """A run that waits in mill's third training."""
    assert here.fx("plan", "initialize").returncode == 0
    aggregator = here.start("aggregator", "start")
    sites = [here.start("collaborator", "start", "-n", name) for name in ("farm", "mill")]
    here.wait_until(lambda: here.calls("mill") == 3, "round 3 at mill")
    return aggregator, *sites


@pytest.mark.slow
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
def test_within_two_leases_a_site_has_stopped_its_task_and_later_does_it_again(
    workspace, undisturbed, fault
):
    here = workspace.line(more=PLAN)
    aggregator, farm, mill = begin(here)
    task = here.processes()["task mill"]
    aggregator.send_signal(fault)
    begun = time.monotonic()
    here.wait_until(lambda: here.processes().get("task mill") != task, "the end of mill's task")
    assert LEASE_S / 2 < time.monotonic() - begun < 2 * LEASE_S
    words = "nothing heard from the aggregator for 5 s: the task at work is"
    here.wait_until(lambda: words in here.said(mill), "its words")
    assert farm.poll() is None and mill.poll() is None, "they go on trying"
    if fault == signal.SIGKILL:
        aggregator.wait()
        aggregator = here.start("aggregator", "start")
    else:
        os.kill(aggregator.pid, signal.SIGCONT)
    for node in (farm, mill, aggregator):
        assert node.wait(60) == 0
    assert here.digest() == undisturbed
    assert here.calls("farm") == 5 and here.calls("mill") == 6  # its third was done twice
