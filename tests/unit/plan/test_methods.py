"""Which local optimisers, runners, loops and scopes a method's formula covers."""

import pytest

from openfed.errors import PlanError
from openfed.plan.choices import AT_SITES

ADAM, SCOPE = "{adam: {lr: 3.0e-3}}", '[{"head.*": local}, {"*": global}]'
OPTIMIZERS = {
    "adam": ADAM,
    "sgd": "{sgd: {lr: 0.1}}",
    "momentum": "{sgd: {lr: 0.1, momentum: 0.9}}",
    "own": '"src.model:Net"',
}
TAKES_SGD_ONLY = {"scaffold", "feddyn", "mimelite"}


def told(load, text):
    try:
        load(text)
    except PlanError as error:
        return str(error)
    return ""


def plan(text, strategy, optimizer="sgd", scope=SCOPE, more=""):
    text = text.replace("strategy: fedavg", f"strategy: {strategy}")
    text = text.replace(ADAM, OPTIMIZERS[optimizer] + more).replace(SCOPE, scope)
    return text.replace("train, validate_tuned]", "train]")


@pytest.mark.parametrize("name", ["fedavg", "fedadam", *AT_SITES])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimisers(plan_text, load, name, optimizer):
    scope = "[]" if name == "ditto" else SCOPE
    found = told(load, plan(plan_text, name, optimizer, scope))
    assert ("P25" in found) == (name in TAKES_SGD_ONLY and optimizer != "sgd"), found


@pytest.mark.parametrize("name", AT_SITES)
def test_scopes(plan_text, load, name):
    without = told(load, plan(plan_text, name, scope="[]"))
    assert ("local" in without and "P25" in without) == (name in ("fedrep", "fedrecon"))
    assert ("remove scope" in told(load, plan(plan_text, name))) == (name == "ditto")


@pytest.mark.parametrize("name", AT_SITES)
def test_a_loop_of_ones_own(plan_text, load, name):
    scope = "[]" if name == "ditto" else SCOPE
    text = plan(plan_text, name, scope=scope, more='\n    train: "src.numeric:train"')
    refused = name in ("ditto", "fedrep", "fedrecon")
    assert ("loop of your own" in told(load, text)) == refused


def test_another_runner(plan_text, load):
    begin, end = plan_text.index("  torch:"), plan_text.index("metrics:")
    runner = '  numpy: {train: "src.numeric:train", shapes: {w: [2]}}\n'
    text = plan_text[:begin] + runner + plan_text[end:].replace("strategy: fedavg", "strategy: {}")
    for name in AT_SITES:
        changed = text.replace("strategy: {}", f"strategy: {name}")
        assert "task_runner: torch only" in told(load, changed)


def test_two_models_and_one_optimizer(plan_text, load):
    kept = plan(plan_text, "ditto", scope="[]").replace("_state: reset", "_state: keep")
    assert "optimizer_state: reset" in told(load, kept)
