"""Robust rules: by hand, against formulas on whole arrays, their properties, and under attack."""

import tracemalloc
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from openfed.errors import OpenFedError
from openfed.strategy.measure import distances, middle, mixture, norms, squared_distances
from openfed.strategy.reduce import Weighted, reduce_updates
from openfed.strategy.robust import (
    bulyan,
    geometric_median,
    krum,
    multi_krum,
    near_median,
    shortfall,
    trimmed_mean,
)
from openfed.tensors.frame import CHUNK
from openfed.tensors.record import Spec
from tests.unit.strategy.aggregating import (
    aggregate,
    centred,
    clipped,
    flat,
    given_updates,
    methods,
    of_rows,
)

exactly = partial(np.testing.assert_allclose, rtol=0, atol=1e-7)
exact_median = partial(geometric_median, passes=2000, tolerance=1e-12)


def column(*values):
    return [[value] for value in values]


def chosen(screen, points, **settings):
    """The places of the updates that a screen keeps."""
    updates, signature = given_updates([{"w": np.array(p, np.float64)} for p in points])
    return [updates.index(kept) for kept in screen(updates, signature, **settings)]


# -- by hand ---------------------------------------------------------------------------------------


def test_the_trimmed_mean_by_hand():
    points = [[1, 50], [2, -9], [4, 1], [9, 2], [-100, 3]]
    exactly(of_rows(points, rule=partial(trimmed_mean, f=1)), [7 / 3, 2])
    exactly(of_rows(points, rule=partial(trimmed_mean, f=2)), [2, 2])
    weights = [1.0, 100, 1, 1, 1]  # they do not count
    exactly(of_rows(points, None, partial(trimmed_mean, f=1), weights), [7 / 3, 2])


def test_krum_by_hand():
    # f = 2 of 7, three neighbours: scores 14, 6, 6, 6.2, ...; of equal ones the one whose next
    # neighbour is nearer
    points = column(0, 1, 2, 3, 4.1, 20, 50)
    assert chosen(krum, points, f=2) == [2]
    assert chosen(multi_krum, points, f=2, m=2) == [1, 2]
    assert chosen(multi_krum, points, f=2) == [1, 2, 3]
    exactly(of_rows(points, partial(multi_krum, f=2)), [2])
    assert chosen(krum, column(5, 5, 5, 5, 5), f=1) == [0]  # all equal: the first


def test_krum_counts_squares_of_distances():
    # f = 1 of 5, two neighbours: 0 has 9 + 9 = 18 and 7.5 has 1 + 20.25; without squares 6 and 5.5
    assert chosen(krum, column(-3, 0, 3, 7.5, 8.5), f=1) == [1]


def test_bulyan_by_hand():
    # kept: 2 (score 12.25 of 4 neighbours), 3 (15.25 of 3), 1 (13.25 of 2), 4.5 before 8 (12.25 of
    # 1; with the next 32.5 and 76.25), 8 before 0 (64; 8528 and 10064)
    points = column(0, 1, 2, 3, 4.5, 8, 100)
    assert chosen(bulyan, points, f=1) == [1, 2, 3, 4, 5]
    exactly(of_rows(points, *methods(1)["bulyan"]), [9.5 / 3])  # nearest to 3 are 2, 3, 4.5


def test_the_values_near_the_median_by_hand():
    points = [[0, 1], [1, 2], [2, 3], [9, 4], [10, 90]]
    exactly(of_rows(points, rule=partial(near_median, f=1)), [1, 3])
    exactly(of_rows(points[:4], rule=partial(near_median, f=1)), [0.5, 1.5])  # around 1 and 2


def test_geometric_medians_that_geometry_knows():
    right = [[0, 0], [1, 0], [0, 1]]  # its Fermat point
    exactly(of_rows(right, exact_median), [(3 - np.sqrt(3)) / 6] * 2)
    crossing = [[0, 0], [2, 2], [0, 1], [3, 0]]  # where the diagonals meet
    exactly(of_rows(crossing, exact_median), [0.75, 0.75])


def test_the_geometric_median_counts_weights():
    line = column(0.0, 1.0, 5.0)
    found = of_rows(line, exact_median, None, [1.0, 1.0, 3.0])
    np.testing.assert_allclose(found, [5], atol=1e-5)  # more than half of the weight


def test_one_weiszfeld_step_is_the_paper_s():
    rng = np.random.default_rng(3)
    points, weights = rng.normal(size=(5, 4)), [1.0, 2, 3, 4, 5]
    shares = np.array(weights) / np.linalg.norm(points - np.median(points, axis=0), axis=1)
    expected = shares @ points / shares.sum()
    exactly(of_rows(points, partial(geometric_median, passes=1), None, weights), expected)


def test_smoothing_bounds_the_weight_of_an_update_at_the_median():
    points = column(0.0, 0.0, 4.0)  # the coordinate median is 0: distances 0, 0, 4
    found = of_rows(points, partial(geometric_median, smoothing=2.0, passes=1))
    exactly(found, [(4 / 4) / (1 / 2 + 1 / 2 + 1 / 4)])


# -- against formulas on whole arrays --------------------------------------------------------------


def records(n, seed):
    """Updates of several entries and dtypes, one longer than a chunk, one of integers."""
    rng = np.random.default_rng(seed)
    return [
        {
            "a": rng.normal(size=(3, CHUNK // 2)).astype(np.float32),
            "b": rng.normal(size=7),
            "c": rng.integers(-(2**40), 2**40, size=5),
            "d": np.array(rng.normal(), np.float32),
        }
        for _ in range(n)
    ]


def whole(entries):
    """float64 [updates, elements] of the floating entries, made without openfed."""
    names = ("a", "b", "d")
    return np.stack([np.concatenate([np.ravel(e[k]) for k in names]) for e in entries])


def test_measures_are_numpy_s_over_chunks_dtypes_and_entries():
    entries = records(4, 0)
    (updates, signature), x = given_updates(entries), whole(entries)
    assert (flat(entries) == x).all()
    np.testing.assert_allclose(norms(updates, signature), np.linalg.norm(x, axis=1), rtol=1e-12)
    pairs = np.square(x[:, None] - x[None]).sum(axis=2)
    np.testing.assert_allclose(squared_distances(updates, signature), pairs, rtol=1e-12)
    far = np.linalg.norm(x - np.median(x, axis=0), axis=1)
    np.testing.assert_allclose(distances(updates, signature, middle), far, rtol=1e-12)
    shares, center = np.array([0.1, 0.2, 0, 0.3]), {k: entries[0][k] * 2 for k in ("a", "b", "d")}
    there = shares @ x + 0.4 * 2 * x[0]
    got = distances(updates, signature, mixture(shares, center))
    np.testing.assert_allclose(got, np.linalg.norm(x - there, axis=1), rtol=1e-7)


def brute_krum_order(x, f):
    """Krum's scores as the paper has them; equal ones by a neighbour more, and so on."""
    n, sums = len(x), []
    for i in range(n):
        others = sorted(float(np.sum((x[i] - x[j]) ** 2)) for j in range(n) if j != i)
        sums.append([sum(others[:k]) for k in range(max(1, n - f - 2), n)])
    return sorted(range(n), key=lambda i: sums[i])


def brute_bulyan(x, f):
    left, selected = list(range(len(x))), []
    while len(selected) < len(x) - 2 * f:
        selected.append(left.pop(brute_krum_order(x[left], f)[0]))
    kept = np.sort(x[sorted(selected)], axis=0)
    result = np.empty(x.shape[1])
    for k, values in enumerate(kept.T):
        median = values[(len(values) - 1) // 2]
        result[k] = np.mean(sorted(values, key=lambda v: abs(v - median))[: len(values) - 2 * f])
    return result


@pytest.mark.parametrize(("n", "f"), [(3, 0), (5, 1), (9, 1), (9, 3)])
def test_krum_is_the_paper_s_formula(n, f):
    entries = records(n, n)
    order = brute_krum_order(whole(entries), f)
    got = aggregate(entries, partial(krum, f=f))
    for name in ("a", "b", "c", "d"):
        np.testing.assert_array_equal(got[name], entries[order[0]][name])
    best = [entries[i] for i in sorted(order[: n - f - 2])]
    several = aggregate(entries, partial(multi_krum, f=f))
    np.testing.assert_allclose(several["a"], np.mean([e["a"] for e in best], axis=0), atol=1e-6)
    np.testing.assert_array_equal(several["c"], np.max([e["c"] for e in best], axis=0))


@pytest.mark.parametrize(("n", "f"), [(3, 0), (7, 1), (8, 1), (11, 2), (14, 2)])
def test_bulyan_is_the_paper_s_formula(n, f):
    x = np.random.default_rng(n).normal(size=(n, 40))
    exactly(of_rows(x, *methods(f)["bulyan"]), brute_bulyan(x, f))


@pytest.mark.parametrize(("n", "f"), [(1, 0), (3, 1), (10, 3)])
def test_the_trimmed_mean_is_numpy_s_over_chunks(n, f):
    entries = records(n, n)
    got = aggregate(entries, None, partial(trimmed_mean, f=f))
    for name, atol in (("a", 1e-6), ("b", 1e-15), ("d", 1e-6)):
        ordered = np.sort(np.float64([e[name] for e in entries]), axis=0)[f : n - f]
        np.testing.assert_allclose(got[name], ordered.mean(axis=0), atol=atol)
        assert got[name].dtype == entries[0][name].dtype


@pytest.mark.parametrize("n", [3, 4, 9])
def test_the_geometric_median_has_no_slope(n):
    x = np.random.default_rng(n).normal(size=(n, 6))
    z = of_rows(x, exact_median)
    away = z - x
    slope = (away / np.linalg.norm(away, axis=1, keepdims=True)).sum(axis=0)
    np.testing.assert_allclose(slope, 0, atol=1e-6)


# -- properties ------------------------------------------------------------------------------------

SHAPE = (11, 3)
POINTS = arrays(np.float64, SHAPE, elements=st.integers(-1000, 1000))
ALL = sorted(methods(2))
few = settings(max_examples=30)


@pytest.mark.parametrize("name", ALL)
@few
@given(points=POINTS, order=st.permutations(range(SHAPE[0])))
def test_the_order_of_updates_does_not_matter(name, points, order):
    points = points + np.random.default_rng(0).normal(size=SHAPE)  # no scores are equal
    one, other = (of_rows(x, *methods(2)[name]) for x in (points, points[list(order)]))
    np.testing.assert_allclose(one, other, atol=1e-8)


@pytest.mark.parametrize("name", ALL)
@few
@given(points=POINTS, move=st.integers(-1000, 1000))
def test_moving_all_updates_moves_the_result(name, points, move):
    one, other = (of_rows(x, *methods(2)[name]) for x in (points, points + move))
    np.testing.assert_allclose(one + move, other, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
@few
@given(points=POINTS)
def test_the_result_is_among_the_updates_coordinate_by_coordinate(name, points):
    got = of_rows(points, *methods(2)[name])
    assert (points.min(axis=0) - 1e-9 <= got).all() and (got <= points.max(axis=0) + 1e-9).all()


@pytest.mark.parametrize("name", ALL)
def test_equal_updates_are_their_own_aggregate(name):
    exactly(of_rows([[1.5, -2.0]] * 11, *methods(2)[name]), [1.5, -2.0])


@given(points=POINTS)
def test_without_anything_to_trim_it_is_the_mean(points):
    exactly(of_rows(points, rule=partial(trimmed_mean, f=0)), points.mean(axis=0))


def test_the_geometric_median_of_a_symmetric_set_is_the_mean():
    half = np.random.default_rng(0).normal(size=(4, 5))
    points = np.concatenate([half, -half]) + 7
    np.testing.assert_allclose(of_rows(points, exact_median), points.mean(axis=0), atol=1e-7)


# -- bounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "fewest"),
    [
        (partial(of_rows, rule=partial(trimmed_mean, f=2)), 5),
        (partial(of_rows, screen=partial(krum, f=2)), 7),
        (partial(of_rows, screen=partial(multi_krum, f=2)), 7),
        (partial(of_rows, screen=partial(bulyan, f=2)), 11),
    ],
)
def test_fewer_updates_than_the_bound_are_refused(run, fewest):
    points = np.random.default_rng(0).normal(size=(fewest, 2))
    run(points)
    with pytest.raises(OpenFedError, match=f"F10 .* at least {fewest} updates, got {fewest - 1}"):
        run(points[1:])


def test_numbers_of_updates_that_make_no_sense_are_refused():
    points = np.random.default_rng(0).normal(size=(7, 2))
    for m in (0, 4, -1):
        with pytest.raises(OpenFedError, match=f"F10 .* m of 1 to 3, got {m}"):
            of_rows(points, partial(multi_krum, f=2, m=m))
    assert "got -1" in shortfall("krum", 7, -1)


# -- huge values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("name", sorted(set(methods(2)) - {"mean"}))
def test_updates_as_large_as_numbers_go_change_little(name, kind):
    rng = np.random.default_rng(1)
    honest = [{"w": rng.normal(1, 0.1, size=50).astype(kind)} for _ in range(9)]
    most = np.finfo(kind).max
    hostile = [{"w": np.full(50, sign * most, kind)} for sign in (1, -1)]
    got = aggregate([*honest, *hostile], *methods(2)[name])["w"]
    assert np.abs(got - 1).max() < 0.5
    got = aggregate([*honest, hostile[0], hostile[0]], *methods(2)[name])["w"]
    assert np.abs(got - 1).max() < 0.5


def test_one_huge_update_does_not_wipe_out_the_digits_of_others():
    points = column(0, 1, 2, 3, 1e150)
    assert chosen(krum, points, f=1) == [1]
    updates, signature = given_updates([{"w": np.array(p, np.float64)} for p in points])
    assert squared_distances(updates, signature)[0, 1] == 1


def test_updates_that_are_all_huge_are_refused():
    with pytest.raises(OpenFedError, match="F11"):
        of_rows(column(1e300, -1e300), geometric_median)


# -- memory ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Endless:
    """An update that takes no memory."""

    value: float
    specs: tuple = ()
    numbers: tuple = ()

    def read(self, name, start, out):
        out.fill(self.value)


@pytest.mark.parametrize("name", sorted(methods(1)))
def test_memory_does_not_grow_with_the_model(name):
    screen, rule = methods(1)[name]
    updates = [Weighted(Endless(x), 1.0) for x in (1, 2, 2.5, 3, 4, 5, 900)]
    result = {"w": np.empty(32 * CHUNK, np.float32)}
    signature = (Spec("w", "float32", (32 * CHUNK,)),)
    tracemalloc.start()
    try:
        kept = screen(updates, signature) if screen else updates
        reduce_updates(kept, signature, rule, lambda _: result)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * len(updates) * CHUNK * 8  # five chunks of every update; the model has 32
    assert result["w"][0] == result["w"][-1]


# -- attacks ---------------------------------------------------------------------------------------

SIZE, SPREAD = 2000, 0.5
"""Elements of a synthetic update of norm 1, and how far sites are from their mean."""


def little_is_enough(honest, f, rng):
    """As far from the mean as many honest ones are: Baruch et al. 2019, arXiv:1902.06156."""
    return np.tile(honest.mean(axis=0) - 0.7 * honest.std(axis=0), (f, 1))


ATTACKS = {
    "none": lambda honest, f, rng: honest[:f],
    "sign flip": lambda honest, f, rng: -honest[:f],
    "-4x": lambda honest, f, rng: -4 * honest[:f],
    "noise": lambda honest, f, rng: rng.normal(size=(f, SIZE)) * 5 / np.sqrt(SIZE),
    "another label": lambda honest, f, rng: rng.permutation(honest[:f].T).T,
    "1e30 x": lambda honest, f, rng: -1e30 * honest[:f],
    "a little": little_is_enough,
}


def under_attack(name, attack, seed=0):
    """|aggregate - honest direction|, whose norm is 1, with 3 hostile of 10 (15 for Bulyan)."""
    rng = np.random.default_rng(seed)
    n, f = (15 if name == "bulyan" else 10), 3
    direction = rng.normal(size=SIZE)
    direction /= np.linalg.norm(direction)
    honest = direction + rng.normal(size=(n, SIZE)) * SPREAD / np.sqrt(SIZE)
    points = np.concatenate([honest[f:], ATTACKS[attack](honest, f, rng)])
    if name == "norm clipping":
        got = clipped(points, 1.2)
    elif name == "centred clipping":
        got = np.zeros(SIZE)
        for _ in range(10):
            got = centred(points, 0.5, got)
    else:
        got = of_rows(points, *methods(f)[name])
    return float(np.linalg.norm(got - direction))


DEFENCES = sorted({*methods(3), "norm clipping", "centred clipping"} - {"mean"})


@pytest.mark.parametrize("attack", sorted(set(ATTACKS)))
@pytest.mark.parametrize("name", DEFENCES)
def test_an_attack_moves_a_robust_rule_little(name, attack):
    most = 0.75 if name == "norm clipping" else 0.55  # it bounds an attacker, it finds none
    assert under_attack(name, attack) < most


def test_the_mean_falls_to_the_same_attacks():
    assert under_attack("mean", "none") < 0.2
    assert under_attack("mean", "-4x") > 1.2 and under_attack("mean", "noise") > 0.5
    assert under_attack("mean", "1e30 x") > 1e29
