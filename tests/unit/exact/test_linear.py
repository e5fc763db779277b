"""Ridge and logistic regression: by hand, and equal to the pooled answer."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as Reference
from sklearn.preprocessing import StandardScaler

from openfed.errors import OpenFedError
from openfed.exact.base import solve
from openfed.exact.linear import Logistic, Ridge

EPS = np.finfo(float).eps


def test_ridge_by_hand():
    x, y = np.array([[0.0], [1], [2]]), np.array([1.0, 3, 5])
    state, rounds = solve(Ridge(1, alpha=2.0), {"a": (x[:1], y[:1]), "b": (x[1:], y[1:])}, 9)
    assert rounds == 1  # sum of (x - 1)(y - 3) is 4, of (x - 1)^2 is 2: w = 4 / (2 + 2)
    assert state["coef"].tolist() == [1.0] and state["intercept"] == 2.0
    state, _ = solve(Ridge(1, alpha=3.0, standardise=True), {"a": (x, y)}, 1)
    scale = np.sqrt(2 / 3)  # of z: 4 / scale / (3 + 3)
    np.testing.assert_allclose(state["coef"], 4 / scale / 6 / scale, rtol=1e-15)


def by_least_squares(x, y, alpha, standardise):
    """The answer by orthogonal decomposition of centred rows, and the condition number."""
    centred, scale = x - x.mean(0), np.ones(x.shape[1])
    if standardise:
        scale = np.where(x.std(0) > 0, x.std(0), 1.0)
    z = np.vstack([centred / scale, np.sqrt(alpha) * np.eye(x.shape[1])])
    found = np.linalg.lstsq(z, np.r_[y - y.mean(), np.zeros(x.shape[1])], rcond=None)[0]
    return found / scale, np.linalg.cond(z.T @ z)


@pytest.mark.parametrize("name", ["breast_cancer", "digits", "diabetes", "wine"])
@pytest.mark.parametrize(("alpha", "standardise"), [(1.0, True), (1e-3, True), (1.0, False)])
def test_ridge_is_the_pooled_answer(real, uneven, name, alpha, standardise):
    x, y = real(name)
    method = Ridge(x.shape[1], alpha, standardise)
    state, _ = solve(method, uneven(x, y, 5), 1)
    expected, condition = by_least_squares(x, y, alpha, standardise)
    error = np.linalg.norm(state["coef"] - expected) / np.linalg.norm(expected)
    assert error <= 100 * EPS * condition
    z = StandardScaler().fit_transform(x) if standardise else x
    pooled = Reference(alpha).fit(z, y).predict(z)
    np.testing.assert_allclose(method.predict(state, x), pooled, atol=1e-8 * np.abs(y).max())


def test_a_constant_column_gets_nothing_and_dependent_ones_need_a_penalty():
    rng = np.random.default_rng(0)
    x = np.hstack([rng.normal(size=(50, 1)), np.full((50, 1), 0.1)])
    y = 3 * x[:, 0] + 1
    state, _ = solve(Ridge(2, 0.0, standardise=True), {"a": (x[:1], y[:1]), "b": (x[1:], y[1:])}, 1)
    np.testing.assert_allclose(state["coef"], [3, 0], rtol=1e-13)
    twice = np.hstack([x, x])
    with pytest.raises(OpenFedError, match="K53"):
        solve(Ridge(4, 0.0), {"a": (twice, y)}, 1)
    state, _ = solve(Ridge(4, 1e-6), {"a": (twice, y)}, 1)
    np.testing.assert_allclose(state["coef"], [1.5, 0, 1.5, 0], rtol=1e-6)


@pytest.mark.parametrize("name", ["breast_cancer", "digits", "wine"])
@pytest.mark.parametrize("penalty", [1.0, 0.01, 30.0])
def test_newton_is_scikit_learns(real, standard, uneven, name, penalty):
    x, y = real(name)
    x, classes = standard(x), len(set(y))
    method = Logistic(x.shape[1], classes, penalty)
    state, rounds = solve(method, uneven(x, y, 4), 40)
    expected = LogisticRegression(
        C=1 / penalty, solver="newton-cholesky", tol=1e-12, max_iter=200
    ).fit(x, y)
    assert rounds < 25
    np.testing.assert_allclose(state["coef"], expected.coef_, atol=1e-6)
    np.testing.assert_allclose(state["intercept"], expected.intercept_, atol=1e-6)
    p = method.probabilities(state, x)
    np.testing.assert_allclose(p, expected.predict_proba(x), atol=1e-6)
    assert (method.predict(state, x) == expected.predict(x)).all()


def test_newton_on_columns_of_very_different_sizes(real, uneven):
    x, y = real("wine")
    method = Logistic(13, 3, 1.0)
    state, rounds = solve(method, uneven(x, y, 3), 60)
    p = method.probabilities(state, x) - np.eye(3)[y.astype(int)]
    gradient = p.T @ x + state["coef"]  # 0 where the objective is least
    assert rounds < 60 and np.abs(gradient / np.abs(x).sum(0)).max() < 1e-9
    assert np.abs(p.sum(0)).max() < 1e-7 * len(x)


def test_the_objective_of_two_classes_by_hand():
    """A column of zeros: only the intercept is left, and that is the log odds."""
    x, y = np.zeros((4, 1)), np.array([0.0, 1, 1, 1])
    state, _ = solve(Logistic(1), {"a": (x[:1], y[:1]), "b": (x[1:], y[1:])}, 30)
    np.testing.assert_allclose(state["intercept"], [np.log(3)], rtol=1e-14)
    np.testing.assert_allclose(state["loss"], 3 * np.log(4 / 3) + np.log(4), rtol=1e-14)
    assert state["coef"] == 0


def test_a_step_that_goes_too_far_is_halved():
    """The least is at 0; from 3, a full Newton step leads to -7 (by hand: 0.905 / 0.0904)."""
    x, y = np.array([[1.0], [1], [-1], [-1]]), np.array([1.0, 0, 1, 0])
    method, losses, halved = Logistic(1, penalty=1e-4), [], 0
    state = {**method.start(), "coef": np.array([[3.0]])}
    for _ in range(100):
        if state["done"]:
            break
        state = method.step(state, method.lift(state, x, y))
        halved += 0 < float(state["share"]) < 1
        losses.append(float(state["loss"]))
    p = method.probabilities(state, x)[:, 1] - y
    assert state["done"] and halved and losses == sorted(losses, reverse=True)
    assert abs(p.sum()) < 1e-12 and abs(p @ x + 1e-4 * state["coef"]) < 1e-12


def test_what_has_no_minimum_is_told():
    x = np.array([[-2.0], [-1], [1], [2]])
    y = np.array([0.0, 0, 1, 1])
    with pytest.raises(OpenFedError, match="K53.*separates"):
        solve(Logistic(1, penalty=0.0), {"a": (x, y)}, 99)
    with pytest.raises(OpenFedError, match="K52.*class 1"):
        solve(Logistic(1), {"a": (x[:2], y[:2])}, 9)
    with pytest.raises(OpenFedError, match="K53"):
        solve(Logistic(2, penalty=0.0), {"a": (np.hstack([x, x]), np.array([0.0, 1, 0, 1]))}, 9)
