"""Every method in a federation (agents, journal, packets; one process): the bits of `solve`, and so
the pooled answer."""

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.cluster import KMeans as Reference
from sklearn.decomposition import PCA as Components
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, roc_auc_score
from sklearn.naive_bayes import GaussianNB

from openfed.errors import TaskError
from openfed.exact import methods
from openfed.exact.base import done, solve, total
from openfed.exact.boosting import Boosted
from openfed.exact.id3 import ID3
from openfed.exact.linear import Logistic, Ridge
from openfed.exact.methods import METHODS, make_method, sums_signature
from openfed.exact.pca import PCA
from openfed.exact.scores import auc
from openfed.exact.statistics import correlation
from openfed.flow.exact import exact
from openfed.launch.initial import task_config
from openfed.node.agent import Agent, Form
from openfed.node.trainer import DirectTrainer
from openfed.plan.load import load_plan
from openfed.plan.lock import make_lock
from openfed.simulate.inprocess import run_inprocess
from openfed.tasks.base import Outcome
from openfed.tasks.config import read_config
from openfed.tasks.runners import make_runner
from openfed.tensors.frame import digest
from openfed.tensors.model_file import read_model, write_model
from openfed.tensors.record import Record, Spec
from tests.unit.exact.test_curves import kaplan_meier
from tests.unit.exact.test_linear import EPS, by_least_squares
from tests.unit.exact.test_trees import cut, nested, recursive

PLAN = """
federation: lab
rounds: {rounds}
collaborators: {sites}
flow: {flow}
data_loader: "src.data:Rows"
{more}
"""


class Rows:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def table(self):
        return self.x, self.y


class Lab:
    """A workspace whose sites have these rows: {name: (x, y)}."""

    def __init__(self, root, flow, sites, rounds=300, more=""):
        self.root, self.sites, self.events = root, sites, []
        (root / "plan").mkdir(parents=True)
        (root / "src").mkdir()
        (root / "src" / "data.py").write_text("class Rows:\n    def __init__(self, source): ...\n")
        names = f"[{', '.join(sites)}]"
        text = PLAN.format(rounds=rounds, sites=names, flow=json.dumps(flow), more=more)
        (root / "plan" / "plan.yaml").write_text(text)
        self.plan = load_plan(root / "plan" / "plan.yaml")
        self.method = make_method(self.plan.flow.name, self.plan.flow.settings)
        model, signature = self.runner("nobody", None).initial(self.plan.seed)
        self.lock = make_lock(self.plan, {}, digest(Record(model)), signature)
        write_model(root / "save" / "lab_init.safetensors", model)

    def runner(self, name, rows):
        told = task_config(self.root, self.plan, name, None, "cpu", 1)
        (self.root / "task.json").write_text(json.dumps(told))
        return make_runner(read_config(self.root / "task.json"), rows and Rows(*rows))

    def emit(self, kind, fields):
        self.events.append({"event": kind, **fields})

    def run(self, run="r1"):
        async def main():
            trainers = {k: DirectTrainer(self.runner(k, v).run) for k, v in self.sites.items()}
            return await run_inprocess(self.root, self.lock, run, trainers, self.emit)

        return asyncio.run(main())

    @property
    def last(self):
        return read_model(self.root / "save" / "lab_last.safetensors")


@pytest.fixture
def federated(tmp_path):
    """`federated(flow, sites)`: the state after the run, which has the bits of `solve`."""

    def go(flow, sites):
        lab = Lab(tmp_path / "lab", flow, sites)
        ended = lab.run()
        assert (ended.state, ended.reason) == ("completed", "")
        expected, rounds = solve(lab.method, sites, 300)
        assert ended.summary["rounds"] == rounds
        assert ended.summary["model"]["digest"] == digest(Record(expected))
        assert digest(Record(lab.last)) == digest(Record(expected))
        return lab.method, lab.last

    return go


# -- every method against the pooled rows ----------------------------------------------------------


def moments(method, state, x, y):
    np.testing.assert_allclose(state["mean"][0], x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(state["variance"][0], x.var(0), rtol=1e-13)


def covariance(method, state, x, y):
    np.testing.assert_allclose(correlation(state["covariance"]), np.corrcoef(x.T), atol=1e-12)


def histogram(method, state, x, y):
    inside = [np.histogram(column, [-np.inf, *method.edges, np.inf])[0] for column in x.T]
    np.testing.assert_array_equal(state["counts"], inside)


def quantiles(method, state, x, y):
    expected = np.quantile(x, method.quantiles, axis=0).T
    np.testing.assert_allclose(state["quantile"], expected, rtol=1e-14)


def ridge(method, state, x, y):
    expected, condition = by_least_squares(x, y, method.alpha, method.standardise)
    error = np.linalg.norm(state["coef"] - expected) / np.linalg.norm(expected)
    assert error <= 100 * EPS * condition


def logistic(method, state, x, y):
    expected = LogisticRegression(solver="newton-cholesky", tol=1e-12, max_iter=200).fit(x, y)
    np.testing.assert_allclose(state["coef"], expected.coef_, atol=1e-6)
    np.testing.assert_allclose(state["intercept"], expected.intercept_, atol=1e-6)


def naive_bayes(method, state, x, y):
    expected = GaussianNB().fit(x, y)
    np.testing.assert_allclose(state["mean"], expected.theta_, rtol=1e-12)
    np.testing.assert_allclose(state["variance"], expected.var_, rtol=1e-12)
    assert (method.predict(state, x) == expected.predict(x)).all()


def kmeans(method, state, x, y):
    pooled = Reference(method.clusters, n_init=10, random_state=0, tol=0).fit(x).inertia_
    assert state["inertia"] <= 1.01 * pooled


def pca(method, state, x, y):
    expected = Components(method.components, svd_solver="full").fit(x)
    along = (state["axes"] * expected.components_).sum(axis=1)[:, None]
    across = state["axes"] - along * expected.components_
    assert np.linalg.norm(across, axis=1).max() < 1e-6  # sine of the angle
    np.testing.assert_allclose(state["variance"], expected.explained_variance_, rtol=1e-12)


def id3(method, state, x, y):
    tree = recursive(x.tolist(), y.astype(int).tolist(), method.levels, 0)
    assert nested(state, method.levels) == tree


def boosted_trees(method, state, x, y):
    one, _ = solve(method, {"all": (x, y)}, 99)
    assert all(np.array_equal(state[key], one[key]) for key in one)


def scores(method, state, x, y):
    found, within = auc(state["counts"])
    assert abs(found - roc_auc_score(y, x[:, 0])) <= within + 1e-12 < 0.01


def confusion(method, state, x, y):
    assert state["counts"].tolist() == confusion_matrix(y, x[:, 0]).tolist()


def survival(method, state, x, y):
    curve, variance = kaplan_meier(x.astype(int).tolist(), method.horizon)
    np.testing.assert_allclose(state["survival"][0], [float(s) for s in curve], rtol=1e-14)
    np.testing.assert_allclose(state["variance"][0], [float(v) for v in variance], rtol=1e-13)


def weak(x, y):
    """Scores of a model on one column, in 0 to 1."""
    return 1 / (1 + np.exp(x[:, :1] - 14)), y


def followed(x, y):
    """Days, and whether something happened, of a table."""
    return np.stack([np.floor(x[:, 0] % 30), y], axis=1), y


CASES = {
    "moments": (moments, {"features": 13}, "wine", None),
    "covariance": (covariance, {"features": 13}, "wine", None),
    "histogram": (histogram, {"features": 13, "edges": [-1.0, 0.0, 1.5]}, "wine", None),
    "quantiles": (quantiles, {"features": 13, "quantiles": [0.0, 0.25, 0.5, 1.0]}, "wine", None),
    "ridge": (ridge, {"features": 10, "standardise": True}, "diabetes", None),
    "logistic": (logistic, {"features": 13, "classes": 3}, "wine", "standard"),
    "naive_bayes": (naive_bayes, {"features": 30, "classes": 2}, "breast_cancer", None),
    "kmeans": (kmeans, {"features": 13, "clusters": 4}, "wine", "standard"),
    "pca": (pca, {"features": 30, "components": 4}, "breast_cancer", "standard"),
    "id3": (id3, {"levels": [4] * 13, "classes": 3}, "wine", lambda x, y: (cut(x, 4), y)),
    "boosted_trees": (
        boosted_trees,
        {"features": 10, "loss": "squared", "trees": 3, "depth": 3, "bins": 16},
        "diabetes",
        None,
    ),
    "scores": (scores, {}, "breast_cancer", weak),
    "confusion": (
        confusion,
        {"classes": 2},
        "breast_cancer",
        lambda x, y: ((x[:, :1] < 15).astype(float), y),
    ),
    "kaplan_meier": (survival, {"horizon": 20}, "breast_cancer", followed),
}


def test_every_method_is_here():
    assert CASES.keys() == METHODS.keys()


@pytest.mark.parametrize("name", CASES)
def test_federated_is_pooled(federated, real, standard, uneven, name):
    check, settings, data, change = CASES[name]
    x, y = real(data)
    if change == "standard":
        x = standard(x)
    elif change:
        x, y = change(x, y)
    groups = uneven(x, y, 4)
    if name in ("moments", "kaplan_meier"):  # without labels there is one group
        groups = {site: (rows, None) for site, (rows, _) in groups.items()}
    method, state = federated({name: settings}, groups)
    check(method, state, x, y)


# -- what is not taken, and what is not told -------------------------------------------------------


def small(real, uneven):
    x, y = real("diabetes")
    return uneven(x[:, :2], y, 3)


RIDGE = {"ridge": {"features": 2}}


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda sums: {**sums, "records": np.ones(3)}, "K21"),
        (lambda sums: {key: x for key, x in sums.items() if key != "xx"}, "K21"),
        (lambda sums: {**sums, "xy": np.ones(3)}, "K22"),
        (lambda sums: {**sums, "xy": np.ones(2, np.float32)}, "K22"),
        (lambda sums: {**sums, "xy": np.array([1.0, np.nan])}, "K23"),
    ],
    ids=["another entry", "one less", "another shape", "another dtype", "not finite"],
)
def test_an_agent_sends_only_the_sums_of_this_round(tmp_path, real, uneven, spoil, code):
    lab = Lab(tmp_path, RIDGE, small(real, uneven))
    honest = lab.runner

    def runner(name, rows):
        made = honest(name, rows)
        if name != "site1":
            return made
        outcome = made.run
        made.run = lambda *asked: replace(given := outcome(*asked), tensors=spoil(given.tensors))
        return made

    lab.runner = runner
    ended = lab.run()
    assert ended.state == "failed" and f"site1: {code}" in ended.reason


def test_an_aggregator_refuses_what_an_agent_lets_through(tmp_path, real, uneven, monkeypatch):
    """An agent that takes any entries: the aggregator knows better."""
    other = (Spec("xx", "float64", (2, 2)),)
    monkeypatch.setattr(Agent, "_form", lambda self, task, model: Form(other, other))
    lab = Lab(tmp_path, RIDGE, small(real, uneven))
    honest = lab.runner

    def runner(name, rows):
        made = honest(name, rows)
        if rows:
            made.run = lambda *_: Outcome({"n": (1.0,)}, {"xx": np.ones((2, 2))})
        return made

    lab.runner = runner
    ended = lab.run()
    assert ended.state == "failed" and "K21 the reply lacks" in ended.reason


def test_a_state_that_is_none_is_not_lifted(real, monkeypatch):
    x, y = real("wine")
    for method in (Boosted(13), Ridge(13)):
        state = method.start()
        wrong = [
            {**state, "more": np.ones(1)},
            {**state, "done": np.zeros(())},
            {**state, "done": np.zeros(1, np.int64)},
            {key: value for key, value in state.items() if key != "done"},
        ]
        for each in wrong:
            with pytest.raises(TaskError, match="K55"):
                sums_signature(method, each)
    state = solve(Boosted(13), {"a": (x, y == 1)}, 4)[0]
    assert sums_signature(Boosted(13), state)[0].shape == (1, 13, 32)
    with pytest.raises(TaskError, match="K55.*level below 4, got 4"):
        sums_signature(Boosted(13), {**state, "level": np.asarray(4)})
    with pytest.raises(TaskError, match="K55.*index"):
        sums_signature(Boosted(13), {**state, "tree": np.asarray(1000)})
    monkeypatch.setattr(methods, "MOST", 903)
    with pytest.raises(TaskError, match="K55.*sums of 904 bytes"):
        sums_signature(Logistic(9), Logistic(9).start())


def test_a_tree_of_too_many_open_nodes_is_refused_before_anything_is_made(monkeypatch):
    method = ID3((2, 3), 2)  # 80 bytes a node

    def grown(nodes):
        entries = {"column": -np.ones(nodes, np.int64), "counts": np.zeros((nodes, 2))}
        entries |= dict.fromkeys(("child", "label", "open"), np.ones(nodes, np.int64))
        return {**method.start(), **entries}

    monkeypatch.setattr(methods, "MOST", 800)
    assert sums_signature(method, grown(10))[0].shape == (10, 2, 5)
    with pytest.raises(TaskError, match="K55.*open nodes"):
        sums_signature(method, grown(11))


def test_who_hides_small_groups_does_not_tell_how_many_rows_it_has(tmp_path, real, uneven):
    x, y = real("wine")
    groups = uneven(x[:, :2], y, 4)
    told = {}
    for least in (0, 30):
        flow = {"moments": {"features": 2, "groups": 3, "least": least}}
        lab = Lab(tmp_path / str(least), flow, groups)
        assert lab.run().state == "completed"
        told[least] = {e["collaborator"]: e["n"] for e in lab.events if e["event"] == "reply"}
    assert told[0] == {site: len(rows) for site, (rows, _) in groups.items()}
    assert set(told[30].values()) == {0}


def test_the_loss_of_every_state_on_the_way_is_told(tmp_path, real, standard, uneven):
    x, y = real("breast_cancer")
    lab = Lab(tmp_path, {"logistic": {"features": 30}}, uneven(standard(x), y, 3))
    lab.run()
    rows = [e for e in lab.events if e["event"] == "metric" and e["collaborator"] == "aggregate"]
    assert {(each["task"], each["metric"]) for each in rows} == {("lift", "loss")}
    assert [each["model"] for each in rows] == list(range(len(rows)))
    assert rows[0]["value"] == pytest.approx(np.log(2))  # nothing is known at the start
    p = lab.method.probabilities(lab.last, standard(x))[np.arange(len(x)), y.astype(int)]
    assert rows[-1]["value"] == pytest.approx(-np.log(p).mean(), rel=1e-6)


def test_rounds_that_are_too_few_fail_and_keep_the_state(tmp_path, real, uneven):
    x, y = real("wine")
    lab = Lab(tmp_path, {"pca": {"features": 13, "components": 2}}, uneven(x, y, 3), rounds=1)
    ended = lab.run()
    assert ended.state == "failed" and ended.reason.startswith("F06")
    assert lab.last["n"] == len(x) and not done(lab.last)


def test_what_the_rows_cannot_answer_fails_with_the_reason(tmp_path, real):
    x, y = real("wine")
    lab = Lab(tmp_path, {"logistic": {"features": 13}}, {"a": (x, np.zeros(len(x)))})
    assert lab.run().reason.startswith("K52  logistic regression: no site has a row of class 1")


class Growing:
    """A federation in which one more site is there every round; all have the same rows."""

    plan = SimpleNamespace(rounds=9)

    def __init__(self, method, rows):
        self.method, self.rows, self.asked, self.round = method, rows, [], 0

    @property
    def roster(self):
        return tuple(f"site{i}" for i in range(self.round + 1))

    def begin(self):
        return self.method.start()

    def rounds(self, state):
        while self.round < self.plan.rounds:
            self.round += 1
            yield self.round

    def added(self, task, model, entries, cohort):
        self.asked.append((task, tuple(cohort)))
        return total({name: self.method.lift(model, *self.rows) for name in cohort})

    def whole(self, model):
        return model


def test_sites_that_come_later_are_not_asked(real):
    """Sums of one round are over the same rows as those of the next."""
    x, y = real("wine")
    fed = Growing(PCA(13, 2), (x, y))
    state = exact(fed, fed.method)
    assert fed.asked == [("lift", ("site0", "site1"))] * 2
    assert state["n"] == 2 * len(x)
