"""What a reply may be: names, shapes, numbers."""

import numpy as np
import pytest

from openfed.errors import TaskError
from openfed.tensors.check import check_entries, check_finite, check_numbers, frame_limit
from openfed.tensors.frame import pack
from openfed.tensors.record import Record, Spec, is_local, signature_of

MODEL = (Spec("b", "float32", (2,)), Spec("w", "float32", (2, 3)))


def code(function, *args, **kwargs) -> str:
    with pytest.raises(TaskError) as caught:
        function(*args, **kwargs)
    return caught.value.code + " " + caught.value.message


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ((MODEL[0],), "K21 the reply lacks 'w'"),
        ((*MODEL, Spec("x", "float32", ())), "K21 the reply has unknown 'x'"),
        ((MODEL[0], Spec("w", "float64", (2, 3))), "K22 w: expected float32[2, 3], got float64"),
        ((MODEL[0], Spec("w", "float32", (3, 2))), "K22 w: expected float32[2, 3], got float32[3"),
    ],
)
def test_another_signature_is_refused_by_name(got, expected):
    assert code(check_entries, got, MODEL).startswith(expected)


def test_the_same_signature_is_accepted():
    check_entries(MODEL, MODEL)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_number_that_is_not_finite_is_found_where_it_is(bad, dtype):
    values = np.zeros(300_000, dtype)
    values[290_001] = bad
    assert f"got {bad} at 290001" in code(check_finite, "w", values)


def test_integers_are_always_finite():
    check_finite("steps", np.array([2**62]))


@pytest.mark.parametrize("n", [(), (0.0,), (-1.0,), (1.5,), (1e308,), (1.0, 2.0)])
def test_a_sample_count_that_counts_nothing_is_refused(n):
    assert code(check_numbers, {"n": n}, {"n"}, trained=True).startswith("K24")


def test_no_samples_are_allowed_where_nothing_is_trained():
    check_numbers({"n": (0.0,)}, {"n"}, trained=False)


def test_undeclared_and_infinite_numbers_are_refused():
    assert "K25" in code(check_numbers, {"n": (1.0,), "x": (1.0,)}, {"n"}, trained=True)
    infinite = {"n": (1.0,), "x": (float("inf"),)}
    assert "K25" in code(check_numbers, infinite, {"n", "x"}, trained=True)


def test_the_limit_fits_every_frame_of_the_signature_and_little_more():
    tensors = {f"layer{i}.weight": np.ones((33, 7), np.float32) for i in range(50)}
    size = len(pack(Record(tensors, {"n": (1.0,)})))
    assert size <= frame_limit(signature_of(tensors), numbers=100) <= 2 * size


def test_the_first_matching_rule_decides_where_an_entry_stays():
    scope = (("head.*", "local"), ("*", "global"))
    assert [is_local(name, scope) for name in ("head.w", "body.w")] == [True, False]
    assert not is_local("anything", ())
