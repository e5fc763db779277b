"""Naive Bayes, k-means and principal components: equal to scikit-learn on the pooled rows."""

import numpy as np
import pytest
from sklearn.cluster import KMeans as Reference
from sklearn.decomposition import PCA as Components
from sklearn.naive_bayes import GaussianNB

from openfed.errors import OpenFedError
from openfed.exact.base import done, solve
from openfed.exact.bayes import NaiveBayes
from openfed.exact.kmeans import KMeans, nearest
from openfed.exact.pca import PCA


@pytest.mark.parametrize("name", ["breast_cancer", "digits", "wine"])
@pytest.mark.parametrize("sites", [2, 3, 5])
def test_naive_bayes_is_scikit_learns(real, uneven, name, sites):
    x, y = real(name)
    method = NaiveBayes(x.shape[1], len(set(y)))
    state, rounds = solve(method, uneven(x, y, sites), 9)
    expected = GaussianNB().fit(x, y)
    assert rounds == 2
    np.testing.assert_allclose(state["mean"], expected.theta_, rtol=1e-12)
    np.testing.assert_allclose(state["variance"], expected.var_, rtol=1e-12)
    np.testing.assert_allclose(state["prior"], expected.class_prior_, rtol=1e-12)
    joint = expected.predict_joint_log_proba(x)
    np.testing.assert_allclose(method.joint(state, x), joint, rtol=1e-9)
    assert (method.predict(state, x) == expected.predict(x)).all()


def test_a_class_without_rows_is_never_predicted():
    x, y = np.array([[0.0], [1], [10], [11]]), np.array([0.0, 0, 3, 3])
    method = NaiveBayes(1, 5)
    state, _ = solve(method, {"a": (x[:1], y[:1]), "b": (x[1:], y[1:])}, 2)
    assert method.predict(state, np.array([[-5.0], [0], [11], [1e6]])).tolist() == [0, 0, 3, 3]
    with pytest.raises(OpenFedError, match="K52.*varies"):
        solve(NaiveBayes(1, 2), {"a": (np.ones((3, 1)), np.array([0.0, 1, 1]))}, 2)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(("name", "clusters"), [("breast_cancer", 4), ("breast_cancer", 10),
                                                ("digits", 10), ("diabetes", 10), ("wine", 4),
                                                ("wine", 10)])  # fmt: skip
def test_inertia_is_within_one_percent(real, standard, uneven, name, clusters, scaled):
    x, y = real(name)
    x = standard(x) if scaled else x
    method = KMeans(x.shape[1], clusters)
    state, rounds = solve(method, uneven(x, y, 4), 300)
    expected = Reference(clusters, n_init=10, random_state=0, tol=0).fit(x).inertia_
    assert done(state) and rounds < 300
    assert state["inertia"] <= 1.01 * expected
    cell, distance = nearest(x, state["centres"])
    np.testing.assert_allclose(state["inertia"], distance.sum(), rtol=1e-9)
    assert (np.bincount(cell, minlength=clusters) == state["n"]).all()
    means = np.stack([x[cell == i].mean(0) for i in range(clusters) if (cell == i).any()])
    np.testing.assert_allclose(means, state["centres"][state["n"] > 0], atol=1e-5 * x.std())


def test_k_means_does_not_depend_on_the_split_of_the_rows(real, standard, uneven):
    x, y = real("wine")
    x = standard(x)
    one, _ = solve(KMeans(13, 4), {"a": (x, y)}, 300)
    many, _ = solve(KMeans(13, 4), uneven(x, y, 5), 300)
    np.testing.assert_allclose(many["centres"], one["centres"], rtol=1e-9, atol=1e-12)


def test_k_means_by_hand():
    x = np.array([[0.0], [1], [10], [11]])
    state, _ = solve(KMeans(1, 2, starts=1), {"a": (x[:1], None), "b": (x[1:], None)}, 50)
    assert sorted(state["centres"][:, 0]) == [0.5, 10.5]
    assert state["inertia"] == 1.0 and state["n"].tolist() == [2, 2]
    state, _ = solve(KMeans(1, 1), {"a": (x, None)}, 50)
    np.testing.assert_allclose(state["centres"], [[5.5]], rtol=1e-12)
    np.testing.assert_allclose(state["inertia"], 101, rtol=1e-12)
    with pytest.raises(OpenFedError, match="K52.*3 different"):
        solve(KMeans(2, 3), {"a": (np.array([[0.1, 7], [0.3, 7]] * 5), None)}, 50)


@pytest.mark.parametrize("name", ["breast_cancer", "digits", "diabetes", "wine"])
def test_axes_are_those_of_the_pooled_rows(real, standard, uneven, name):
    x, y = real(name)
    x = standard(x)
    method = PCA(x.shape[1], 4)
    state, rounds = solve(method, uneven(x, y, 5), 9)
    expected = Components(4, svd_solver="full").fit(x)
    along = np.abs((state["axes"] * expected.components_).sum(axis=1))
    across = (
        state["axes"]
        - along[:, None]
        * np.sign((state["axes"] * expected.components_).sum(axis=1))[:, None]
        * expected.components_
    )
    assert rounds == 2 and np.linalg.norm(across, axis=1).max() < 1e-6  # sine of the angle
    np.testing.assert_allclose(state["variance"], expected.explained_variance_, rtol=1e-12)
    np.testing.assert_allclose(
        np.abs(method.transform(state, x)), np.abs(expected.transform(x)), atol=1e-6
    )


def test_axes_by_hand():
    x = np.array([[1.0, 1], [-1, -1], [2, 2], [-2, -2], [0.5, -0.5], [-0.5, 0.5]]) + 100
    state, _ = solve(PCA(2, 2), {"a": (x[:1], None), "b": (x[1:], None)}, 2)
    np.testing.assert_allclose(np.abs(state["axes"]), np.sqrt([[0.5, 0.5]] * 2), rtol=1e-13)
    np.testing.assert_allclose(state["variance"], [20 / 5, 1 / 5], rtol=1e-12)
    with pytest.raises(OpenFedError, match="K52"):
        solve(PCA(2, 1), {"a": (x[:1], None)}, 2)
