"""The plan has tables of the same names and settings as the runners."""

import inspect
from typing import Any

import pytest

from openfed.plan import choices
from openfed.tasks import metrics, sklearn, torch
from openfed.tasks.runners import RUNNERS, load

PAIRS = {
    "losses": (choices.LOSSES, torch.LOSSES),
    "optimizers": (choices.OPTIMIZERS, torch.OPTIMIZERS),
    "schedulers": (choices.SCHEDULERS, torch.SCHEDULES),
    "estimators": (choices.ESTIMATORS, sklearn.ESTIMATORS),
}


@pytest.mark.parametrize(("plan", "code"), PAIRS.values(), ids=list(PAIRS))
def test_a_name_that_the_plan_knows_has_code_that_takes_its_settings(plan: Any, code: Any) -> None:
    assert set(plan) == set(code)
    for name, model in plan.items():
        takes = inspect.signature(code[name]).parameters
        assert set(model.model_fields) <= set(takes), name


def test_metrics_have_the_same_names_and_directions() -> None:
    assert {name: metric.mode for name, metric in metrics.METRICS.items()} == {
        **choices.METRICS,
        choices.LOSS: "min",
    }


def test_runners_have_the_same_names_and_can_be_imported() -> None:
    assert set(choices.RUNNERS) == set(RUNNERS)
    for name in RUNNERS.values():
        assert callable(load(name).run)
