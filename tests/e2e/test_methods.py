"""What a method remembers, at the aggregator and at the sites, lives through `kill -9`."""

import os
import signal

import pytest

SHORT = ("-s", "rounds=4", "-s", "task_runner.torch.epochs=1")
SGD = "task_runner.torch.optimizer={sgd: {lr: 0.1}}"


def strike(here, role, round):
    """SIGKILL for a process, after this round."""

    def there():
        ended = {event["round"] for event in here.events("round.ended")}
        return round in ended and role in here.processes()

    here.wait_until(there, f"round {round}, and {role}")
    os.kill(here.processes()[role], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", ["scaffold", "feddyn"])
def test_a_run_whose_nodes_are_killed_gives_the_model_of_one_undisturbed(workspace, method):
    words = ("run", *SHORT, "-s", f"strategy={method}", "-s", SGD)
    whole, struck = workspace("torch_digits"), workspace("torch_digits")
    assert whole.fx(*words).returncode == 0
    run = struck.start(*words)
    strike(struck, "aggregator", 1)
    strike(struck, "agent two", 2)
    assert run.wait(90) == 0, struck.said(run)
    assert struck.digest() == whole.digest()
