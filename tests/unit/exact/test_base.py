"""What every method on sums promises: additive, nothing from no rows, finite states."""

import numpy as np
import pytest

from openfed.errors import OpenFedError, TaskError
from openfed.exact.base import done, labels, shapes, solve, table, total, values
from openfed.exact.bayes import NaiveBayes
from openfed.exact.boosting import Boosted
from openfed.exact.id3 import ID3
from openfed.exact.kmeans import KMeans
from openfed.exact.linear import Logistic, Ridge
from openfed.exact.pca import PCA
from openfed.exact.scores import Confusion, Scores
from openfed.exact.statistics import Covariance, Histogram, Moments, Quantiles
from openfed.exact.survival import KaplanMeier
from openfed.tensors.record import DTYPES

RNG = np.random.default_rng(5)
WIDE = RNG.normal(size=(60, 4)) * [1, 10, 0.1, 0] + [0, 5, 100, 7]
CLASS = np.repeat([0.0, 1.0, 2.0], 20)
BINARY = (RNG.random(60) < 0.4).astype(float)
LEVELS = RNG.integers(0, 3, (60, 4)).astype(float)
TIMES = np.stack([RNG.integers(0, 12, 60), BINARY], axis=1)
METHODS = {
    "moments": (Moments(4, 3), WIDE, CLASS),
    "covariance": (Covariance(4), WIDE, CLASS),
    "histogram": (Histogram(4, (-1.0, 0.0, 5.0, 100.0)), WIDE, CLASS),
    "quantiles": (Quantiles(4, (0.25, 0.5)), WIDE, CLASS),
    "naive bayes": (NaiveBayes(4, 3), WIDE, CLASS),
    "ridge": (Ridge(4, 1.0), WIDE, WIDE[:, 1] * 2 + RNG.normal(size=60)),
    "logistic": (Logistic(4, 2, tol=1e-9), WIDE, BINARY),
    "softmax": (Logistic(4, 3, tol=1e-9), WIDE, CLASS),
    "k-means": (KMeans(4, 3, starts=2), WIDE, CLASS),
    "pca": (PCA(4, 2), WIDE, CLASS),
    "id3": (ID3((3, 3, 3, 3), 3), LEVELS, CLASS),
    "boosted": (Boosted(4, trees=2, depth=2, bins=4), WIDE, BINARY),
    "boosted values": (Boosted(4, "squared", trees=2, depth=2, bins=4), WIDE, WIDE[:, 2]),
    "scores": (Scores(16), RNG.random((60, 1)), BINARY),
    "confusion": (Confusion(2), BINARY[::-1, None], BINARY),
    "kaplan-meier": (KaplanMeier(10), TIMES, None),
}


@pytest.mark.parametrize("name", METHODS)
def test_sums_add_up_and_no_rows_are_zeros_in_every_round(name):
    method, x, y = METHODS[name]
    state = method.start()
    for _ in range(200):
        if done(state):
            break
        whole = method.lift(state, x, y)
        cuts = [slice(0, 1), slice(1, 21), slice(21, 60), slice(60, 60)]
        parts = {str(i): method.lift(state, x[c], y if y is None else y[c])
                 for i, c in enumerate(cuts)}  # fmt: skip
        assert {key: part.shape for key, part in parts["3"].items()} == shapes(method, state)
        assert not any(part.any() for part in parts["3"].values())
        for key, each in total(parts).items():
            assert each.dtype == np.float64
            np.testing.assert_allclose(each, whole[key], rtol=1e-9, atol=1e-9 * len(x) * 1e4)
        state = method.step(state, total(parts))
        assert all(np.isfinite(each).all() for each in state.values())
        assert all(isinstance(each, np.ndarray) for each in state.values())
        assert all(each.dtype.name in DTYPES for each in state.values())
    assert done(state)


@pytest.mark.parametrize("name", METHODS)
def test_neither_lift_nor_step_changes_what_it_was_given(name):
    method, x, y = METHODS[name]
    state = method.start()
    while not done(state):
        for each in (x, *([] if y is None else [y]), *state.values()):
            each.setflags(write=False)
        sums = method.lift(state, x, y)
        for each in sums.values():
            each.setflags(write=False)
        state = method.step(state, sums)


def test_sums_are_added_in_the_order_of_names():
    sites = {"c": {"s": np.ones(1)}, "a": {"s": np.array([1e16])}, "b": {"s": np.array([-1e16])}}
    assert total(sites)["s"] == 1  # in the order given, the 1 would be lost
    assert sites["a"]["s"] == 1e16


@pytest.mark.parametrize(
    "other", [{"s": np.ones(3)}, {"t": np.ones(2)}, {"s": np.ones(2), "t": np.ones(2)}]
)
def test_sums_of_other_shapes_are_refused_by_name(other):
    with pytest.raises(OpenFedError, match="K54.*ward and clinic"):
        total({"clinic": {"s": np.ones(2)}, "ward": other})
    with pytest.raises(OpenFedError, match="K54"):
        total({})


@pytest.mark.parametrize(
    "x", [np.ones(3), np.ones((3, 3)), [[1.0, np.nan]], [[np.inf, 1.0]], np.ones((1, 1, 2))]
)
def test_what_is_no_table_is_refused(x):
    with pytest.raises(TaskError, match="K50"):
        table(x, 2)


def test_labels_are_whole_and_in_range():
    assert labels(np.array([0.0, 2.0]), 2, 3).tolist() == [0, 2]
    for wrong in ([0, 3], [0, -1], [0, 0.5]):
        with pytest.raises(TaskError, match="K51.*0 to 2"):
            labels(np.array(wrong), 2, 3)
    for wrong in (None, np.ones(3), np.ones((2, 1)), np.array([0, np.nan])):
        with pytest.raises(TaskError, match="K50"):
            values(wrong, 2)


def test_solve_says_how_many_rounds_it_took():
    method, x, y = METHODS["pca"]
    state, rounds = solve(method, {"a": (x, y)}, 10)
    assert rounds == 2 and done(state)
    state, rounds = solve(method, {"a": (x, y)}, 1)
    assert rounds == 1 and not done(state)


EMPTY = [name for name in METHODS if name not in ("histogram", "moments", "covariance",
                                                  "confusion", "kaplan-meier")]  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_no_row_at_any_site_is_an_error_for_a_person(name):
    method, x, y = METHODS[name]
    none = (x[:0], None if y is None else y[:0])
    with pytest.raises(OpenFedError, match="K52"):
        solve(method, {"a": none, "b": none}, 3)
