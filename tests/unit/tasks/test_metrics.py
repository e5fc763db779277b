"""Sums of parts, merged, are the metric of the whole: scikit-learn is the oracle."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from openfed.tasks.metrics import BINS, METRICS, add, finish, fits, metric_name, update

Arrays = tuple[np.ndarray, np.ndarray]


def merged(name: str, outputs: np.ndarray, targets: np.ndarray, cuts: list[int]) -> float | None:
    """The metric of sites that hold the parts between `cuts`; some may be empty."""
    sums = None
    edges = [0, *sorted(cuts), len(targets)]
    for start, end in zip(edges, edges[1:], strict=False):
        sums = add(sums, update(name, outputs[start:end], targets[start:end]))
    assert sums is not None
    assert fits(name, sums)
    return finish(name, sums)


def many_classes(seed: int, samples: int = 200) -> Arrays:
    draw = np.random.default_rng(seed)
    targets = draw.integers(0, 5, samples)
    return draw.normal(size=(samples, 5)) + 1.5 * np.eye(5)[targets], targets


def two_classes(seed: int, samples: int = 3000) -> Arrays:
    draw = np.random.default_rng(seed)
    targets = draw.integers(0, 2, samples)
    return draw.normal(size=samples) * 3 + 2 * targets - 1, targets


def numbers(seed: int) -> Arrays:
    draw = np.random.default_rng(seed)
    targets = draw.normal(size=300) * 4 + 10
    return targets + draw.normal(size=300), targets


def by_class(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda outputs, targets: function(targets, outputs.argmax(1))


def by_sign(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda outputs, targets: function(targets, outputs > 0)


def macro_f1(targets: np.ndarray, said: np.ndarray) -> float:
    return float(oracle.f1_score(targets, said, average="macro"))


CASES = {
    "accuracy of five classes": ("accuracy", many_classes, by_class(oracle.accuracy_score)),
    "accuracy of two": ("accuracy", two_classes, by_sign(oracle.accuracy_score)),
    "f1 of five classes": ("f1", many_classes, by_class(macro_f1)),
    "f1 of two": ("f1", two_classes, by_sign(macro_f1)),
    "f1 of class 1": ("f1_binary", two_classes, by_sign(oracle.f1_score)),
    "precision": ("precision", two_classes, by_sign(oracle.precision_score)),
    "recall": ("recall", two_classes, by_sign(oracle.recall_score)),
    "mae": ("mae", numbers, lambda o, t: oracle.mean_absolute_error(t, o)),
    "mse": ("mse", numbers, lambda o, t: oracle.mean_squared_error(t, o)),
    "rmse": ("rmse", numbers, lambda o, t: oracle.root_mean_squared_error(t, o)),
    "r2": ("r2", numbers, lambda o, t: oracle.r2_score(t, o)),
}


@pytest.mark.parametrize(("name", "data", "wanted"), CASES.values(), ids=list(CASES))
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 200), max_size=4))
@settings(max_examples=15, deadline=None)
def test_merged_sums_give_the_metric_of_all_samples(
    name: str, data: Callable[[int], Arrays], wanted: Any, seed: int, cuts: list[int]
) -> None:
    outputs, targets = data(seed)
    assert merged(name, outputs, targets, cuts) == pytest.approx(wanted(outputs, targets))


@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 3000), max_size=4))
@settings(max_examples=25, deadline=None)
def test_auc_is_within_a_bin_of_the_exact_one(seed: int, cuts: list[int]) -> None:
    outputs, targets = two_classes(seed)
    exact = oracle.roc_auc_score(targets, outputs)
    assert merged("auc", outputs, targets, cuts) == pytest.approx(exact, abs=1 / BINS)
    columns = np.stack([-outputs / 2, outputs / 2], axis=1)
    assert merged("auc", columns, targets, cuts) == pytest.approx(exact, abs=1 / BINS)


def test_auc_of_overconfident_scores_is_as_good() -> None:
    outputs, targets = two_classes(3)
    exact = oracle.roc_auc_score(targets, outputs)
    for scale in (0.3, 30.0, 100.0):
        assert finish("auc", update("auc", outputs * scale, targets)) == pytest.approx(
            exact, abs=2 / BINS
        )
    assert finish("auc", update("auc", np.array([1e9, -1e9]), np.array([1, 0]))) == 1.0


def test_f1_by_hand() -> None:
    outputs = np.eye(3)[[0, 0, 1, 1, 2]]
    targets = np.array([0, 1, 1, 1, 0])
    # class 0: 1 right, 1 wrong, 1 missed; class 1: 2, 0, 1; class 2: 0, 1, 0
    assert update("f1", outputs, targets) == (1, 2, 0, 1, 0, 1, 1, 1, 0)
    assert finish("f1", (1, 2, 0, 1, 0, 1, 1, 1, 0)) == pytest.approx((1 / 2 + 4 / 5 + 0) / 3)


def test_a_denominator_of_zero_is_absent_not_zero() -> None:
    for name, metric in METRICS.items():
        length = metric.length or 6
        assert finish(name, (0.0,) * length) is None, name
    assert finish("dice", (0.0, 0.0)) is None
    assert finish("r2", (0.0, 12.0, 6.0, 3.0)) is None  # all targets alike
    assert finish("auc", update("auc", np.array([1.0, 2.0]), np.array([1, 1]))) is None
    assert finish("perplexity", (1e6, 1.0)) is None


def test_a_users_metric_is_a_ratio_of_its_own_name() -> None:
    assert metric_name("src.metrics:dice") == "dice"
    assert metric_name("accuracy") == "accuracy"
    assert finish("dice", (3.0, 4.0)) == 0.75


@given(data=st.data(), name=st.sampled_from([*METRICS, "dice"]))
@settings(max_examples=300, deadline=None)
def test_any_sums_of_the_right_length_are_finished(data: Any, name: str) -> None:
    length = getattr(METRICS.get(name), "length", 2) or 3 * data.draw(st.integers(2, 4))
    few = data.draw(st.lists(st.floats(), min_size=min(length, 12), max_size=min(length, 12)))
    value = finish(name, (few * length)[:length])
    assert value is None or np.isfinite(value)


def test_sums_that_no_samples_have_give_no_value() -> None:
    assert finish("rmse", (-1.0, 4.0)) is None
    assert finish("mse", (1e308, 1e-308)) is None
    assert finish("loss", (float("nan"), 1.0)) is None
    assert finish("accuracy", (-1.0, 4.0)) == -0.25  # as noise may make it


def test_sums_that_do_not_fit_are_refused() -> None:
    bad = {"accuracy": (1.0,), "f1": (1.0,) * 7, "auc": (1.0,) * 5, "dice": (1.0, 2.0, 3.0)}
    for name, sums in bad.items():
        assert not fits(name, sums), name
        with pytest.raises(ValueError, match=f"not the sums of the metric {name}"):
            finish(name, sums)
    assert not fits("f1", (-1.0, 0, 0, 0, 0, 0))
    assert not fits("accuracy", (-1.0, 2.0))
    with pytest.raises(ValueError, match="strict|shorter|longer"):
        add((1.0,), (1.0, 2.0))


def test_pictures_and_ignored_targets_count_by_element() -> None:
    outputs = np.zeros((2, 3, 4, 4))  # samples, classes, height, width
    outputs[:, 1] = 1
    targets = np.ones((2, 4, 4), int)
    targets[0, 0] = 2
    targets[1, 0] = -100
    assert update("accuracy", outputs, targets) == (24.0, 28.0)


def test_outputs_and_targets_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        update("mae", np.zeros(4), np.zeros(3))
    with pytest.raises(ValueError, match="expected one value per sample"):
        update("mae", np.zeros((4, 2)), np.zeros(4))
    with pytest.raises(ValueError, match="a target is class 3, the model has 0 to 2"):
        update("accuracy", np.zeros((2, 3)), np.array([0, 3]))
    with pytest.raises(ValueError, match="auc is for two classes"):
        update("auc", np.zeros((2, 3)), np.array([0, 1]))
    assert update("mse", np.ones((4, 1)), np.zeros(4)) == (4.0, 4.0)  # never broadcast
