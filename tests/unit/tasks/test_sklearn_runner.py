"""The scikit-learn runner against the estimators themselves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import linear_model
from sklearn.metrics import hinge_loss, log_loss, mean_squared_error, roc_auc_score

from openfed.errors import TaskError
from openfed.tasks.base import Task
from openfed.tasks.config import Choice, Config
from openfed.tasks.metrics import finish
from openfed.tasks.seeds import derive
from openfed.tasks.sklearn import SklearnRunner

FEATURES = 4


class Data:
    def __init__(self, classes: tuple[Any, ...] | None, samples: int = 60) -> None:
        draw = np.random.default_rng(1)
        self.inputs = draw.normal(size=(samples + 20, FEATURES))
        slopes = draw.normal(size=(FEATURES, max(2, len(classes or ()))))
        scores = self.inputs @ slopes + draw.normal(size=(samples + 20, slopes.shape[1]))
        self.targets = scores[:, 0] if classes is None else np.array(classes)[scores.argmax(1)]

    def train(self, *, seed: int) -> Iterator[Any]:
        rows = np.random.default_rng(seed).permutation(len(self.inputs) - 20)
        for part in np.array_split(rows, 3) if len(rows) else ():
            yield self.inputs[part], self.targets[part]

    def validate(self) -> Iterator[Any]:
        yield self.inputs[-20:-5], self.targets[-20:-5]
        yield self.inputs[-5:], self.targets[-5:]


def runner(
    name: str, data: Any, classes: tuple[Any, ...] | None = (0, 1), **more: Any
) -> SklearnRunner:
    epochs, metrics, scope = (
        more.pop(k, d) for k, d in (("epochs", 1), ("metrics", ()), ("scope", ()))
    )
    chosen: dict[str, Any] = {"features": FEATURES, "epochs": epochs}
    chosen["estimator"] = {"name": f"sklearn.linear_model:{name}", "settings": more}
    chosen["classes"] = None if classes is None else list(classes)
    config = Config(
        workspace=Path(),
        collaborator="one",
        runner=Choice("sklearn", chosen),
        data_loader=Choice("unused", {}),
        strategy=Choice("fedavg", {}),
        source=None,
        contract=None,
        seed=0,
        rounds=4,
        metrics=metrics,
        scope=scope,
        device="cpu",
        threads=1,
        output_limit=0,
    )
    return SklearnRunner(config, data)


def task(name: str = "train", round: int = 1, **settings: Any) -> Task:
    return Task(name, round, 4, "one", derive(5, round, "one", name), settings)


def test_typos_in_scope_and_metrics_of_another_task_are_named() -> None:
    one = runner("SGDClassifier", Data((0, 1)), scope=(("coef", "local"),))
    with pytest.raises(TaskError, match="K11.*'coef' matches no entry .* has coef_, intercept_"):
        one.initial(0)
    one = runner("SGDClassifier", Data((0, 1, 2)), (0, 1, 2), metrics=("auc",))
    with pytest.raises(TaskError, match="K13.*asks for auc.*the model has 3.*outputs of two"):
        one.run(task("validate"), one.initial(0)[0], {})


KINDS = {
    "SGDClassifier, two classes": ("SGDClassifier", (0, 1), {"loss": "log_loss"}),
    "SGDClassifier, texts": ("SGDClassifier", ("dog", "ant", "cat"), {"loss": "hinge"}),
    "Perceptron": ("Perceptron", (0, 1), {}),
    "SGDRegressor": ("SGDRegressor", None, {}),
}


@pytest.mark.parametrize(("name", "classes", "settings"), KINDS.values(), ids=list(KINDS))
def test_partial_fit_gives_the_bits_of_the_estimator_itself(
    name: str, classes: tuple[Any, ...] | None, settings: dict[str, Any]
) -> None:
    data = Data(classes)
    one = runner(name, data, classes, epochs=2, **settings)
    model, signature = one.initial(0)
    outcome = one.run(task(), model, {})
    seed = task().seed
    plain = getattr(linear_model, name)(random_state=seed % 2**32, **settings)
    for epoch in range(2):
        for inputs, targets in data.train(seed=derive(seed, "pass", epoch)):
            known = {} if classes is None else {"classes": np.sort(classes)}
            plain.partial_fit(inputs, targets, **known)
    np.testing.assert_array_equal(outcome.tensors["coef_"], plain.coef_)
    np.testing.assert_array_equal(outcome.tensors["intercept_"], plain.intercept_)
    shapes = {spec.name: (spec.dtype, spec.shape) for spec in signature}
    assert {n: (v.dtype.name, v.shape) for n, v in outcome.tensors.items()} == shapes
    assert outcome.numbers["n"] == (120.0,)


@pytest.mark.parametrize("classes", [(0, 1), (3, 1, 2)], ids=["two", "three"])
def test_logistic_regression_goes_on_from_the_models_coefficients(classes: tuple[int, ...]) -> None:
    data = Data(classes)
    one = runner("LogisticRegression", data, classes, max_iter=2)
    model, _ = one.initial(0)
    first = one.run(task(round=1), model, {})
    second = one.run(task(round=2), first.tensors, {})
    assert not np.array_equal(first.tensors["coef_"], second.tensors["coef_"])
    for round in range(3, 40):
        second = one.run(task(round=round), second.tensors, {})
    inputs, targets = data.inputs[:-20], data.targets[:-20]
    plain = linear_model.LogisticRegression(tol=1e-8, max_iter=1000).fit(inputs, targets)
    np.testing.assert_allclose(second.tensors["coef_"], plain.coef_, atol=1e-3)
    assert second.numbers["n"] == (60.0,)


LOSSES = {
    "log loss": ("LogisticRegression", (0, 1, 2), {}, log_loss, "predict_proba"),
    "hinge": ("SGDClassifier", (0, 1), {}, hinge_loss, "decision_function"),
    "squared": ("SGDRegressor", None, {}, mean_squared_error, "predict"),
}


@pytest.mark.parametrize(
    ("name", "classes", "settings", "oracle", "method"), LOSSES.values(), ids=list(LOSSES)
)
def test_the_loss_is_the_one_of_the_whole_validation_data(
    name: str, classes: Any, settings: dict[str, Any], oracle: Any, method: str
) -> None:
    data = Data(classes)
    one = runner(name, data, classes, **settings)
    trained = one.run(task(), one.initial(0)[0], {})
    numbers = one.run(task("validate"), trained.tensors, {}).numbers
    plain = one._filled(trained.tensors, 0)
    wanted = oracle(data.targets[-20:], getattr(plain, method)(data.inputs[-20:]))
    assert finish("loss", numbers["metrics/validate/loss"]) == pytest.approx(wanted)
    assert numbers["n"] == (20.0,)


def share_right(outputs: Any, targets: Any) -> tuple[float, float]:
    return float(((outputs > 0) == targets).sum()), len(targets)


def test_metrics_shipped_and_the_users_are_reported_as_sums() -> None:
    data = Data(("no", "yes"))
    names = ("accuracy", "auc", f"{__name__}:share_right")
    one = runner("SGDClassifier", data, ("no", "yes"), metrics=names)
    trained = one.run(task(tuned=True), one.initial(0)[0], {})
    numbers = one.run(task("validate"), trained.tensors, {}).numbers
    assert numbers["metrics/validate/accuracy"] == numbers["metrics/validate/share_right"]
    plain = one._filled(trained.tensors, 0)
    scores = plain.decision_function(data.inputs[-20:])
    exact = roc_auc_score(data.targets[-20:], scores)
    assert finish("auc", numbers["metrics/validate/auc"]) == pytest.approx(exact, abs=1e-3)
    tuned = {k: v for k, v in trained.numbers.items() if "tuned" in k}
    assert tuned == {
        k.replace("/validate/", "/validate_tuned/"): v for k, v in numbers.items() if k != "n"
    }


def test_an_intercept_may_stay_at_its_site() -> None:
    one = runner("SGDClassifier", Data((0, 1)), scope=(("intercept_", "local"),))
    model, _ = one.initial(0)
    assert set(model) == {"coef_"}
    outcome = one.run(task(), model, {})
    assert set(outcome.tensors) == {"coef_"}
    assert outcome.local is not None
    assert set(outcome.local) == {"intercept_"}


class OneClass(Data):
    def train(self, *, seed: int) -> Iterator[Any]:
        yield self.inputs[:5], np.zeros(5, int)


class Wide(Data):
    def train(self, *, seed: int) -> Iterator[Any]:
        yield np.zeros((5, 9)), np.zeros(5, int)


class Foreign(Data):
    def train(self, *, seed: int) -> Iterator[Any]:
        yield self.inputs[:5], np.full(5, 7)


WRONG = {
    "an estimator that is none": ("SVC", None, {}, "K08.*unknown estimator"),
    "averaging": ("SGDClassifier", None, {"average": True}, "K08.*average"),
    "one class at a site": (
        "LogisticRegression",
        OneClass,
        {},
        "K04.*no training sample of class 1",
    ),
    "no samples": ("SGDClassifier", lambda c: Data(c, 0), {}, "K04.*gave no samples"),
    "other features": ("SGDClassifier", Wide, {}, r"K05.*\[samples, 4\], got \[5, 9\]"),
    "another label": ("SGDClassifier", Foreign, {}, "K05.*the plan's classes lack it"),
    "no loader": ("SGDClassifier", lambda _: 3, {}, "K05.*int has no method train"),
}


@pytest.mark.parametrize(("name", "data", "settings", "said"), WRONG.values(), ids=list(WRONG))
def test_what_cannot_be_run_is_a_typed_error(
    name: str, data: Any, settings: dict[str, Any], said: str
) -> None:
    def attempt() -> None:
        one = runner(name, data and data((0, 1)), **settings)
        one.run(task(), one.initial(0)[0], {})

    with pytest.raises(TaskError, match=said):
        attempt()


def test_a_site_without_one_of_the_classes_takes_part_with_partial_fit() -> None:
    one = runner("SGDClassifier", OneClass((0, 1)))
    assert one.run(task(), one.initial(0)[0], {}).tensors["coef_"].shape == (1, FEATURES)


def test_what_a_strategy_needs_is_told_and_changes_no_training() -> None:
    data = Data((0, 1))
    one = runner("SGDClassifier", data, epochs=2, learning_rate="constant", eta0=0.1)
    model = one.run(task(), one.initial(0)[0], {}).tensors
    told = one.run(task(round=2, reports=["loss_before", "steps"]), model, {})
    plain = one.run(task(round=2), model, {})
    np.testing.assert_array_equal(told.tensors["coef_"], plain.tensors["coef_"])
    assert told.numbers["steps"] == told.numbers["n"] == plain.numbers["n"] == (120.0,)
    assert not {"steps", "loss_before"} & plain.numbers.keys()
    inputs, targets = data.inputs[:-20], data.targets[:-20]
    scores = inputs @ model["coef_"][0] + model["intercept_"]
    wanted = hinge_loss(targets, scores)
    np.testing.assert_allclose(told.numbers["loss_before"], (wanted,), rtol=1e-12)
