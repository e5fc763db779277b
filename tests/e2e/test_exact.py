"""A method on sums over mTLS: nodes die in the middle, the answer is that of the pooled rows."""

import json
import shutil

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

from openfed.tensors.model_file import read_model
from openfed.workspace import TEMPLATES
from tests.e2e import crash
from tests.e2e.folders import fx


@pytest.fixture
def root(tmp_path):
    shutil.copytree(TEMPLATES / "tabular_statistics", tmp_path / "w")
    plan = tmp_path / "w" / "plan" / "plan.yaml"
    plan.write_text(plan.read_text() + "retention: {updates: all}\n")
    return tmp_path / "w"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_federation_finds_the_answer_of_the_pooled_rows(root, tmp_path):
    killed = tmp_path / "killed"
    shutil.copytree(root, killed)
    crash.run(crash.Deaths(root))
    left = {
        "aggregator": ["journal.turn=kill@4", "journal.reply=kill@2", "journal.close=kill@1"],
        "clinic": ["local.owe=kill@2"],
        "hospital.task": ["task.ran=kill@2"],
    }
    deaths = crash.Deaths(killed, left)
    crash.run(deaths)
    assert not any(left.values()) and len(deaths.fired) == 5
    assert crash.digest(killed) == crash.digest(root)
    assert crash.rounds(killed) == crash.rounds(root)
    assert crash.replayed(killed, tmp_path / "again") == crash.digest(root)
    told = json.loads(fx(killed, "ledger", "verify", "--json"))
    assert told["ok"] and told["rounds"] == max(crash.rounds(root))
    (x, y), state = load_breast_cancer(return_X_y=True), read_model(next(root.glob("save/*_last*")))
    expected = LogisticRegression(solver="newton-cholesky", tol=1e-12, max_iter=200)
    expected.fit(x[:, :10], y)
    np.testing.assert_allclose(state["coef"], expected.coef_, atol=1e-6)
    np.testing.assert_allclose(state["intercept"], expected.intercept_, atol=1e-6)
