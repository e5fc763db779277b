"""The names that a plan may say are those that the code has."""

import inspect
import itertools
from dataclasses import MISSING, fields
from typing import Any

import pytest

from openfed.codec import chain
from openfed.data import partition
from openfed.exact import methods
from openfed.plan import choices
from openfed.plan.chains import pipeline_rules
from openfed.plan.schema import Pipeline
from openfed.tasks import metrics, runners


def test_metrics() -> None:
    assert metrics.METRICS.keys() == {choices.LOSS, *choices.METRICS}


def test_runners() -> None:
    assert runners.RUNNERS.keys() == choices.RUNNERS.keys()
    for reference in runners.RUNNERS.values():
        assert callable(runners.load(reference).run)


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_flow(name: str) -> None:
    ours = choices.FLOWS[name].model_fields
    theirs = {each.name: each for each in fields(methods.METHODS[name])}  # type: ignore[arg-type]
    for key, each in theirs.items():
        if key not in ours:  # features of a method that says itself how many
            assert key == "features" and each.default is not MISSING
        else:
            expected = MISSING if ours[key].is_required() else ours[key].default
            assert each.default == expected, key
    assert ours.keys() <= theirs.keys()


def test_flows() -> None:
    assert choices.FLOWS.keys() == methods.METHODS.keys()
    hiding = {name for name, kind in methods.METHODS.items() if kind in methods.SUPPRESSES}
    assert hiding == choices.SUPPRESSING


FORMS = {
    ("floats", "floats"): "float",
    ("floats", "symbols"): "code",
    ("floats", "bytes"): "code",
    ("symbols", "bytes"): "bytes",
    ("bytes", "bytes"): "bytes",
}


@pytest.mark.parametrize("name", sorted(choices.STAGES))
def test_codec(name: str) -> None:
    ours, model = choices.STAGES[name], choices.CODECS[name]
    version, kind = chain.STAGES[name]
    theirs = {field.name: field.default for field in fields(kind)}
    assert (version, kind.form) == (ours.version, FORMS[ours.takes, ours.gives])
    assert model.model_fields.keys() == theirs.keys() - {"biased"}
    for key, setting in model.model_fields.items():
        assert setting.is_required() or setting.default == theirs[key], key


def test_codecs() -> None:
    assert choices.CODECS.keys() == choices.STAGES.keys() == chain.STAGES.keys()


def settings(name: str) -> dict[str, Any]:
    """Some, for what the codec requires."""
    some = {"bits": 4, "fraction": 0.5, "step": 1.0, "centers": 16}
    return {key: some[key] for key in choices.CODECS[name].model_fields if key in some}


@pytest.mark.parametrize("name", sorted(choices.STAGES))
def test_codec_loses_what_the_plan_says(name: str) -> None:
    names = ["lloyd", name] if choices.STAGES[name].takes == "symbols" else [name]
    lossy = [choices.STAGES[each].lossy for each in names]
    assert chain.make_chain([(each, settings(each)) for each in names]).lossy == any(lossy)


@pytest.mark.parametrize("first", sorted(choices.STAGES))
def test_every_chain_that_the_plan_takes_can_be_made(first: str) -> None:
    taken = 0
    for rest in itertools.product(choices.STAGES, repeat=2):
        pairs = [(name, settings(name)) for name in (first, *rest)]
        codecs = [{"name": name, "settings": given} for name, given in pairs]
        if not list(pipeline_rules(Pipeline.model_validate({"uplink": {"codecs": codecs}}))):
            chain.make_chain(pairs)
            taken += 1
    # rotate, topk and randomk may begin a chain of three
    assert (taken > 0) == (choices.STAGES[first].gives == "floats")


def test_partitioners() -> None:
    assert choices.PARTITIONERS.keys() == partition.PARTITIONERS.keys()
    for name, model in choices.PARTITIONERS.items():
        known = inspect.signature(getattr(partition, name)).parameters
        settings = {key: p.default for key, p in known.items() if p.kind is p.KEYWORD_ONLY}
        assert model.model_fields.keys() == settings.keys()
        for key, field in model.model_fields.items():
            assert settings[key] == (
                inspect.Parameter.empty if field.is_required() else field.default
            )


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
