"""ID3 and boosted trees: by hand, against plain recursive references, however rows are split."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfed.errors import OpenFedError
from openfed.exact.base import solve
from openfed.exact.boosting import Boosted
from openfed.exact.id3 import ID3, gain


def test_gain_by_hand():
    """Quinlan 1986: 14 days, outlook: 0.246 bits (he has 0.940 and 0.694 rounded); 9 of 14 play."""
    outlook = np.array([[3.0, 0, 2], [2, 4, 3]])
    parts = 5 / 14 * 0.9709505944546686 * 2
    assert gain(outlook) == pytest.approx(0.9402859586706311 - parts, abs=1e-12)
    assert gain(np.array([[2.0, 2], [2, 2]])) == 0
    assert gain(np.array([[3.0, 0], [0, 3]])) == 1


def bits(rows):
    return -sum(c / len(rows) * math.log2(c / len(rows)) for c in Counter(rows).values())


def recursive(x, y, levels, parent):
    """ID3 as in the book: ('leaf', class), or (column, children)."""
    counts = Counter(y)
    most = min(counts, key=lambda c: (-counts[c], c)) if y else parent
    told = [c for c in range(len(levels)) if len({row[c] for row in x}) > 1]
    if len(counts) < 2 or not told:
        return ("leaf", most)

    def gained(column):
        left = 0.0
        for level in {row[column] for row in x}:
            part = [b for a, b in zip(x, y, strict=True) if a[column] == level]
            left += len(part) / len(y) * bits(part)
        return round(bits(y) - left, 12)

    best = max(told, key=lambda column: (gained(column), -column))
    children = []
    for level in range(levels[best]):
        keep = [i for i, row in enumerate(x) if row[best] == level]
        children.append(recursive([x[i] for i in keep], [y[i] for i in keep], levels, most))
    return (best, children)


def nested(state, levels, node=0):
    column = int(state["column"][node])
    if column < 0:
        return ("leaf", int(state["label"][node]))
    first = int(state["child"][node])
    return (column, [nested(state, levels, first + i) for i in range(levels[column])])


def cut(x, parts):
    """Columns as categories: which part of its values a value is in."""
    edges = np.quantile(x, np.arange(1, parts) / parts, axis=0)
    return np.stack(
        [np.searchsorted(e, c, side="right") for e, c in zip(edges.T, x.T, strict=True)], axis=1
    )


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "digits"])
@pytest.mark.parametrize("sites", [2, 5])
def test_the_tree_is_that_of_the_pooled_rows(real, uneven, name, sites):
    x, y = real(name)
    x = cut(x, 4)
    method = ID3((4,) * x.shape[1], len(set(y)))
    state, _ = solve(method, uneven(x, y, sites), 99)
    one, _ = solve(method, {"all": (x, y)}, 99)
    assert all(np.array_equal(state[key], one[key]) for key in one)
    expected = recursive(x.tolist(), y.astype(int).tolist(), method.levels, 0)
    assert nested(state, method.levels) == expected
    same = {tuple(row): [] for row in x}
    for row, label in zip(x, y, strict=True):
        same[tuple(row)].append(label)
    right = sum(max(Counter(each).values()) for each in same.values())
    assert (method.predict(state, x) == y).sum() == right


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=1, max_size=30), st.integers(0, 30))
def test_any_table_gives_the_recursive_tree(found, where):
    x, y = np.array(found)[:, :3], np.array(found)[:, 3]
    method = ID3((3, 3, 3), 3)
    state, _ = solve(method, {"a": (x[:where], y[:where]), "b": (x[where:], y[where:])}, 99)
    assert nested(state, (3, 3, 3)) == recursive(x.tolist(), y.tolist(), (3, 3, 3), 0)


def test_exclusive_or_and_a_depth():
    x, y = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [1, 1]]), np.array([0, 1, 1, 0, 0])
    method = ID3((2, 2), 2)
    state, _ = solve(method, {"a": (x[:1], y[:1]), "b": (x[1:], y[1:])}, 9)
    assert method.predict(state, x).tolist() == y.tolist()
    stump, rounds = solve(ID3((2, 2), 2, depth=0), {"a": (x, y)}, 9)
    assert rounds == 1 and nested(stump, (2, 2)) == ("leaf", 0)


def test_a_level_that_no_row_has_takes_its_parents_class():
    x, y = np.array([[0], [0], [1]]), np.array([1, 1, 0])
    method = ID3((3,), 2)
    state, _ = solve(method, {"a": (x, y)}, 9)
    assert method.predict(state, np.array([[0], [1], [2]])).tolist() == [1, 0, 1]


# -- boosted trees ---------------------------------------------------------------------------------


def test_a_boosted_stump_by_hand():
    """Equation 7 and 5: g is -1/2 or 1/2, h is 1/4 at the start."""
    x, y = np.array([[1.0], [2], [3], [4]]), np.array([0.0, 0, 1, 1])
    method = Boosted(1, trees=1, depth=1, bins=4, rate=1.0, lam=0.5, least=0.0)
    state, _ = solve(method, {"a": (x[:1], y[:1]), "b": (x[1:], y[1:])}, 99)
    assert state["column"][0].tolist() == [0, -1, -1]
    assert 2 < state["cut"][0, 0] <= 3
    assert state["value"][0].tolist() == [0.0, -1.0, 1.0]  # -G / (H + lam) = -1 / (1/2 + 1/2)
    gained = (1 / 1 + 1 / 1 - 0) / 2
    for gamma, split in ((gained - 1e-6, True), (gained + 1e-6, False)):
        method = Boosted(1, trees=1, depth=1, bins=4, lam=0.5, least=0.0, gamma=gamma)
        state, _ = solve(method, {"a": (x, y)}, 99)
        assert (state["column"][0, 0] == 0) is np.bool_(split)
    method = Boosted(1, trees=1, depth=1, bins=4, lam=0.5, least=0.6)
    state, _ = solve(method, {"a": (x, y)}, 99)
    assert (state["column"] < 0).all()


def grown(x, g, h, edges, method, depth):
    """One tree, recursively: margins of the rows."""
    best, where = 0.0, None
    for column in range(x.shape[1]):
        for edge in edges[column]:
            left = x[:, column] < edge
            sides = [(g[m].sum(), h[m].sum()) for m in (left, ~left)]
            if min(s for _, s in sides) < method.least:
                continue
            told = sum(a**2 / (b + method.lam) for a, b in sides)
            told = (told - g.sum() ** 2 / (h.sum() + method.lam)) / 2 - method.gamma
            if told > best + 1e-9:
                best, where = told, left
    if where is None or depth == 0:
        return np.full(len(x), -method.rate * g.sum() / (h.sum() + method.lam))
    out = np.empty(len(x))
    for side in (where, ~where):
        out[side] = grown(x[side], g[side], h[side], edges, method, depth - 1)
    return out


@pytest.mark.parametrize(("name", "loss"), [("breast_cancer", "logistic"), ("wine", "logistic"),
                                            ("diabetes", "squared")])  # fmt: skip
def test_trees_are_those_of_the_formula_on_pooled_rows(real, uneven, name, loss):
    x, y = real(name)
    x = x[:, :8]
    y = y if loss == "squared" else (y == 1).astype(float)
    method = Boosted(8, loss, trees=4, depth=3, bins=8, lam=2.0, gamma=0.1)
    state, _ = solve(method, uneven(x, y, 4), 99)
    margin = np.full(len(x), np.median(y) if loss == "squared" else 0.0)
    for _ in range(4):
        p = margin if loss == "squared" else 1 / (1 + np.exp(-margin))
        h = np.ones_like(y) if loss == "squared" else p * (1 - p)
        margin = margin + grown(x, p - y, h, state["edges"], method, 3)
    np.testing.assert_allclose(method.margins(state, x), margin, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "digits", "diabetes"])
def test_four_parties_are_one_party_to_the_bit(real, uneven, name):
    x, y = real(name)
    loss = "squared" if name == "diabetes" else "logistic"
    y = y if loss == "squared" else (y == 1).astype(float)
    method = Boosted(x.shape[1], loss, trees=6, depth=3, bins=16)
    four, _ = solve(method, uneven(x, y, 4), 99)
    one, _ = solve(method, {"all": (x, y)}, 99)
    assert all(np.array_equal(four[key], one[key]) for key in one)
    fit = ((method.predict(four, x) - y) ** 2).mean() / y.var()
    assert fit < (0.5 if loss == "squared" else 0.25)


def test_edges_are_the_columns_quantiles(real):
    x, y = real("wine")
    method = Boosted(13, trees=0, bins=10)
    state, _ = solve(method, {"a": (x, (y == 1).astype(float))}, 4)
    expected = np.quantile(x, np.arange(1, 10) / 10, axis=0).T
    np.testing.assert_allclose(state["edges"], expected, rtol=2e-6)


def test_labels_of_one_class_are_refused():
    for label in (0.0, 1.0):
        with pytest.raises(OpenFedError, match=f"K52.*class {label:g}"):
            solve(Boosted(1), {"a": (np.arange(5.0)[:, None], np.full(5, label))}, 9)


def test_constant_columns_and_labels_that_do_not_vary():
    x, y = np.ones((6, 2)), np.full(6, 3.0)
    method = Boosted(2, "squared", trees=2, depth=2)
    state, _ = solve(method, {"a": (x[:1], y[:1]), "b": (x[1:], y[1:])}, 99)
    np.testing.assert_allclose(method.predict(state, x), y, rtol=1e-6)
    assert (state["column"] < 0).all()
