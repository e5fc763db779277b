"""`kill -9` and start again, in every order: the model is the one that would have come out."""

import os
import signal


def start(here):
    assert here.fx("plan", "initialize").returncode == 0
    aggregator = here.start("aggregator", "start")
    sites = [here.start("collaborator", "start", "-n", name) for name in ("farm", "mill")]
    here.wait_until(lambda: here.calls("mill") == 3, "round 3 at mill")
    return aggregator, *sites


def finish(here, *nodes):
    for node in nodes:
        assert node.wait(60) == 0, here.said(node)
    assert len({e["round"] for e in here.events("round.ended")}) == 5


def test_a_killed_aggregator_goes_on_where_it_was(workspace, undisturbed):
    here = workspace.line()
    aggregator, farm, mill = start(here)
    aggregator.send_signal(signal.SIGKILL)
    aggregator.wait()
    again = here.start("aggregator", "start")
    here.wait_until(lambda: "resumes run" in here.said(again), "the resumed run")
    here.go()
    finish(here, again, farm, mill)
    assert here.digest() == undisturbed
    assert here.calls("farm") == 5  # what farm had answered was not asked again


def test_a_killed_collaborator_goes_on_where_it_was(workspace, undisturbed):
    here = workspace.line()
    aggregator, farm, mill = start(here)
    mill.send_signal(signal.SIGKILL)
    mill.wait()
    here.wait_until(lambda: "task mill" not in here.processes(), "the end of mill's processes")
    here.go()
    again = here.start("collaborator", "start", "-n", "mill")
    finish(here, aggregator, farm, again)
    assert here.digest() == undisturbed


def test_a_task_process_killed_between_two_tasks_is_not_missed(workspace, undisturbed):
    here = workspace.line()
    aggregator, farm, mill = start(here)

    def answered():
        wanted = {"round": 3, "task": "train", "collaborator": "farm"}.items()
        return any(wanted <= event.items() for event in here.events("reply"))

    here.wait_until(answered, "farm's reply of round 3")
    os.kill(here.processes()["task farm"], signal.SIGKILL)
    here.go()
    finish(here, aggregator, farm, mill)
    assert here.digest() == undisturbed


def test_sites_may_start_first_and_in_any_order(workspace, undisturbed):
    here = workspace.line()
    here.go()
    assert here.fx("plan", "initialize").returncode == 0
    sites = [here.start("collaborator", "start", "-n", name) for name in ("mill", "farm")]
    here.wait_until(lambda: "waiting for the aggregator" in here.said(sites[0]), "a waiting site")
    aggregator = here.start("aggregator", "start")
    finish(here, aggregator, *sites)
    assert here.digest() == undisturbed
    again = here.fx("aggregator", "start")
    assert again.returncode == 0 and "--new begins another run" in again.stderr
