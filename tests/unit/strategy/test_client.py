"""Both halves of methods that run at a site, too, against hand-computed tables."""

import numpy as np

from openfed.strategy.client import Correction, FedDyn, FedProx, MimeLite, Scaffold, Trained
from openfed.strategy.server import FedDyn as FedDynServer
from openfed.strategy.server import Scaffold as ScaffoldServer


def w(*values):
    return {"w": np.array(values)}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-15)


def test_fedprox_pulls_and_keeps_nothing():
    assert FedProx(0.5).correction({}, {}) == Correction(1.0, 0.5, {})
    assert FedProx(0.5).after({}, {}, Trained(w(1.0), {"w": 1.0})) == ({}, {})


def test_scaffold_from_nothing():
    """Three steps of 0.1 that moved by (-0.6, 0.3): the mean gradient was (2, -1)."""
    method, c = Scaffold(), w(0.0, 0.0)
    same(method.correction(c, {}).shift, w(0.0, 0.0))
    told, kept = method.after(c, {}, Trained(w(-0.6, 0.3), {"w": 0.3}))
    same(kept, w(2.0, -1.0))
    same(told, w(2.0, -1.0))


def test_scaffold_with_what_it_kept():
    """c = (1, 2), c_i = (3, -1); moved by (-1, 1) in steps of 0.5 in all: c_i - c + 2 = (4, -5)."""
    method, c, own = Scaffold(), w(1.0, 2.0), w(3.0, -1.0)
    same(method.correction(c, own).shift, w(-2.0, 3.0))
    told, kept = method.after(c, own, Trained(w(-1.0, 1.0), {"w": 0.5}))
    same(kept, w(4.0, -5.0))
    same(told, w(2.0, -2.0))  # c, and c_i's change of (1, -4)


def test_scaffold_without_a_step_changes_nothing():
    told, kept = Scaffold().after(w(1.0), w(3.0), Trained(w(0.0), {}))
    same(kept, w(3.0))
    same(told, w(1.0))


def test_scaffold_at_the_aggregator():
    delta = {"w": np.array([2.0]), "control/w": np.array([2.0])}
    _, move = ScaffoldServer(lr=0.5).step({}, delta, 0.25)
    same(move, {"w": np.array([1.0]), "control/w": np.array([0.5])})


def test_feddyn_adds_up_how_far_it_moved():
    method = FedDyn(0.5)
    assert method.correction({}, {}) == Correction(1.0, 0.5, {})
    _, own = method.after({}, {}, Trained(w(2.0, -4.0), {}))
    same(own, w(-1.0, 2.0))
    change = method.correction({}, own)
    assert (change.scale, change.pull) == (1.0, 0.5)
    same(change.shift, w(1.0, -2.0))
    told, own = method.after({}, own, Trained(w(1.0, 1.0), {}))
    assert told == {}
    same(own, w(-1.5, 1.5))


def test_feddyn_at_the_aggregator():
    """h = share * delta, then the model moves by delta + h."""
    server = FedDynServer()
    state = server.init(w(0.0))
    state, move = server.step(state, w(2.0), 0.5)
    same(state, {"h/w": np.array([1.0])})
    same(move, w(3.0))
    state, move = server.step(state, w(-1.0), 1.0)
    same(state, {"h/w": np.array([0.0])})
    same(move, w(-1.0))


def test_mimelite_descends_by_the_aggregators_momentum():
    method, m = MimeLite(0.75), w(4.0, -8.0)
    change = method.correction(m, {})
    assert (change.scale, change.pull) == (0.25, 0.0)
    same(change.shift, w(3.0, -6.0))
    told, kept = method.after(m, {}, Trained(w(9.0, 9.0), {"w": 1.0}, w(2.0, 4.0)))
    same(told, w(3.5, -5.0))
    assert kept == {}
