"""Ten sites train softmax regression on digits, three of them hostile (of 15 for Bulyan)."""

from functools import cache, partial

import numpy as np
import pytest
from sklearn.datasets import load_digits

from openfed.strategy.clipping import centred_clip, clip
from openfed.strategy.reduce import reduce_updates
from tests.unit.strategy.aggregating import given_updates, methods

pytestmark = pytest.mark.slow

HOSTILE, ROUNDS, RATE, BATCH = 3, 40, 0.2, 16


@cache
def digits():
    images, labels = load_digits(return_X_y=True)
    return np.c_[images / 16, np.ones(len(images))], labels


def train(model, x, y, rng):
    """One epoch of SGD on the mean cross-entropy; the change of the model."""
    trained = model.copy()
    order = rng.permutation(len(x))
    for some in np.split(order, range(BATCH, len(order), BATCH)):
        scores = np.exp(x[some] @ trained)
        slope = scores / scores.sum(axis=1, keepdims=True)
        slope[np.arange(len(some)), y[some]] -= 1
        trained -= RATE * x[some].T @ slope / len(some)
    return trained - model


def noise(update, rng):
    """As random as can be, four times as long."""
    drawn = rng.normal(size=update.shape)
    return drawn * 4 * np.linalg.norm(update) / np.linalg.norm(drawn)


ATTACKS = {
    "none": lambda update, rng: update,
    "sign flip": lambda update, rng: -update,
    "-4x flip": lambda update, rng: -4 * update,
    "noise": noise,
    "label flip": lambda update, rng: update,  # the attack is on its data
}


def screen_and_rule(name, last):
    if name == "norm clipping":
        return partial(clip, norm=0.6), None
    if name == "centred clipping":
        return partial(centred_clip, radius=0.1, center={"w": last}, steps=5), None
    return methods(HOSTILE)[name]


@cache
def accuracy(name, attack):
    """Percent of 400 digits that no site has, after all rounds."""
    (x, y), rng = digits(), np.random.default_rng(0)
    order = rng.permutation(len(x))
    sites = np.array_split(order[400:], 15 if name == "bulyan" else 10)
    model, last = np.zeros((2, x.shape[1], 10))
    for _ in range(ROUNDS):
        updates = []
        for index, site in enumerate(sites):
            hostile = index < HOSTILE
            labels = 9 - y[site] if hostile and attack == "label flip" else y[site]
            update = train(model, x[site], labels, rng)
            updates.append({"w": ATTACKS[attack](update, rng) if hostile else update})
        weighted, signature = given_updates(updates)
        screen, rule = screen_and_rule(name, last)
        kept = screen(weighted, signature) if screen else weighted
        last = reduce_updates(kept, signature, rule)["w"]
        model = model + last
    return float(100 * np.mean((x[order[:400]] @ model).argmax(axis=1) == y[order[:400]]))


ROBUST = sorted({*methods(HOSTILE), "centred clipping"} - {"mean"})


@pytest.mark.parametrize("name", ROBUST)
def test_a_robust_rule_loses_less_than_four_points(name):
    found = {attack: accuracy(name, attack) for attack in ATTACKS}
    assert found["none"] > 90
    assert min(found.values()) > found["none"] - 4, found


def test_norm_clipping_alone_slows_an_attack_and_does_not_stop_it():
    found = {attack: accuracy("norm clipping", attack) for attack in ATTACKS}
    assert found["none"] > 90 and min(found.values()) > found["none"] - 8, found


def test_four_times_the_flip_takes_the_mean():
    assert accuracy("mean", "none") > 90 > 40 > accuracy("mean", "-4x flip")
