"""Clipping: by hand, against the papers' formulas on whole arrays, and what it bounds."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfed.strategy.clipping import adaptive_clip, begin_adaptive, centred_clip, clip, next_norm
from openfed.strategy.measure import norms
from openfed.strategy.reduce import coordinate_median, reduce_updates
from tests.unit.strategy.aggregating import (
    aggregate,
    centred,
    clipped,
    given_updates,
    of_rows,
)

exactly = partial(np.testing.assert_allclose, rtol=0, atol=1e-7)


def test_an_update_is_scaled_to_the_norm_by_hand():
    exactly(clipped([[3, 4]], 1), [0.6, 0.8])
    exactly(clipped([[3, 4], [0.3, 0.4]], 1), [0.45, 0.6])
    exactly(clipped([[3, 4], [0, 0]], 5), [1.5, 2])


def test_clipped_updates_keep_their_weights():
    found = of_rows([[3, 4], [0.3, 0.4]], partial(clip, norm=1.0), None, [1.0, 3.0])
    exactly(found, [(0.6 + 0.9) / 4, (0.8 + 1.2) / 4])


def test_the_norm_is_of_all_floating_entries_and_integers_stay():
    entries = [{"a": np.float32([3]), "b": np.float64([[4]]), "i": np.array([100])}]
    got = aggregate(entries, partial(clip, norm=1.0))
    assert got["i"] == [100] and got["a"].dtype == np.float32
    exactly(got["a"], [0.6])
    exactly(got["b"], [[0.8]])


def test_clipping_goes_before_any_rule():
    found = of_rows([[3, 4], [30, 40], [0.3, 0.4]], partial(clip, norm=1.0), coordinate_median)
    exactly(found, [0.6, 0.8])


ROWS = st.lists(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4), min_size=1, max_size=6).map(
    np.array
)


@given(ROWS, st.floats(1e-3, 1e3))
def test_nobody_moves_the_model_by_more_than_the_norm(points, norm):
    updates, signature = given_updates([{"w": point} for point in points])
    lengths = norms(clip(updates, signature, norm=norm), signature)
    assert (lengths <= norm * (1 + 1e-12)).all()
    small = np.linalg.norm(points, axis=1) <= norm * (1 - 1e-12)
    np.testing.assert_allclose(lengths[small], np.linalg.norm(points, axis=1)[small], rtol=1e-12)


# -- adaptive --------------------------------------------------------------------------------------


def test_the_next_norm_by_hand():
    lengths = np.array([0.5, 1.0, 2.0, 3.0])
    assert next_norm(1.0, lengths, quantile=0.5) == 1.0  # just half are at most 1
    exactly(next_norm(1.0, lengths, quantile=0.9), math.exp(0.08))
    exactly(next_norm(4.0, lengths, quantile=0.9, rate=0.5), 4 * math.exp(-0.05))


def test_this_round_is_clipped_with_this_round_s_norm():
    updates, signature = given_updates([{"w": np.array([3.0, 4.0])}, {"w": np.array([0.0, 5.0])}])
    state, kept = adaptive_clip(begin_adaptive(1.0), updates, signature, quantile=0.8)
    exactly(reduce_updates(kept, signature)["w"], [0.3, 0.9])
    exactly(state["norm"], math.exp(0.16))
    assert state["norm"].dtype == np.float64 and begin_adaptive()["norm"] == 0.1


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_the_norm_finds_the_quantile(quantile):
    lengths = np.arange(1.0, 101.0)
    norm = 0.1
    for _ in range(400):
        norm = next_norm(norm, lengths, quantile=quantile)
    assert abs(norm - 100 * quantile) < 5


# -- centred ---------------------------------------------------------------------------------------


def formula(x, radius, v, steps, p):
    """The paper's, on whole arrays."""
    for _ in range(steps):
        away = x - v
        factor = np.minimum(1, radius / np.maximum(np.linalg.norm(away, axis=1), 1e-300))
        v = v + (p[:, None] * away * factor[:, None]).sum(axis=0)
    return v


def test_centred_clipping_by_hand():
    points = [[3, 4], [0.3, 0.4]]
    exactly(centred(points, 1, np.zeros(2)), [0.45, 0.6])
    # from (0, 4): away (3, 0) and (0.3, -3.6); the second is 3.6125 long
    long = math.hypot(0.3, 3.6)
    exactly(centred(points, 1, np.array([0.0, 4])), [(1 + 0.3 / long) / 2, 4 - 1.8 / long])


@given(ROWS, st.floats(1e-2, 1e3), st.integers(1, 4), st.integers(0, 5))
def test_centred_clipping_is_the_paper_s_formula(points, radius, steps, seed):
    rng = np.random.default_rng(seed)
    v, weights = rng.normal(size=4), rng.integers(1, 9, size=len(points)).astype(float)
    screen = partial(centred_clip, radius=radius, center={"w": v}, steps=steps)
    got = of_rows(points, screen, None, weights.tolist())
    expected = formula(points, radius, v, steps, weights / weights.sum())
    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-7)


def test_an_entry_without_a_center_is_clipped_to_zero():
    entries = [{"a": np.float32([3]), "b": np.float32([4]), "i": np.array([7])}]
    got = aggregate(entries, partial(centred_clip, radius=1.0))
    exactly(got["a"], [0.6])
    exactly(got["b"], [0.8])
    assert got["i"] == [7]


@given(ROWS)
def test_with_a_wide_radius_it_is_the_mean(points):
    got = centred(points, 1e9, np.ones(4))
    np.testing.assert_allclose(got, points.mean(axis=0), rtol=1e-9, atol=1e-6)


@given(ROWS, st.floats(0.01, 10), st.integers(1, 3))
def test_a_round_moves_by_at_most_the_radius_a_step(points, radius, steps):
    start = np.array([1.0, 2, 3, 4])
    moved = np.linalg.norm(centred(points, radius, start, steps) - start)
    assert moved <= radius * steps * (1 + 1e-7) + 1e-9


def test_huge_updates_leave_the_center_where_it_is():
    got = centred([[1e300, 1e300]], 1.0, np.array([2.0, 3.0]))
    assert got.tolist() == [2, 3]
    most = np.finfo(np.float32).max
    entry = {"w": np.array([most, -most], np.float32)}
    screen = partial(centred_clip, radius=1.0, center={"w": np.float32([1, 1])})
    np.testing.assert_allclose(
        aggregate([entry], screen)["w"], [1 + 2**-0.5, 1 - 2**-0.5], rtol=1e-6
    )
