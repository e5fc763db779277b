"""What a method remembers, at the aggregator and at the sites, lives through `kill -9`."""

import os
import signal

import pytest

SHORT = ("-s", "rounds=4", "-s", "task_runner.torch.epochs=1")
SGD = "task_runner.torch.optimizer={sgd: {lr: 0.1}}"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", ["scaffold", "feddyn"])
def test_a_run_whose_nodes_are_killed_gives_the_model_of_one_undisturbed(workspace, method):
    words = ("run", *SHORT, "-s", f"strategy={method}", "-s", SGD)
    whole, struck = workspace("torch_digits"), workspace("torch_digits")
    assert whole.fx(*words).returncode == 0
    run = struck.start(*words)
    for round, role in ((1, "aggregator"), (2, "agent two")):
        struck.wait_until(
            lambda: (
                any(e["round"] == round for e in struck.events("round.ended"))  # noqa: B023
                and role in struck.processes()
            ),  # noqa: B023
            f"round {round}, and {role}",
        )
        os.kill(struck.processes()[role], signal.SIGKILL)
    assert run.wait(90) == 0, struck.said(run)
    assert struck.digest() == whole.digest()
