"""What an update is: by hand, in every dtype, and added to the model again."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfed.tensors.record import DTYPES, FLOATING, Kind, Spec, signature_of
from openfed.tensors.update import accumulator, add, difference, travelling, update_signature

MODEL = (
    Spec("f", "float32", (2,), Kind.FROZEN),
    Spec("half", "bfloat16", (1,)),
    Spec("i", "int64", (), Kind.BUFFER),
    Spec("w", "float32", (2,)),
    Spec("wide", "float64", (1,)),
)
BASE = {
    "f": np.ones(2, np.float32),
    "half": np.array([1.5], ml_dtypes.bfloat16),
    "i": np.array(3),
    "w": np.float32([1, 2]),
    "wide": np.array([2.0**-900]),
}
TRAINED = {
    "half": np.array([2.0], ml_dtypes.bfloat16),
    "i": np.array(9),
    "w": np.float32([1.5, 1]),
    "wide": np.array([3 * 2.0**-900]),
}


def test_an_update_is_the_difference_of_floats_and_the_value_of_integers():
    update = {name: difference(x, BASE[name]) for name, x in TRAINED.items()}
    assert {name: x.tolist() for name, x in update.items()} == {
        "half": [0.5],
        "i": 9,
        "w": [0.5, -1.0],
        "wide": [2.0**-899],
    }
    kinds = {spec.name: spec.kind for spec in MODEL}
    assert signature_of(update, kinds) == update_signature(MODEL)
    moved = add(BASE, update)
    assert {name: x.tolist() for name, x in moved.items()} == {
        "f": [1, 1],
        "half": [2.0],
        "i": 9,
        "w": [1.5, 1.0],
        "wide": [3 * 2.0**-900],
    }
    assert signature_of(moved, kinds) == MODEL


def test_adding_leaves_the_model_as_it_was():
    before = {name: x.tobytes() for name, x in BASE.items()}
    add(BASE, {name: difference(x, BASE[name]) for name, x in TRAINED.items()})
    assert {name: x.tobytes() for name, x in BASE.items()} == before


def test_only_frozen_entries_do_not_travel():
    assert [spec.name for spec in travelling(MODEL)] == ["half", "i", "w", "wide"]
    assert [spec.kind for spec in update_signature(MODEL)] == [
        Kind.PARAMETER, Kind.BUFFER, Kind.PARAMETER, Kind.PARAMETER,
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", sorted(FLOATING))
def test_differences_are_taken_and_added_in_single_precision_or_in_double_for_doubles(dtype):
    assert accumulator(dtype).name == ("float64" if dtype == "float64" else "float32")
    old, new = (np.array([x], DTYPES[dtype]) for x in (1.0, 1.0078125))
    change = difference(new, old)
    assert change.dtype == accumulator(dtype) and change.tolist() == [0.0078125]
    moved = add({"x": old}, {"x": change})["x"]
    assert moved.dtype == DTYPES[dtype] and moved.tobytes() == new.tobytes()


@given(st.floats(-6e4, 6e4, width=16), st.floats(-6e4, 6e4, width=16))
def test_a_half_moved_by_a_difference_is_the_trained_half(old, new):
    base, trained = np.array([old], np.float16), np.array([new], np.float16)
    moved = add({"x": base}, {"x": difference(trained, base)})["x"]
    np.testing.assert_allclose(moved, trained, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64"])
def test_what_is_no_float_is_replaced(dtype):
    old, new = (np.array([x], DTYPES[dtype]) for x in (1, 0))
    assert difference(new, old) is new
    moved = add({"x": old}, {"x": new})["x"]
    assert moved.dtype == DTYPES[dtype] and moved.tolist() == [0]
