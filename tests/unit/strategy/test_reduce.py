"""The formula of the reduction: by hand, against numpy, and whatever the block size."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfed.strategy import reduce as module
from openfed.strategy.base import weight_of
from openfed.strategy.reduce import (
    Weighted,
    add,
    difference,
    reduce_updates,
    update_signature,
)
from openfed.tensors.record import Kind, Spec, signature_of


class Arrays:
    """An update in memory."""

    def __init__(self, **tensors):
        self.tensors = tensors

    def read(self, name, start, out):
        out[:] = self.tensors[name].reshape(-1)[start : start + out.size]


def reduced(updates, weights):
    signature = signature_of(updates[0])
    sources = [Weighted(Arrays(**u), w) for u, w in zip(updates, weights, strict=True)]
    return reduce_updates(sources, signature)


def test_by_hand():
    one, two = np.float32([1, -2, 4]), np.float32([4, 1, -2])
    got = reduced([{"w": one}, {"w": two}], [100, 50])
    assert got["w"].tolist() == [2.0, -1.0, 2.0]
    assert got["w"].dtype == np.float32


def test_integers_and_booleans_take_the_largest():
    got = reduced(
        [{"i": np.array([1, 9]), "b": np.array([False, True])},
         {"i": np.array([5, -9]), "b": np.array([False, False])}], [1, 1000],
    )  # fmt: skip
    assert got["i"].tolist() == [5, 9]
    assert got["b"].tolist() == [False, True]


@given(
    st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=5, max_size=5), min_size=1, max_size=6
    ),
    st.integers(1, 7),
)
def test_bit_equal_to_the_formula_whatever_the_block(rows, block):
    weights = [float(3 * i + 1) for i in range(len(rows))]
    updates = [{"w": np.float32(row)} for row in rows]
    old, module.BLOCK = module.BLOCK, block
    try:
        got = reduced(updates, weights)["w"]
    finally:
        module.BLOCK = old
    acc = np.float32(weights[0]) * updates[0]["w"]
    for update, weight in zip(updates[1:], weights[1:], strict=True):
        acc = acc + np.float32(weight) * update["w"]
    assert got.tobytes() == (acc / np.float32(sum(weights))).tobytes()


def test_many_blocks_equal_numpy():
    rng = np.random.default_rng(0)
    updates = [{"w": rng.normal(size=(500, 400))} for _ in range(3)]
    got = reduced(updates, [1, 2, 3])
    expected = np.average([u["w"] for u in updates], axis=0, weights=[1, 2, 3])
    np.testing.assert_allclose(got["w"], expected, rtol=1e-12)


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, np.nan], [1, np.inf]])
def test_weights_that_are_no_weights_are_refused(weights):
    with pytest.raises(ValueError):
        reduced([{"w": np.ones(1)}] * 2, weights)
    with pytest.raises(ValueError):
        reduce_updates([], ())


def test_an_update_is_the_difference_of_floats_and_the_value_of_integers():
    model = (
        Spec("f", "float32", (2,), Kind.FROZEN),
        Spec("half", "bfloat16", (1,)),
        Spec("i", "int64", (), Kind.BUFFER),
        Spec("w", "float32", (2,)),
    )
    base = {
        "f": np.ones(2, np.float32),
        "half": np.array([1.5], ml_dtypes.bfloat16),
        "i": np.array(3),
        "w": np.float32([1, 2]),
    }
    trained = {
        "half": np.array([2.0], ml_dtypes.bfloat16),
        "i": np.array(9),
        "w": np.float32([1.5, 1]),
    }
    update = difference(trained, base, model)
    assert {name: x.tolist() for name, x in update.items()} == {
        "half": [0.5],
        "i": 9,
        "w": [0.5, -1.0],
    }
    kinds = {spec.name: spec.kind for spec in model}
    assert signature_of(update, kinds) == update_signature(model)
    moved = add(base, update)
    assert moved["half"].dtype == ml_dtypes.bfloat16
    assert {n: x.tolist() for n, x in moved.items()} == {
        "f": [1, 1],
        "half": [2.0],
        "i": 9,
        "w": [1.5, 1.0],
    }
    assert signature_of(moved, kinds) == model


def test_weights_by_samples_capped_or_uniform():
    assert weight_of(70, "samples", {}) == 70
    assert weight_of(70, "samples", {"cap": None}) == 70
    assert weight_of(70, "samples", {"cap": 50}) == 50
    assert weight_of(30, "samples", {"cap": 50}) == 30
    assert weight_of(70, "uniform", {}) == 1
