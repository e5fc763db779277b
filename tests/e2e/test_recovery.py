"""`kill -9` and start again, in every order: the model is the one that would have come out."""

import os
import signal

import pytest


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


def test_a_task_process_killed_in_a_task_does_the_task_once_more(workspace, undisturbed):
    here = workspace.line()
    aggregator, farm, mill = start(here)
    os.kill(here.processes()["task mill"], signal.SIGKILL)
    here.wait_until(lambda: here.calls("mill") == 4, "round 3 at mill once more")
    finish(here, aggregator, farm, mill)
    assert here.digest() == undisturbed
    assert here.calls("farm") == 5
    assert "killed by signal 9 (out of memory?); once more" in here.said(mill)


@pytest.mark.slow
def test_a_round_goes_on_without_a_dead_site_as_soon_as_the_deadline_lets_it(workspace):
    here = workspace.line(more="cohort: {quorum: 1, deadline: 10s}")
    aggregator, farm, mill = start(here)
    mill.send_signal(signal.SIGKILL)
    mill.wait()

    def without_mill():
        return [e for e in here.events("ask.closed") if list(e["missing"]) == ["mill"]]

    closed = here.wait_until(without_mill, "the end of round 3")[0]
    assert (closed["round"], closed["task"]) == (3, "train")
    assert 9 < closed["seconds"] < 11


def test_too_few_are_waited_for_by_name_and_the_run_goes_on_when_they_are_back(
    workspace, undisturbed
):
    here = workspace.line(more="cohort: {deadline: 3s}")
    aggregator, farm, mill = start(here)
    mill.send_signal(signal.SIGKILL)
    mill.wait()
    waits = "round 3 train: 1 of 2 answers that must be; waits for mill to return"
    here.wait_until(lambda: waits in here.said(aggregator), "the deadline of round 3")
    here.go()
    again = here.start("collaborator", "start", "-n", "mill")
    finish(here, aggregator, farm, again)
    assert here.digest() == undisturbed
    assert here.calls("farm") == 5


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
