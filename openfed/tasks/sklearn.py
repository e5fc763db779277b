"""scikit-learn's linear models as a task runner: `coef_` and `intercept_` are the model.

Estimators with `partial_fit` (SGDClassifier, SGDRegressor, Perceptron) take every batch in turn,
`epochs` times. LogisticRegression is fitted on all batches at once, from the record's coefficients
on, for its own `max_iter`. Shapes come from the plan: `features`, `classes`.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import linear_model
from sklearn.exceptions import ConvergenceWarning

from openfed.errors import TaskError
from openfed.tasks.base import VALIDATE, Outcome, Task
from openfed.tasks.checks import check_scope
from openfed.tasks.config import Config, choice
from openfed.tasks.metrics import Sums, update
from openfed.tasks.replies import (
    add_scores,
    held_out,
    mean,
    reseed,
    scored,
    split,
    wants,
    with_tuned,
)
from openfed.tasks.runners import load_metrics
from openfed.tasks.seeds import derive
from openfed.tensors.record import Signature, signature_of
from openfed.typing import Numbers, Tensors

ESTIMATORS: Mapping[str, type] = {
    "sklearn.linear_model:LogisticRegression": linear_model.LogisticRegression,
    "sklearn.linear_model:Perceptron": linear_model.Perceptron,
    "sklearn.linear_model:SGDClassifier": linear_model.SGDClassifier,
    "sklearn.linear_model:SGDRegressor": linear_model.SGDRegressor,
}
REGRESSORS = (linear_model.SGDRegressor,)
ENTRIES = ("coef_", "intercept_")

Batch = tuple[NDArray[np.float64], NDArray[Any]]


class SklearnRunner:
    """Trains and validates a linear estimator on the site's data; see `Runner`."""

    def __init__(self, config: Config, data: Any) -> None:
        settings = config.runner.settings
        self._estimator = choice(settings["estimator"])
        if self._estimator.name not in ESTIMATORS:
            known = ", ".join(ESTIMATORS)
            raise TaskError("K08", f"unknown estimator {self._estimator.name!r}; known: {known}")
        self._class = ESTIMATORS[self._estimator.name]
        self._classifies = self._class not in REGRESSORS
        self._is_logistic = self._class is linear_model.LogisticRegression
        if self._estimator.settings.get("average"):
            raise TaskError("K08", "estimator: `average` keeps coefficients that no record holds")
        self._features = int(settings["features"])
        classes = settings["classes"]
        self._classes = None if classes is None else np.sort(np.asarray(classes))
        if self._classifies and (classes is None or len(classes) < 2):
            raise TaskError("K08", "a classifier needs `classes`: all labels, at least two")
        self._epochs = settings["epochs"]
        self._scope, self._data = config.scope, data
        self._metrics = load_metrics(config.metrics)

    def initial(self, seed: int) -> tuple[Tensors, Signature]:
        del seed  # linear models start from zero
        check_scope(ENTRIES, self._scope)
        tensors, _ = split(self._zeros(), self._scope)
        return tensors, signature_of(tensors)

    def run(self, task: Task, model: Tensors, local: Tensors) -> Outcome:
        estimator = self._filled({**self._zeros(), **local, **model}, task.seed)
        if task.name == VALIDATE:
            return Outcome(self._validate(estimator, VALIDATE))
        numbers: dict[str, Sums] = {}
        if wants(task, "loss_before"):
            numbers["loss_before"] = mean(self._training_loss(estimator, task))
        samples = self._fit(estimator, task)
        numbers["n"] = (float(samples),)
        if wants(task, "steps"):  # of one sample each
            numbers["steps"] = numbers["n"]
        numbers["metrics/train/loss"] = self._training_loss(estimator, task)
        trained = {name: np.array(getattr(estimator, name), np.float64) for name in ENTRIES}
        shared, kept = split(trained, self._scope)
        validate = partial(self._validate, estimator)
        return Outcome(with_tuned(task, numbers, validate), shared, kept or None)

    def _zeros(self) -> dict[str, NDArray[np.float64]]:
        if not self._classifies:
            return {"coef_": np.zeros(self._features), "intercept_": np.zeros(1)}
        assert self._classes is not None
        rows = 1 if len(self._classes) == 2 else len(self._classes)
        return {"coef_": np.zeros((rows, self._features)), "intercept_": np.zeros(rows)}

    def _filled(self, tensors: Tensors, seed: int) -> Any:
        """An estimator that predicts, and goes on training, from these coefficients."""
        reseed(seed)
        settings = {"random_state": seed % 2**32, **self._estimator.settings}
        if self._is_logistic:
            settings["warm_start"] = True
        estimator = self._class(**settings)
        for name in ENTRIES:
            setattr(estimator, name, np.array(tensors[name], np.float64))
        estimator.n_features_in_ = self._features
        if self._classifies:
            estimator.classes_ = self._classes
        if not self._is_logistic:
            estimator.t_ = 1.0  # the schedule of learning rates begins anew in every task
        return estimator

    def _fit(self, estimator: Any, task: Task) -> int:
        """Returns: samples consumed. Raises: TaskError: K04 none, or not of all classes."""
        epochs = 1 if self._is_logistic else int(task.settings.get("epochs") or self._epochs)  # type: ignore[arg-type]
        samples = 0
        for epoch in range(epochs):
            batches = self._batches(derive(task.seed, "pass", epoch))
            if self._is_logistic:
                samples += self._fit_logistic(estimator, list(batches))
                continue
            for inputs, targets in batches:
                known = {"classes": self._classes} if self._classifies else {}
                estimator.partial_fit(inputs, targets, **known)
                samples += len(inputs)
        if not samples:
            raise TaskError("K04", f"{type(self._data).__name__}.train() gave no samples")
        return samples

    def _fit_logistic(self, estimator: Any, batches: list[Batch]) -> int:
        if not batches:
            return 0
        inputs = np.concatenate([batch[0] for batch in batches])
        targets = np.concatenate([batch[1] for batch in batches])
        assert self._classes is not None
        missing = sorted(set(self._classes.tolist()) - set(targets.tolist()))
        if missing:
            raise TaskError(
                "K04",
                f"no training sample of class {missing[0]!r}; LogisticRegression needs every "
                "class at every site, SGDClassifier does not",
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a round need not converge
            estimator.fit(inputs, targets)
        return len(inputs)

    def _training_loss(self, estimator: Any, task: Task) -> Sums:
        """The loss on the training data as the coefficients are now; empty without samples."""
        again = self._batches(derive(task.seed, "pass", 0))
        return self._scores(estimator, again, {}).get("loss", ())

    def _batches(self, seed: int) -> Iterator[Batch]:
        if not callable(getattr(self._data, "train", None)):
            raise TaskError("K05", f"{type(self._data).__name__} has no method train(seed=...)")
        return map(self._checked, self._data.train(seed=seed))

    def _checked(self, batch: Any) -> Batch:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TaskError(
                "K05", f"expected batches (inputs, targets), got a {type(batch).__name__}"
            )
        inputs, targets = np.asarray(batch[0], np.float64), np.asarray(batch[1])
        if inputs.ndim != 2 or inputs.shape[1] != self._features:
            shape = list(inputs.shape)
            raise TaskError("K05", f"expected inputs [samples, {self._features}], got {shape}")
        if self._classes is not None and not np.isin(targets, self._classes).all():
            unknown = targets[~np.isin(targets, self._classes)][0]
            raise TaskError("K05", f"a target is {unknown!r}, the plan's classes lack it")
        return inputs, targets

    def _validate(self, estimator: Any, task: str) -> Numbers:
        batches = [self._checked(batch) for batch in held_out(self._data)]
        samples = sum(len(inputs) for inputs, _ in batches)
        return scored(task, samples, self._scores(estimator, batches, self._metrics))

    def _scores(
        self, estimator: Any, batches: Iterable[Batch], metrics: Mapping[str, Any]
    ) -> dict[str, Sums]:
        sums: dict[str, Sums] = {}
        for inputs, targets in batches:
            outputs, wanted = self._outputs(estimator, inputs), targets
            if self._classes is not None:
                wanted = np.searchsorted(self._classes, targets)
            losses = self._losses(estimator, inputs, outputs, wanted)
            loss: Sums = (float(losses.sum()), float(len(losses)))
            shipped = partial(update, outputs=outputs, targets=wanted)
            add_scores(sums, metrics, loss, (outputs, wanted), shipped)
        return sums

    def _outputs(self, estimator: Any, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        scores = estimator.decision_function if self._classifies else estimator.predict
        return np.asarray(scores(inputs), np.float64)

    def _losses(
        self,
        estimator: Any,
        inputs: NDArray[np.float64],
        outputs: NDArray[np.float64],
        wanted: NDArray[Any],
    ) -> NDArray[np.float64]:
        """Per sample: squared error; log loss where there are probabilities; else hinge loss."""
        if not self._classifies:
            return np.asarray((outputs - wanted) ** 2)
        if hasattr(estimator, "predict_proba"):
            chance = estimator.predict_proba(inputs)[np.arange(len(wanted)), wanted]
            return np.asarray(-np.log(np.maximum(chance, np.finfo(np.float64).eps)))
        if outputs.ndim == 1:
            return np.maximum(0.0, 1.0 - np.where(wanted == 1, 1.0, -1.0) * outputs)
        sides = np.where(np.arange(outputs.shape[1]) == wanted[:, None], 1.0, -1.0)
        return np.asarray(np.maximum(0.0, 1.0 - sides * outputs).mean(axis=1))
