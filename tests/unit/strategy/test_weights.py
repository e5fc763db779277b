"""FedNova and q-FedAvg: by hand, against simulated steps and the papers' formulas."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfed.errors import OpenFedError
from openfed.strategy.reduce import reduce_updates
from openfed.strategy.weights import fednova, qfedavg, step_mass
from openfed.tensors.record import Kind
from tests.unit.strategy.aggregating import given_updates, of_rows

exactly = partial(np.testing.assert_allclose, rtol=0, atol=1e-7)


def simulated(steps, momentum, proximal):
    """How far that many steps go along gradients of 1 with a learning rate of 1."""
    place, velocity = 0.0, 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1.0
        place -= velocity + proximal * place
    return -place


@pytest.mark.parametrize("steps", [1, 2, 5, 40])
@pytest.mark.parametrize(("momentum", "proximal"), [(0, 0), (0.9, 0), (0.5, 0), (0, 0.1), (0, 0.5)])
def test_the_mass_is_what_the_steps_make(steps, momentum, proximal):
    got = step_mass(steps, momentum=momentum, proximal=proximal)
    np.testing.assert_allclose(got, simulated(steps, momentum, proximal), rtol=1e-12)


def test_masses_by_hand():
    assert step_mass(7) == 7
    exactly(step_mass(2, momentum=0.5), 2.5)  # 1.5 for the first gradient, 1 for the second
    exactly(step_mass(3, proximal=0.5), 1.75)
    for wrong in ({"momentum": 1.0}, {"momentum": 0.5, "proximal": 0.5}, {"proximal": -0.1}):
        with pytest.raises(ValueError):
            step_mass(3, **wrong)


def test_fednova_by_hand():
    # p = 1/4, 3/4; masses 2, 10; t = 8: 8 * (1/4 * 4 / 2 + 3/4 * -10 / 10) = -2
    got = of_rows([[4.0], [-10.0]], partial(fednova, masses=[2, 10]), None, [1.0, 3.0])
    exactly(got, [-2])


def test_a_site_that_works_more_pulls_no_more():
    gradients, masses = np.array([[1.0, 2], [-3, 1], [0, 5]]), np.array([1, 8, 30])
    got = of_rows(gradients * masses[:, None], partial(fednova, masses=masses.tolist()))
    exactly(got, masses.mean() * gradients.mean(axis=0))


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=5))
def test_fednova_with_equal_work_is_fedavg(points):
    points = np.array(points)
    got = of_rows(points, partial(fednova, masses=[9.0] * len(points)))
    np.testing.assert_allclose(got, points.mean(axis=0), rtol=1e-12, atol=1e-9)


def test_qfedavg_by_hand():
    # L = 1, F = 1 and 4, q = 1: (1 * -1 + 4 * -2) / ((1 + 1) + (4 + 4))
    screen = partial(qfedavg, losses=[1, 4], q=1, rate=1)
    exactly(of_rows([[-1.0], [-2.0]], screen), [-0.9])


def paper(x, losses, q, rate, p):
    """Algorithm 2 for sites with shares p: the move of the model."""
    smooth, gradient = 1 / rate, -x / rate
    step = np.float64(losses)[:, None] ** q * gradient
    h = q * np.float64(losses) ** (q - 1) * np.square(gradient).sum(axis=1) + (
        smooth * np.float64(losses) ** q
    )
    return -(p[:, None] * step).sum(axis=0) / (p * h).sum()


@given(st.integers(0, 99), st.sampled_from([0.0, 0.1, 1.0, 2.0, 5.0]), st.floats(1e-3, 10))
def test_qfedavg_is_the_paper_s_formula(seed, q, rate):
    rng = np.random.default_rng(seed)
    x, losses, weights = rng.normal(size=(4, 6)), rng.uniform(0.1, 3, 4), rng.uniform(1, 9, 4)
    screen = partial(qfedavg, losses=losses.tolist(), q=q, rate=rate)
    got = of_rows(x, screen, None, weights.tolist())
    exactly(got, paper(x, losses, q, rate, weights / weights.sum()))
    if q == 0:
        exactly(got, np.average(x, axis=0, weights=weights))


def test_a_larger_loss_pulls_more():
    x = [[1.0], [-1.0]]
    for q, pull in ((0, 0.0), (1, 0.3), (5, 0.8)):
        share = of_rows(x, partial(qfedavg, losses=[3, 1], q=q, rate=100.0))[0]
        assert share >= pull
    assert np.isfinite(of_rows(x, partial(qfedavg, losses=[0, 0], q=0.5, rate=0.1))).all()


@pytest.mark.parametrize(
    "screen",
    [partial(fednova, masses=[2, 10]), partial(qfedavg, losses=[1, 4], q=1, rate=0.1)],
)
def test_only_parameters_are_scaled_or_measured(screen):
    entries = [
        {"w": np.float32([1, 2]), "running": np.float32([3]), "count": np.array([k])}
        for k in (5, 6)
    ]
    updates, signature = given_updates(entries)
    kinds = {"running": Kind.BUFFER, "count": Kind.BUFFER}
    signature = tuple(replace(spec, kind=kinds.get(spec.name, spec.kind)) for spec in signature)
    got = reduce_updates(screen(updates, signature), signature)
    assert got["running"] == [3] and got["count"] == [6]
    alone, only = given_updates([{"w": entry["w"]} for entry in entries])
    expected = reduce_updates(screen(alone, only), only)["w"]
    np.testing.assert_array_equal(got["w"], expected)
    assert (expected != [1, 2]).all()


@pytest.mark.parametrize("values", [[1], [1, 0.5], [1, np.nan], [np.inf, 1], [-1, 1]])
def test_missing_or_impossible_numbers_are_refused(values):
    with pytest.raises(OpenFedError, match="F12"):
        of_rows([[1.0], [2.0]], partial(fednova, masses=values))
    if 0.5 not in values:
        with pytest.raises(OpenFedError, match="F12"):
            of_rows([[1.0], [2.0]], partial(qfedavg, losses=values, q=1, rate=0.1))


def test_a_refusal_names_the_update():
    with pytest.raises(OpenFedError, match="update 2 of 2 .* local steps of at least 1, got 0"):
        of_rows([[1.0], [2.0]], partial(fednova, masses=[3, 0]))
    with pytest.raises(OpenFedError, match="F11"):
        of_rows([[1e300], [2.0]], partial(qfedavg, losses=[1, 1], q=1, rate=0.1))
