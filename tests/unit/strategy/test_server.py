"""Server optimisers, two steps each computed by hand from the papers' formulas."""

import math

import numpy as np
import pytest

from openfed.plan.choices import STRATEGIES as SETTINGS
from openfed.registry import STRATEGIES
from openfed.strategy.server import FedAdaptive, FedAvg, FedAvgM

PARAMS = {"w": np.zeros(2)}
FIRST, SECOND = {"w": np.array([1.0, -2.0])}, {"w": np.array([0.5, 2.0])}


def two_steps(strategy):
    state = strategy.init(PARAMS)
    state, one = strategy.step(state, FIRST, 1.0)
    _, two = strategy.step(state, SECOND, 1.0)
    return one["w"].tolist(), two["w"].tolist()


def test_fedavg_adds_the_update_as_it_is():
    assert two_steps(FedAvg()) == ([1.0, -2.0], [0.5, 2.0])


def test_momentum():
    assert two_steps(FedAvgM(lr=0.5, momentum=0.5)) == ([0.5, -1.0], [0.5, 0.5])


def by_hand(rule, lr, b1, b2, tau):
    moves = []
    for first, second in ((1.0, 0.5), (-2.0, 2.0)):
        m, v, moved = 0.0, tau**2, []
        for d in (first, second):
            m = b1 * m + (1 - b1) * d
            if rule == "adagrad":
                v = v + d * d
            elif rule == "adam":
                v = b2 * v + (1 - b2) * d * d
            else:
                v = v - (1 - b2) * d * d * math.copysign(1, v - d * d)
            moved.append(lr * m / (math.sqrt(v) + tau))
        moves.append(moved)
    return [list(column) for column in zip(*moves, strict=True)]


@pytest.mark.parametrize("rule", ["adagrad", "adam", "yogi"])
def test_adaptive_rules(rule):
    one, two = two_steps(FedAdaptive(rule, lr=0.1, beta1=0.8, beta2=0.9, tau=0.01))
    expected = by_hand(rule, 0.1, 0.8, 0.9, 0.01)
    np.testing.assert_allclose([one, two], expected, rtol=1e-12)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_step_keeps_dtypes_shapes_and_the_state_given(name):
    strategy = STRATEGIES[name]()
    params = {"w": np.zeros((3, 2), np.float32), "b": np.zeros((), np.float32)}
    state = strategy.init(params)
    before = {key: x.tobytes() for key, x in state.items()}
    new, move = strategy.step(state, {k: np.ones_like(x) for k, x in params.items()}, 1.0)
    assert {k: (x.dtype, x.shape) for k, x in move.items()} == {
        k: (x.dtype, x.shape) for k, x in params.items()
    }
    assert {key: x.tobytes() for key, x in state.items()} == before
    assert {k: (x.dtype, x.shape) for k, x in new.items()} == {
        k: (x.dtype, x.shape) for k, x in state.items()
    }


def test_every_strategy_of_the_plan_s_table_is_here_and_takes_its_settings():
    assert set(STRATEGIES) == set(SETTINGS)
