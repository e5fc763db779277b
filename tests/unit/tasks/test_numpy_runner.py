"""Functions over numpy arrays, by hand-computed tables."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openfed.errors import TaskError
from openfed.tasks.base import Task
from openfed.tasks.config import Choice, Config
from openfed.tasks.numpy_function import NumpyRunner


def train(record: Any, data: Any, settings: Any) -> Any:
    record["w"] -= settings["lr"] * 2 * (record["w"] - data)
    record["noise"] += np.random.normal(size=2)
    return record, 4, {"loss": 0.5, "rmse": (9.0, 4.0)}


def validate(record: Any, data: Any, settings: Any) -> Any:
    return 2, {"loss": float(abs(record["w"] - data).sum()), "rmse": (8.0, 2.0)}


def nobody(record: Any, data: Any, settings: Any) -> Any:
    return 0, {}


def without_rmse(record: Any, data: Any, settings: Any) -> Any:
    return 2, {"loss": 1.0}


def bare_number(*given: Any) -> Any:
    return 0.5


def init(settings: Any) -> Any:
    return {"w": np.full(2, settings["lr"]), "noise": np.random.normal(size=2)}


def runner(data: Any = 3.0, *, scope: Any = (), **more: Any) -> NumpyRunner:
    chosen = {"train": f"{__name__}:train", "validate": f"{__name__}:validate"}
    chosen |= {"init": None, "shapes": {"w": [], "noise": [2]}, "settings": {"lr": 0.25}, **more}
    config = Config(
        workspace=Path(),
        collaborator="one",
        runner=Choice("numpy", chosen),
        data_loader=Choice("unused", {}),
        strategy=Choice("fedavg", {}),
        source=None,
        contract=None,
        seed=0,
        rounds=2,
        metrics=("rmse",),
        scope=scope,
        device="cpu",
        threads=1,
        output_limit=0,
    )
    return NumpyRunner(config, data)


def task(name: str = "train", **settings: Any) -> Task:
    return Task(name, 1, 2, "one", 99, settings)


def test_a_function_trains_on_writable_copies_and_the_same_seed_draws_the_same() -> None:
    one = runner()
    model, signature = one.initial(0)
    assert [(spec.name, spec.dtype, spec.shape) for spec in signature] == [
        ("noise", "float64", (2,)),
        ("w", "float64", ()),
    ]
    for value in model.values():
        value.flags.writeable = False  # as the mapped frames are
    outcome = one.run(task(), model, {})
    assert outcome.tensors["w"] == 1.5  # 0 - 0.25 * 2 * (0 - 3)
    assert model["w"] == 0
    assert outcome.numbers["n"] == (4.0,)
    assert outcome.numbers["metrics/train/loss"] == (2.0, 4.0)
    assert outcome.numbers["metrics/train/rmse"] == (9.0, 4.0)
    again = one.run(task(), model, {})
    np.testing.assert_array_equal(again.tensors["noise"], outcome.tensors["noise"])
    other = one.run(replace(task(), seed=98), model, {})
    assert not np.array_equal(other.tensors["noise"], outcome.tensors["noise"])


def test_validation_reports_its_own_n_and_may_be_absent() -> None:
    one = runner()
    model, _ = one.initial(0)
    got = one.run(task("validate"), model, {}).numbers
    sums = {"metrics/validate/loss": (6.0, 2.0), "metrics/validate/rmse": (8.0, 2.0)}
    assert got == {"n": (2.0,), **sums}
    assert runner(validate=None).run(task("validate"), model, {}).numbers == {"n": (0.0,)}
    nothing = runner(validate=f"{__name__}:nobody")
    assert nothing.run(task("validate"), model, {}).numbers == {"n": (0.0,)}
    tuned = one.run(task(tuned=True), model, {}).numbers
    assert tuned["metrics/validate_tuned/loss"] == (3.0, 2.0)  # (|1.5 - 3|) * 2
    assert tuned["n"] == (4.0,)


def test_an_init_function_makes_the_first_model_from_the_seed() -> None:
    one = runner(init=f"{__name__}:init", shapes=None)
    model, _ = one.initial(4)
    assert model["w"].tolist() == [0.25, 0.25]
    np.testing.assert_array_equal(model["noise"], one.initial(4)[0]["noise"])
    assert not np.array_equal(model["noise"], one.initial(5)[0]["noise"])


def test_local_entries_come_back_apart() -> None:
    one = runner(scope=(("noise", "local"),))
    model, _ = one.initial(0)
    assert set(model) == {"w"}
    first = one.run(task(), model, {})
    assert set(first.tensors) == {"w"}
    assert first.local is not None
    second = one.run(task(), first.tensors, first.local)
    assert second.local is not None
    np.testing.assert_array_equal(second.local["noise"], 2 * first.local["noise"])


def test_settings_of_the_task_come_over_those_of_the_plan() -> None:
    one = runner()
    assert one.run(task(lr=0.5), one.initial(0)[0], {}).tensors["w"] == 3.0


def test_a_runner_without_shapes_or_init_is_refused() -> None:
    with pytest.raises(TaskError, match="K08.*`shapes` or `init`"):
        runner(shapes=None)


def test_a_metric_of_the_plan_that_validation_does_not_return_is_named() -> None:
    one = runner(validate=f"{__name__}:without_rmse")
    with pytest.raises(TaskError, match="K13.*`metrics` asks for rmse, which .*:without_rmse did"):
        one.run(task("validate"), one.initial(0)[0], {})


def test_functions_that_return_something_else_are_named_with_what_is_expected() -> None:
    other = f"{__name__}:bare_number"
    for name, change, expected in (
        ("train", {"train": other}, r"expected \(record, n, metrics\)"),
        ("validate", {"validate": other}, r"expected \(n, metrics\)"),
        ("train", {"init": other, "shapes": None}, "expected record: a dict"),
    ):
        with pytest.raises(TaskError, match=f"K12.*:bare_number returned a float, {expected}"):
            runner(**change).run(task(name), {"w": np.zeros(()), "noise": np.zeros(2)}, {})


def test_a_local_pattern_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(TaskError, match="K11.*scope: 'nose' matches no .* which has noise, w"):
        runner(scope=(("nose", "local"),)).initial(0)
    with pytest.raises(TaskError, match="K11.*'noise' is local, but a pattern before it shares"):
        runner(scope=(("*", "global"), ("noise", "local"))).initial(0)
    runner(scope=(("n*", "local"), ("noise", "local"), ("nothing", "global"))).initial(0)
