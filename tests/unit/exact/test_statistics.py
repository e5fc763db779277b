"""Moments, covariance, histograms and quantiles: by hand, against numpy, and suppressed."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from openfed.exact.base import solve
from openfed.exact.statistics import (
    Covariance,
    Histogram,
    Moments,
    Quantiles,
    correlation,
    floats_of,
    keys_of,
)

TABLES = ("breast_cancer", "digits", "diabetes", "wine")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("sites", [2, 5])
def test_moments_are_those_of_the_pooled_table(real, uneven, name, sites):
    x, y = real(name)
    state, rounds = solve(Moments(x.shape[1]), {k: (v, None) for k, (v, _) in
                                               uneven(x, y, sites).items()}, 9)  # fmt: skip
    assert rounds == 2 and state["n"] == len(x)
    np.testing.assert_allclose(state["mean"][0], x.mean(0), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(state["variance"][0], x.var(0), rtol=1e-13)


def test_moments_by_hand_per_group():
    x = np.array([[1.0, 5], [3, 5], [10, 0]])
    sites = {"a": (x[:1], np.array([0])), "b": (x[1:], np.array([0, 2]))}
    state, _ = solve(Moments(2, groups=4), sites, 2)
    assert state["n"].tolist() == [2, 0, 1, 0]
    assert state["mean"].tolist() == [[2, 5], [0, 0], [10, 0], [0, 0]]
    assert state["variance"].tolist() == [[1, 0], [0, 0], [0, 0], [0, 0]]


def test_a_variance_about_another_centre_is_corrected():
    x = np.array([[1.0], [3], [8]])
    method = Moments(1)
    state = method.step(method.start(), method.lift(method.start(), x, None))
    assert state["mean"] == 4 and state["variance"] == 26 / 3 and not state["done"]


def test_variance_is_right_far_from_zero():
    x = 1e9 + np.random.default_rng(0).normal(size=(1000, 1))
    state, _ = solve(Moments(1), {"a": (x[:300], None), "b": (x[300:], None)}, 2)
    np.testing.assert_allclose(state["variance"][0], (x - 1e9).var(0), rtol=1e-9)
    naive = (x**2).mean() - x.mean() ** 2
    assert abs(naive - 1) > 1  # what plain sums of squares would have told


def test_small_groups_are_suppressed_at_the_site():
    x = np.arange(10.0)[:, None]
    group = np.array([0, 0, 0, 1, 1, 0, 0, 0, 0, 1])
    method = Moments(1, groups=2, least=3)
    sums = method.lift(method.start(), x[:5], group[:5])
    assert sums["n"].tolist() == [3, 0] and sums["suppressed"].tolist() == [0, 1]
    assert sums["first"].tolist() == [[3], [0]] and sums["second"].tolist() == [[5], [0]]
    state, _ = solve(method, {"a": (x[:5], group[:5]), "b": (x[5:], group[5:])}, 2)
    assert state["n"].tolist() == [7, 0] and state["suppressed"].tolist() == [0, 2]
    assert state["mean"][0, 0] == pytest.approx((0 + 1 + 2 + 5 + 6 + 7 + 8) / 7, rel=1e-15)


def test_a_small_site_is_suppressed_in_covariance_and_quantiles():
    x = np.arange(8.0)[:, None]
    sites = {"a": (x[:2], None), "b": (x[2:], None)}
    state, _ = solve(Covariance(1, least=3), sites, 2)
    assert (state["n"], state["suppressed"], state["mean"][0]) == (6, 1, 4.5)
    found, _ = solve(Quantiles(1, (0.0,), least=3), sites, 8)
    assert found["n"] == 6 and found["low"] > 0


@pytest.mark.parametrize("name", TABLES)
def test_correlation_is_numpys(real, uneven, name):
    x, y = real(name)
    state, _ = solve(Covariance(x.shape[1]), uneven(x, y, 4), 2)
    with np.errstate(all="ignore"):
        expected = np.corrcoef(x.T)
    np.testing.assert_allclose(correlation(state["covariance"]), expected, rtol=0, atol=1e-12)
    assert np.isnan(expected).any() == (name == "digits")


def test_histogram_by_hand_with_what_lies_outside_and_suppressed_bins():
    x = np.array([[-1.0], [0], [0.5], [1], [1.5], [2], [9]])
    method = Histogram(1, (0.0, 1.0, 2.0))
    state, _ = solve(method, {"a": (x[:3], None), "b": (x[3:], None)}, 1)
    assert state["counts"].tolist() == [[1, 2, 2, 2]]
    state, _ = solve(Histogram(1, (0.0, 1.0, 2.0), least=2), {"a": (x[:3], None),
                                                            "b": (x[3:6], None)}, 1)  # fmt: skip
    assert state["counts"].tolist() == [[0, 2, 2, 0]] and state["suppressed"].tolist() == [2]


FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(FLOATS, min_size=1, max_size=30))
def test_keys_have_the_order_of_floats_and_lead_back(found):
    x = np.array(found)
    keys = keys_of(x)
    np.testing.assert_array_equal(floats_of(keys), x)
    assert ((keys[:, None] < keys) == (x[:, None] < x)).all()


@given(st.lists(FLOATS, min_size=1, max_size=40), st.integers(0, 40))
@example([5e-324], 0)
def test_order_statistics_are_exact_to_the_bit(found, cut):
    x = np.array(found)[:, None]
    state, rounds = solve(
        Quantiles(1, (0.0, 0.5, 1.0)), {"a": (x[:cut], None), "b": (x[cut:], None)}, 99
    )
    low, _, high = state["quantile"][0]
    assert (low, high) == (x.min(), x.max()) and rounds == 8
    assert state["n"] == len(x)
    if len(x) % 2:
        assert state["quantile"][0, 1] == np.sort(x[:, 0])[len(x) // 2]


@pytest.mark.parametrize("name", TABLES)
def test_quantiles_are_numpys(real, uneven, name):
    x, y = real(name)
    wanted = (0.0, 0.05, 0.25, 0.5, 0.9, 1.0)
    state, _ = solve(Quantiles(x.shape[1], wanted), uneven(x, y, 3), 99)
    expected = np.quantile(x, wanted, axis=0).T
    np.testing.assert_allclose(state["quantile"], expected, rtol=1e-14, atol=1e-17)


def test_fewer_digits_say_how_far_a_quantile_is_known(real):
    x, _ = real("breast_cancer")
    state, rounds = solve(Quantiles(30, (0.3,), digits=4), {"a": (x, None)}, 99)
    exact = np.quantile(x, 0.3, axis=0)
    assert rounds == 4
    assert (state["low"][:, 0] <= exact).all() and (exact <= state["high"][:, 0]).all()
    np.testing.assert_allclose(state["low"], state["high"], rtol=2e-6)


def test_no_digit_is_followed_that_fewer_rows_share():
    x = np.array([1.0, 1.25, 1.5, 1.75, 1e9])[:, None]
    state, rounds = solve(Quantiles(1, (0.5, 1.0), least=3), {"a": (x, None)}, 99)
    (low, low_all), (high, high_all) = state["low"][0], state["high"][0]
    assert low <= 1.5 <= high and low_all <= 1e9 <= high_all
    for start, end in ((low, high), (low_all, high_all)):
        assert ((x >= start) & (x <= end)).sum() >= 3
    assert rounds < 8
