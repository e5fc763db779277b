"""The names that a plan may say are those that the code has."""

import inspect

import pytest

from openfed.plan import choices
from openfed.tasks import metrics, runners


def test_metrics() -> None:
    assert metrics.METRICS.keys() == {choices.LOSS, *choices.METRICS}


def test_runners() -> None:
    assert runners.RUNNERS.keys() == choices.RUNNERS.keys()
    for reference in runners.RUNNERS.values():
        assert callable(runners.load(reference).run)


def test_torch() -> None:
    pytest.importorskip("torch")
    from openfed.tasks import torch

    for ours, theirs in (
        (choices.LOSSES, torch.LOSSES),
        (choices.OPTIMIZERS, torch.OPTIMIZERS),
        (choices.SCHEDULERS, torch.SCHEDULES),
    ):
        assert ours.keys() == theirs.keys()
        for name, model in ours.items():
            known = inspect.signature(theirs[name]).parameters
            for key, field in model.model_fields.items():
                assert key in known, f"{name} has no {key}"
                default = known[key].default
                if not field.is_required():
                    default = list(default) if isinstance(default, tuple) else default
                    assert field.default == default, f"{name}.{key}"


def test_sklearn() -> None:
    pytest.importorskip("sklearn")
    from openfed.tasks import sklearn

    assert choices.ESTIMATORS.keys() == sklearn.ESTIMATORS.keys()
    for name, model in choices.ESTIMATORS.items():
        known = inspect.signature(sklearn.ESTIMATORS[name]).parameters
        for key, field in model.model_fields.items():
            assert field.default == known[key].default, f"{name}.{key}"
