"""The formula of the reduction: by hand, against numpy, and whatever the block size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfed.store.scratch import scratch
from openfed.strategy.base import weight_of
from openfed.strategy.reduce import Weighted, coordinate_median, reduce_updates
from openfed.tensors.frame import CHUNK, Held
from openfed.tensors.record import Record, signature_of


def reduced(updates, weights, *about):
    signature = signature_of(updates[0])
    sources = [Weighted(Held(Record(u)), w) for u, w in zip(updates, weights, strict=True)]
    return reduce_updates(sources, signature, *about)


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


ROWS = st.lists(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=5, max_size=5), min_size=1, max_size=6
)


def formula(updates, weights):
    """The one of the module, on whole arrays."""
    acc = np.float32(weights[0]) * updates[0]
    for update, weight in zip(updates[1:], weights[1:], strict=True):
        acc = acc + np.float32(weight) * update
    return acc / np.float32(sum(weights))


@given(ROWS)
def test_bit_equal_to_the_formula(rows):
    weights = [float(3 * i + 1) for i in range(len(rows))]
    updates = [np.float32(row) for row in rows]
    got = reduced([{"w": update} for update in updates], weights)["w"]
    assert got.tobytes() == formula(updates, weights).tobytes()


def test_bit_equal_to_the_formula_over_many_chunks_and_in_scratch_memory(tmp_path):
    rng = np.random.default_rng(0)
    updates = [rng.normal(size=(3, CHUNK - 7)).astype(np.float32) for _ in range(3)]
    expected = formula(updates, [1, 2, 3]).tobytes()
    for allocate in ((), (None, lambda signature: scratch(tmp_path, signature))):
        got = reduced([{"w": update} for update in updates], [1, 2, 3], *allocate)
        assert got["w"].tobytes() == expected


def test_doubles_are_averaged_as_doubles():
    rng = np.random.default_rng(0)
    updates = [{"w": rng.normal(size=(500, 400))} for _ in range(3)]
    got = reduced(updates, [1, 2, 3])
    expected = np.average([u["w"] for u in updates], axis=0, weights=[1, 2, 3])
    np.testing.assert_allclose(got["w"], expected, rtol=1e-12)


# -- the median ------------------------------------------------------------------------------------


def test_the_median_by_hand():
    rows = [[1, 9, -1], [5, 9, 4], [100, 0, -7]]
    got = reduced([{"w": np.float32(row)} for row in rows], [1, 1, 100], coordinate_median)
    assert got["w"].tolist() == [5, 9, -1]  # the weights do not count
    even = reduced([{"w": np.float32(row)} for row in rows[:2]], [1, 1], coordinate_median)
    assert even["w"].tolist() == [3, 9, 1.5]


@given(ROWS, st.sampled_from([np.float32, np.float64]))
def test_the_median_is_numpy_s_for_any_number_of_updates(rows, kind):
    updates = [np.array(row, kind) for row in rows]
    got = reduced([{"w": u} for u in updates], [1.0] * len(rows), coordinate_median)["w"]
    assert got.dtype == kind and np.isfinite(got).all()
    np.testing.assert_allclose(got, np.median(updates, axis=0), rtol=1e-6, atol=1e-37)
    tiny = 1e-37  # halves of denormals are rounded
    low, high = np.min(updates, axis=0), np.max(updates, axis=0)
    assert ((low - tiny <= got) & (got <= high + tiny)).all()


@given(st.permutations(range(5)))
def test_the_median_does_not_depend_on_the_order(order):
    rng = np.random.default_rng(1)
    updates = [{"w": rng.normal(size=9).astype(np.float32)} for _ in range(5)]
    one = reduced(updates, [1.0] * 5, coordinate_median)["w"]
    other = reduced([updates[i] for i in order], [1.0] * 5, coordinate_median)["w"]
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_the_median_over_many_chunks(count):
    rng = np.random.default_rng(2)
    updates = [{"w": rng.normal(size=2 * CHUNK + 3).astype(np.float32)} for _ in range(count)]
    got = reduced(updates, [1.0] * count, coordinate_median)["w"]
    np.testing.assert_allclose(got, np.median([u["w"] for u in updates], axis=0), rtol=1e-6)


def test_the_median_of_large_values_does_not_overflow():
    most = np.float32(3.4e38)
    got = reduced([{"w": np.array([most])}] * 2, [1, 1], coordinate_median)["w"]
    assert np.isfinite(got).all() and got[0] == most


def test_integers_take_the_largest_under_the_median_too():
    updates = [{"i": np.array(i), "w": np.float32([i])} for i in (4, 9, 1)]
    got = reduced(updates, [1, 1, 1], coordinate_median)
    assert got["i"] == 9 and got["w"] == [4]


# -- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, np.nan], [1, np.inf]])
def test_weights_that_are_no_weights_are_refused(weights):
    with pytest.raises(ValueError):
        reduced([{"w": np.ones(1)}] * 2, weights)
    with pytest.raises(ValueError):
        reduce_updates([], ())


def test_weights_by_samples_capped_or_uniform():
    assert weight_of(70, "samples", {}) == 70
    assert weight_of(70, "samples", {"cap": None}) == 70
    assert weight_of(70, "samples", {"cap": 50}) == 50
    assert weight_of(30, "samples", {"cap": 50}) == 30
    assert weight_of(70, "uniform", {}) == 1
