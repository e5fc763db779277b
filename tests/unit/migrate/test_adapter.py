"""Code from OpenFL, unchanged, run by the adapter as openfed's task process runs it."""

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from openfed.launch.initial import task_config
from openfed.migrate.code import offered
from openfed.migrate.write import import_openfl
from openfed.plan.load import load_plan
from openfed.plan.local import read_local
from openfed.tasks.base import Outcome, Runner, Task
from openfed.tasks.checks import check_local, check_numbers, check_update
from openfed.tasks.config import read_config
from openfed.tasks.runners import make_data, make_runner
from openfed.tensors.record import Kind, signature_of

FACTS = ("reports:\n", "data_facts: {feature_shape: [4]}\n    reports:\n")


def forget() -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in ("src", "openfl"):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def enter(openfl, new, monkeypatch) -> Iterator[Callable[..., tuple[Runner, Runner]]]:
    """Imports a workspace and goes into it as a task process does: its runner without and with the
    data of its first site."""

    def go(name: str = "digits", *edits: tuple[str, str], **changes) -> tuple[Runner, Runner]:
        import_openfl(openfl(name, changes.get("changes")), new)
        text = (new / "plan" / "plan.yaml").read_text()
        for old, put in edits:
            assert old in text
            text = text.replace(old, put, 1)
        (new / "plan" / "plan.yaml").write_text(text)
        forget()
        monkeypatch.syspath_prepend(str(new))
        monkeypatch.chdir(new)
        return runners(new)

    yield go
    forget()


def runners(root: Path) -> tuple[Runner, Runner]:
    plan = load_plan(root / "plan" / "plan.yaml")
    sites = read_local(root / "local.yaml", plan.collaborators).sites
    first = plan.collaborators[0]
    told = task_config(root, plan, first, sites[first], "cpu", 1)
    (root / "task.json").write_text(json.dumps(told))
    config = read_config(root / "task.json")
    return make_runner(config, None), make_runner(config, make_data(config.data_loader, "1"))


def task(name: str = "train", seed: int = 5, **settings) -> Task:
    return Task(name, 1, 4, "one", seed, settings)


def same(one, other) -> bool:
    return set(one) == set(other) and all(np.array_equal(one[k], other[k]) for k in one)


def checked(outcome: Outcome, model) -> Outcome:
    check_numbers(outcome.numbers)
    if outcome.tensors:
        check_update(outcome.tensors, signature_of(model), ())
    if outcome.local is not None:
        check_local(outcome.local, model)
    return outcome


def test_the_first_model_is_made_without_data_under_openfls_names(enter):
    bare, _ = enter()
    tensors, signature = bare.initial(7)
    kinds = {spec.name: spec.kind for spec in signature}
    assert kinds["model.0.weight"] is Kind.PARAMETER
    assert kinds["model.1.running_mean"] is Kind.BUFFER
    assert tensors["model.3.weight"].shape == (10, 32)
    assert same(tensors, bare.initial(7)[0]) and not same(tensors, bare.initial(8)[0])


def test_training_is_what_the_class_itself_does(enter):
    bare, runner = enter()
    model, _ = bare.initial(7)
    outcome = checked(runner.run(task(), model, {}), model)
    from src.dataloader import DigitsInMemory
    from src.taskrunner import DigitsRunner

    data = DigitsInMemory("1", batch_size=32, collaborator_count=2, num_classes=10)
    net = DigitsRunner(data_loader=data, width=32, lr=0.01)
    net.load_state_dict({name: torch.tensor(value) for name, value in model.items()})
    np.random.seed(5)
    torch.manual_seed(5)
    metric = net.train().train_(data.get_train_loader())
    assert same(outcome.tensors, net.get_tensor_dict())
    n = data.get_train_data_size()
    assert outcome.numbers["n"] == (n,)
    assert outcome.numbers["metrics/train/crossentropy_loss"] == (float(metric.value) * n, n)


def test_a_mean_of_the_code_counts_by_its_samples(enter):
    bare, runner = enter()
    model, _ = bare.initial(7)
    numbers = checked(runner.run(task("validate"), model, {}), model).numbers
    right, samples = numbers["metrics/validate/accuracy"]
    assert samples == numbers["n"][0] == len(runner._data.y_valid) != len(runner._data.y_train)
    assert right == pytest.approx(round(right))


def test_nothing_crosses_from_task_to_task(enter):
    bare, runner = enter()
    model, _ = bare.initial(7)
    first = runner.run(task(), model, {})
    runner.run(task(seed=6), first.tensors, {})
    assert same(runner.run(task(), model, {}).tensors, first.tensors)
    assert not same(runner.run(task(seed=6), model, {}).tensors, first.tensors)


def test_the_tuned_model_is_scored_after_training_when_the_plan_asks(enter):
    bare, runner = enter()
    model, _ = bare.initial(7)
    outcome = runner.run(task(tuned=True), model, {})
    tuned = outcome.numbers["metrics/validate_tuned/accuracy"]
    assert tuned[0] / tuned[1] > 0.5
    assert outcome.numbers["n"][0] == len(runner._data.y_train)
    again = runner.run(task("validate"), outcome.tensors, {})
    assert again.numbers["metrics/validate/accuracy"] == tuned


def test_epochs_of_a_task_displace_those_of_openfls_plan(enter):
    bare, runner = enter()
    model, _ = bare.initial(7)
    once, twice = runner.run(task(), model, {}), runner.run(task(epochs=2), model, {})
    loss = "metrics/train/crossentropy_loss"
    assert twice.numbers[loss][0] < once.numbers[loss][0]


def test_kept_optimizer_state_stays_at_the_site_and_is_used(enter):
    bare, runner = enter("digits", ("optimizer_state: reset", "optimizer_state: keep"))
    model, _ = bare.initial(7)
    assert not any(name.startswith("optimizer/") for name in model)
    first = checked(runner.run(task(), model, {}), model)
    state = first.local["optimizer/model.0.weight/exp_avg"]
    assert state.any() and not any(name.startswith("optimizer/") for name in first.tensors)
    steps = first.local["optimizer/model.0.weight/step"]
    second = runner.run(task(), model, first.local)
    assert second.local["optimizer/model.0.weight/step"] == 2 * steps
    assert not same(second.tensors, first.tensors)


def test_averaged_optimizer_state_travels_with_the_model(enter):
    bare, runner = enter("defaults", FACTS)
    model, signature = bare.initial(7)
    kinds = {spec.name: spec.kind for spec in signature}
    assert kinds["optimizer/fc.weight/exp_avg"] is Kind.STATE
    assert not model["optimizer/fc.weight/exp_avg"].any() and model["fc.weight"].any()
    first = checked(runner.run(task(), model, {}), model)
    assert first.tensors["optimizer/fc.weight/exp_avg"].any() and first.local is None
    second = checked(runner.run(task(), first.tensors, {}), model)
    steps = first.tensors["optimizer/fc.weight/step"]
    assert second.tensors["optimizer/fc.weight/step"] == 2 * steps


def test_a_runner_of_openfl_1_5_trains_and_scores(enter):
    bare, runner = enter("defaults", FACTS)
    model, _ = bare.initial(7)
    before = runner.run(task("validate"), model, {}).numbers["metrics/validate/acc"]
    trained = runner.run(task(epochs=10, tuned=True), model, {})
    after = trained.numbers["metrics/validate_tuned/acc"]
    assert after[0] > before[0] and after[1] == 20
    assert set(trained.numbers) == {"n", "metrics/train/loss", "metrics/validate_tuned/acc"}


def test_what_the_constructor_asks_of_data_is_said_with_the_place_to_say_it(enter):
    bare, _ = enter("defaults")
    with pytest.raises(ValueError, match=r"data_facts: \{feature_shape: \.\.\.\}"):
        bare.initial(7)


EMPTY = [
    ("        draw = ", "        if data_path is None:\n            return\n        draw = "),
    (
        "= points[60:], labels[60:]\n",
        "= points[60:], labels[60:]\n\n    def get_feature_shape(self):\n        return [4]\n",
    ),
]


def test_a_loader_that_can_be_made_without_data_answers_for_the_first_model(enter):
    bare, runner = enter("defaults", changes={"src/loader.py": EMPTY})
    model, _ = bare.initial(7)
    assert model["fc.weight"].shape == (2, 4)
    assert runner.run(task("validate"), model, {}).numbers["n"] == (20,)


def test_what_the_plan_says_of_the_data_comes_before_an_empty_loader(enter):
    facts = (FACTS[0], FACTS[1].replace("[4]", "[3]"))
    bare, _ = enter("defaults", facts, changes={"src/loader.py": EMPTY})
    assert bare.initial(7)[0]["fc.weight"].shape == (2, 3)


def test_openfls_own_validation_takes_labels_as_numbers_and_as_one_hot(enter):
    left = ("def validate(", "def unused(")
    bare, runner = enter("defaults", FACTS, changes={"src/net.py": [left]})
    model, _ = bare.initial(7)
    numbers = runner.run(task("validate"), model, {}).numbers
    assert numbers["metrics/validate/accuracy"][1] == 20
    runner._data.y_valid = np.eye(2)[runner._data.y_valid]
    assert runner.run(task("validate"), model, {}).numbers == numbers


def test_openfls_own_training_calls_the_loss_by_keyword_as_openfl_does(enter):
    turned = [
        ("def cross_entropy(output, target)", "def cross_entropy(target, output)"),
        ("cross_entropy(output, target)\n", "cross_entropy(output, target.long())\n"),
    ]
    bare, runner = enter("defaults", FACTS, changes={"src/net.py": turned})
    model, _ = bare.initial(7)
    before = runner.run(task("validate"), model, {}).numbers["metrics/validate/acc"][0]
    after = runner.run(task(epochs=10, tuned=True), model, {}).numbers
    assert after["metrics/validate_tuned/acc"][0] > before


def test_a_download_with_another_hash_is_refused_and_the_right_one_passes(enter, tmp_path):
    enter()
    importlib.import_module("src.openfl_adapter")
    check = importlib.import_module("openfl.utilities").validate_file_hash
    path = tmp_path / "data.zip"
    path.write_bytes(b"pictures")
    right = hashlib.sha384(b"pictures").hexdigest()
    check(path, right)
    with pytest.raises(SystemError, match=right):
        check(path, "0" * 96)


def test_entries_that_the_runner_holds_out_stay_at_the_site(enter):
    held = (
        "super().__init__(device=device, **kwargs)",
        "super().__init__(\n            device=device,\n            tensor_dict_split_fn_kwargs="
        '{"holdout_tensor_names": ["model.3.bias"]},\n            **kwargs,\n        )',
    )
    bare, runner = enter(changes={"src/taskrunner.py": [held]})
    model, _ = bare.initial(7)
    outcome = checked(runner.run(task(), model, {}), model)
    assert "model.3.bias" not in model and set(outcome.local) == {"model.3.bias"}
    assert outcome.local["model.3.bias"].any()


def test_frozen_parameters_do_not_travel_up(enter):
    change = (
        "self.to(device)",
        "self.to(device)\n        self.model[0].bias.requires_grad = False",
    )
    bare, runner = enter(changes={"src/taskrunner.py": [change]})
    model, signature = bare.initial(7)
    assert {s.name for s in signature if s.kind is Kind.FROZEN} == {"model.0.bias"}
    assert set(model) - set(runner.run(task(), model, {}).tensors) == {"model.0.bias"}


def test_a_method_that_reports_no_metric_is_named(enter):
    bare, runner = enter("defaults", FACTS)
    model, _ = bare.initial(7)
    sys.modules["src.net"].Net.validate = lambda self, *given, **more: ({}, {})
    with pytest.raises(ValueError, match=r"Net\.validate returned 0 metrics, expected 1"):
        runner.run(task("validate"), model, {})


def test_the_stand_ins_are_importable_as_openfl(enter):
    enter()
    importlib.import_module("src.openfl_adapter")
    for module, names in offered().items():
        there = importlib.import_module(module)
        assert all(hasattr(there, name) for name in names)
    with pytest.raises(ModuleNotFoundError, match=r"openfl\.native"):
        importlib.import_module("openfl.native")
