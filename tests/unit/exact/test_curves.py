"""AUC, KS, confusion and survival from counts: by hand, and against exact references."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from openfed.errors import OpenFedError, TaskError
from openfed.exact.base import solve
from openfed.exact.scores import Confusion, Scores, auc, confusion, ks, roc
from openfed.exact.survival import KaplanMeier


@pytest.fixture(scope="module")
def scored(real, standard):
    """Scores of a weak model on two columns, and what is so."""
    x, y = real("breast_cancer")
    x = standard(x)[:, [1, 4]]
    return LogisticRegression().fit(x, y).predict_proba(x)[:, 1:], y


@pytest.mark.parametrize("bins", [8, 64, 1024])
def test_auc_is_within_one_bin(scored, uneven, bins):
    score, y = scored
    state, rounds = solve(Scores(bins), uneven(score, y, 4), 9)
    found, within = auc(state["counts"])
    exact, binned = roc_auc_score(y, score), np.floor(score * bins)
    assert rounds == 1
    assert abs(found - exact) <= within + 1e-12 and within < 2 / bins
    assert found == pytest.approx(roc_auc_score(y, binned), abs=1e-13)
    distance = ks_2samp(binned[y == 0, 0], binned[y == 1, 0], method="asymp").statistic
    assert ks(state["counts"]) == pytest.approx(distance, abs=1e-13)
    wrong, right = roc(state["counts"])
    expected = roc_curve(y, binned[:, 0], drop_intermediate=False)
    assert {(round(a, 9), round(b, 9)) for a, b in zip(*expected[:2], strict=True)} <= {
        (round(a, 9), round(b, 9)) for a, b in zip(wrong, right, strict=True)
    }


def test_confusion_at_an_edge_is_exact(scored, uneven):
    score, y = scored
    method = Scores(64)
    state, _ = solve(method, uneven(score, y, 5), 1)
    for edge in (0, 1, 32, 50, 64):
        predicted = score[:, 0] >= method.edges()[edge]
        expected = confusion_matrix(y, predicted, labels=[0, 1])
        assert confusion(state["counts"], edge).tolist() == expected.tolist()
    state, _ = solve(Confusion(2), uneven((score > 0.5).astype(float), y, 5), 1)
    assert state["counts"].tolist() == confusion_matrix(y, score[:, 0] > 0.5).tolist()


def test_scores_by_hand_and_beyond_the_range():
    score, y = np.array([[-3.0], [0.1], [0.6], [0.6], [1.0]]), np.array([0, 1, 0, 1, 1])
    state, _ = solve(Scores(2), {"a": (score[:1], y[:1]), "b": (score[1:], y[1:])}, 1)
    assert state["counts"].tolist() == [[1, 1], [1, 2]]
    assert auc(state["counts"]) == ((0.5 + 1 * 2 + 0.5 * 2) / 6, 1.5 / 6)
    assert ks(state["counts"]) == pytest.approx(2 / 3 - 1 / 2)
    with pytest.raises(OpenFedError, match="K52"):
        solve(Scores(2), {"a": (score, np.ones(5))}, 1)


ROWS = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 1)), min_size=1, max_size=40)


def kaplan_meier(rows, horizon):
    """Survival and Greenwood's variance with fractions, by the books' formula."""
    curve, variance, s, g = [], [], Fraction(1), Fraction(0)
    for t in range(horizon):
        n = sum(time >= t for time, _ in rows)
        d = sum(time == t and event for time, event in rows)
        if d:
            s *= 1 - Fraction(d, n)
            g += Fraction(d, n * (n - d)) if n > d else 0
        curve.append(s)
        variance.append(s * s * g)
    return curve, variance


@given(ROWS, st.integers(0, 40))
def test_survival_is_that_of_the_formula(rows, cut):
    x = np.array(rows, float)
    state, rounds = solve(KaplanMeier(12), {"a": (x[:cut], None), "b": (x[cut:], None)}, 9)
    curve, variance = kaplan_meier(rows, 12)
    assert rounds == 1
    np.testing.assert_allclose(state["survival"][0], [float(s) for s in curve], rtol=1e-14)
    np.testing.assert_allclose(state["variance"][0], [float(v) for v in variance], rtol=1e-13)
    assert state["at_risk"][0].tolist() == [sum(t >= s for t, _ in rows) for s in range(12)]


@given(ROWS, st.integers(0, 40))
def test_survival_of_split_rows_is_the_same_to_the_bit(rows, cut):
    x = np.array(rows, float)
    one, _ = solve(KaplanMeier(20), {"a": (x, None)}, 1)
    two, _ = solve(KaplanMeier(20), {"a": (x[:cut], None), "b": (x[cut:], None)}, 1)
    assert all(np.array_equal(one[key], two[key]) for key in one)


def test_the_leukaemia_trial():
    """Remission in weeks under 6-MP, Freireich et al. 1963, as tabled by Cox and Oakes 1984."""
    time = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
    event = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    x = np.array([time, event], float).T
    group = np.array([1] * 21)
    state, _ = solve(
        KaplanMeier(36, groups=2), {"a": (x[:1], group[:1]), "b": (x[1:], group[1:])}, 1
    )
    s = state["survival"][1]
    assert [round(s[t], 3) for t in (6, 7, 10, 13, 16, 22, 23)] == [
        0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448,
    ]  # fmt: skip
    deviation = np.sqrt(state["variance"][1])
    assert [round(deviation[t], 4) for t in (6, 23)] == [0.0764, 0.1346]
    assert (state["survival"][0] == 1).all() and (state["at_risk"][0] == 0).all()


@pytest.mark.parametrize("row", [(2.5, 1), (-1, 1), (3, 2), (3, 0.5)])
def test_times_and_events_that_are_none_are_refused(row):
    with pytest.raises(TaskError, match="K51"):
        KaplanMeier(5).lift({}, np.array([row], float), None)
