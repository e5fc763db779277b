"""The workspaces that ship: what they learn, and that they stay small.

The federation is played in this process: the plan's runner at every site, updates reduced by the
rule of the plan. What the nodes add is tested elsewhere; the numbers are the same.
"""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from openfed.data.idx import read_mnist
from openfed.errors import TaskError
from openfed.exact.base import done, solve
from openfed.exact.methods import make_method
from openfed.launch.initial import task_config
from openfed.plan.load import load_plan
from openfed.plan.local import read_local
from openfed.plan.schema import Plan
from openfed.tasks.base import Runner, Task
from openfed.tasks.config import Choice, Config, read_config
from openfed.tasks.metrics import add, finish
from openfed.tasks.runners import check_data, make_data, make_runner
from openfed.tasks.seeds import derive
from openfed.typing import Tensors
from openfed.workspace import create, templates

NAMES = (
    *("numpy_linear", "sklearn_breast_cancer", "tabular_fraud", "tabular_statistics"),
    *("torch_digits", "torch_mnist", "torch_recommender"),
)


@pytest.fixture
def enter(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Path]]:
    """Go into a workspace of a template as its task process does."""

    def forget() -> None:
        for name in [name for name in sys.modules if name == "src" or name.startswith("src.")]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def go(name: str) -> Path:
        folder = tmp_path_factory.mktemp("workspace") / name
        create(folder, name)
        forget()
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.chdir(folder)
        return folder

    yield go
    forget()


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Callable[[str, list[tuple[float, float]]], None]:
    """Prints a comparison where the reader of a test run sees it, also when the test passes."""

    def show(name: str, results: list[tuple[float, float]]) -> None:
        with capsys.disabled():
            print(f"\n{name}, federated and pooled: {np.round(results, 4).tolist()}")

    return show


def sites(folder: Path, plan: Plan, scratch: Path) -> dict[str, tuple[Config, Any]]:
    """Every collaborator's configuration, as its task process reads it, and its data."""
    found = {}
    for name, source in read_local(folder / "local.yaml", plan.collaborators).sites.items():
        told = task_config(folder, plan, name, source, "cpu", 1)
        (scratch / "task.json").write_text(json.dumps(told))
        config = read_config(scratch / "task.json")
        found[name] = (config, make_data(config.data_loader, config.source))
        check_data(config.contract, found[name][1])
    return found


def federate(runners: Mapping[str, Runner], config: Config, settings: Any = None) -> Tensors:
    """The last model of the plan's rounds: weighted means of what the sites trained."""
    model = next(iter(runners.values())).initial(config.seed)[0]
    for round in range(1, config.rounds + 1):
        answers = []
        for name, runner in sorted(runners.items()):
            seed = derive(config.seed, round, name, "train")
            task = Task("train", round, config.rounds, name, seed, settings or {})
            answers.append(runner.run(task, model, {}))
        counts = [answer.numbers["n"][0] for answer in answers]
        model = {
            name: np.average(
                [answer.tensors[name] for answer in answers], axis=0, weights=counts
            ).astype(value.dtype)
            for name, value in model.items()
        }
    return model


def score(runners: Mapping[str, Runner], model: Tensors, metric: str) -> float:
    sums = None
    for name, runner in runners.items():
        numbers = runner.run(Task("validate", 1, 1, name, 0), model, {}).numbers
        sums = add(sums, numbers[f"metrics/validate/{metric}"])
    value = finish(metric, sums or ())
    assert value is not None
    return value


class Pooled:
    """All sites' data in one place, in batches of the same size; held out is what they hold out."""

    def __init__(self, parts: list[Any], join: Callable[[list[Any]], Any], size: int) -> None:
        self.parts, self.join, self.size = parts, join, size

    def train(self, *, seed: int) -> Iterator[Any]:
        batches = [batch for part in self.parts for batch in part.train(seed=seed)]
        inputs, targets = (self.join([batch[side] for batch in batches]) for side in (0, 1))
        order = np.random.default_rng(seed).permutation(len(targets))
        for rows in np.split(order, range(self.size, len(order), self.size)):
            yield inputs[rows], targets[rows]

    def validate(self) -> Iterator[Any]:
        for part in self.parts:
            yield from part.validate()


def pooled(folder: Path, plan: Plan, scratch: Path, join: Any, size: int) -> float:
    """Accuracy of the model trained on all sites' data at once, on what the sites hold out."""
    found = sites(folder, plan, scratch)
    config = next(iter(found.values()))[0]
    data = Pooled([data for _, data in found.values()], join, size)
    together = {"all": make_runner(config, data)}
    return score(together, federate(together, config), "accuracy")


def over_mtls(here: Any, settings: str) -> float:
    """Aggregated accuracy of the last model of a real run: processes, certificates, network."""
    ran = here.fx("run", "--json", "-s", settings)
    assert ran.returncode == 0, ran.stderr
    accuracy: float = json.loads(ran.stdout.splitlines()[-1])["metrics"]["accuracy"]
    return accuracy


@pytest.mark.parametrize("name", NAMES)
def test_a_template_is_small_and_has_all_its_files(name: str) -> None:
    folder = templates()[name]
    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert len(path.read_text().splitlines()) <= 150, path
            text = path.read_text().replace("openfed.data.", "")  # readers of files
            assert "openfed" not in text or path.suffix in (".md", ".ipynb"), path
    for file in ("plan/plan.yaml", "local.yaml", "README.md", "requirements.txt"):
        assert (folder / file).is_file()


def test_every_template_is_tested_here() -> None:
    assert tuple(templates()) == NAMES


def test_the_digits_are_those_of_scikit_learn(enter: Callable[[str], Path]) -> None:
    enter("torch_digits")
    pictures, labels = importlib.import_module("src.data").read_digits()
    inputs, targets = load_digits(return_X_y=True)
    np.testing.assert_array_equal(pictures.reshape(-1, 64).numpy() * 16, inputs)
    np.testing.assert_array_equal(labels.numpy(), targets)


def test_shards_are_disjoint_whole_and_hold_out_a_fifth(enter: Callable[[str], Path]) -> None:
    enter("torch_digits")
    loader = importlib.import_module("src.data").Digits
    shares = [loader({"shard": k, "of": 3}) for k in (1, 2, 3)]
    rows = [int(row) for s in shares for part in (s._train, s._validate) for row in part]
    assert sorted(rows) == list(range(1797))
    assert sum(len(share._validate) for share in shares) == pytest.approx(1797 / 5, abs=3)


def test_digits_are_learned_in_three_rounds(enter: Callable[[str], Path], tmp_path: Path) -> None:
    folder = enter("torch_digits")
    plan = load_plan(folder / "plan" / "plan.yaml", ["rounds=3"])
    found = sites(folder, plan, tmp_path)
    runners = {name: make_runner(own, data) for name, (own, data) in found.items()}
    model = federate(runners, found["one"][0])
    assert score(runners, model, "accuracy") >= 0.93


def test_digits_become_the_four_files_of_mnist(enter: Callable[[str], Path]) -> None:
    folder = enter("torch_mnist")
    importlib.import_module("src.make_data").write_digits(folder / "data")
    parts = {"train": 1500, "t10k": 297}
    names = {f"{part}-{kind}-ubyte.gz" for part in parts for kind in ("images-idx3", "labels-idx1")}
    assert {path.name for path in (folder / "data").iterdir()} == names
    inputs, targets = load_digits(return_X_y=True)
    found = []
    for part, count in parts.items():
        paths = [
            folder / "data" / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")
        ]
        read = read_mnist(*paths)
        assert read.inputs.shape == (count, 28, 28)
        small = np.round(read.inputs[:, 3:26:3, 3:26:3].reshape(count, 64) * (16 / 255.0))
        found.append(np.column_stack([small, read.targets]))
    ours, theirs = np.concatenate(found), np.column_stack([inputs, targets])
    np.testing.assert_array_equal(*(rows[np.lexsort(rows.T)] for rows in (ours, theirs)))


def test_the_pictures_of_mnist_are_dealt_out_and_learned(
    enter: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = enter("torch_mnist")
    plan = load_plan(folder / "plan" / "plan.yaml", ["rounds=3"])
    found = sites(folder, plan, tmp_path)
    loaders = [data for _, data in found.values()]
    counts = np.array([np.bincount(d.samples().targets, minlength=10) for d in loaders])
    whole = np.bincount(read_mnist(*(sorted(folder.glob("data/train-*")))).targets)
    assert counts.sum(axis=0).tolist() == whole.tolist() and counts.sum() == 1500
    assert counts.sum(axis=1).min() >= 100
    assert (counts < 5).sum() >= 8  # kinds of digits that a site has hardly seen
    assert sum(len(targets) for d in loaders for _, targets in d.validate()) == 297
    runners = {name: make_runner(own, data) for name, (own, data) in found.items()}
    model = federate(runners, found["one"][0])
    assert score(runners, model, "accuracy") >= 0.85


def test_frauds_are_found_as_well_as_on_pooled_payments(
    enter: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = enter("tabular_fraud")
    found = sites(folder, load_plan(folder / "plan" / "plan.yaml"), tmp_path)
    runners = {name: make_runner(own, data) for name, (own, data) in found.items()}
    model = federate(runners, found["north"][0])
    parts = {
        kind: [batch for _, data in found.values() for batch in getattr(data, kind)(**seed)]
        for kind, seed in (("train", {"seed": 0}), ("validate", {}))
    }
    (inputs, targets), (unseen, wanted) = (
        [np.concatenate(side) for side in zip(*batches, strict=True)] for batches in parts.values()
    )
    assert len(wanted) == 2400 and 0.01 < wanted.mean() < 0.05
    together = LogisticRegression(class_weight="balanced").fit(inputs, targets)
    best = roc_auc_score(wanted, together.decision_function(unseen))
    assert best > 0.9 and score(runners, model, "auc") == pytest.approx(best, abs=0.01)
    assert score(runners, model, "recall") > 0.8


def test_a_bank_whose_file_breaks_the_contract_is_told_which_rule(
    enter: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = enter("tabular_fraud")
    plan = load_plan(folder / "plan" / "plan.yaml")
    importlib.import_module("src.make_data").write_payments(folder / "data")
    path = folder / "data" / "south.csv"
    path.write_text(path.read_text() + "987654.25,3,1.0,0,true,zz9secret,1\n")
    with pytest.raises(TaskError) as caught:
        sites(folder, plan, tmp_path)
    assert str(caught.value) == (
        "K49  data contract: column 'amount': there are values outside 0 to 100000; column "
        "'channel': there are other values than 'chip', 'online', 'stripe'"
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["tabular_fraud", "torch_mnist"])
def test_templates_with_a_contract_run_over_mtls(workspace: Any, name: str) -> None:
    ran = workspace(name).fx("run", "--json", timeout=300)
    assert ran.returncode == 0, ran.stderr
    metrics = json.loads(ran.stdout.splitlines()[-1])["metrics"]
    assert metrics["auc" if name == "tabular_fraud" else "accuracy"] > 0.93


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_digits_are_as_good_as_pooled_in_five_seeds(
    enter: Callable[[str], Path], tmp_path: Path, workspace: Any, show: Callable[..., None]
) -> None:
    folder, here = enter("torch_digits"), workspace("torch_digits")
    results = []
    for seed in range(5):
        plan = load_plan(folder / "plan" / "plan.yaml", [f"seed={seed}"])
        assert plan.rounds == 10 and len(plan.collaborators) == 2
        federated = over_mtls(here, f"seed={seed}")
        results.append((federated, pooled(folder, plan, tmp_path, torch.cat, 32)))
    show("torch_digits", results)
    each, together = np.array(results).T
    assert each.min() >= 0.96
    assert abs(each.mean() - together.mean()) <= 0.01


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_breast_cancer_is_as_good_as_pooled_over_five_splits(
    enter: Callable[[str], Path], tmp_path: Path, workspace: Any, show: Callable[..., None]
) -> None:
    folder, here = enter("sklearn_breast_cancer"), workspace("sklearn_breast_cancer")
    results = []
    for split in range(5):
        setting = f"data_loader.split={split}"
        plan = load_plan(folder / "plan" / "plan.yaml", [setting])
        assert len(plan.collaborators) == 3 and plan.data_loader.settings["split"] == split
        joined = pooled(folder, plan, tmp_path, np.concatenate, 1000)
        results.append((over_mtls(here, setting), joined))
    show("sklearn_breast_cancer", results)
    each, together = np.mean(results, axis=0)
    assert each > 0.95
    assert abs(each - together) <= 0.02


def test_scaling_constants_stand_in_the_plan(enter: Callable[[str], Path], tmp_path: Path) -> None:
    folder = enter("sklearn_breast_cancer")
    plan = load_plan(folder / "plan" / "plan.yaml")
    inputs = [
        batch[0]
        for _, data in sites(folder, plan, tmp_path).values()
        for batch in data.train(seed=0)
    ]
    together = np.concatenate(inputs)
    assert np.abs(together.mean(axis=0)).max() < 0.25
    assert np.abs(together.std(axis=0) - 1).max() < 0.25


def test_the_line_is_found(enter: Callable[[str], Path], tmp_path: Path) -> None:
    folder = enter("numpy_linear")
    found = sites(folder, load_plan(folder / "plan" / "plan.yaml"), tmp_path)
    runners = {name: make_runner(own, data) for name, (own, data) in found.items()}
    model = federate(runners, found["mill"][0])
    assert model["slope"] == pytest.approx(2, abs=0.1)
    assert model["offset"] == pytest.approx(1, abs=0.1)
    assert score(runners, model, "rmse") < 0.3


LISTED = (templates()["tabular_statistics"] / "README.md").read_text().splitlines()
FLOWS = [row.split("`")[1] for row in LISTED if row.startswith("| `{")]


@pytest.mark.parametrize("flow", ["", *FLOWS])
def test_every_flow_of_the_statistics_runs_on_their_rows(
    enter: Callable[[str], Path], tmp_path: Path, flow: str
) -> None:
    folder = enter("tabular_statistics")
    wanted = [f"flow={flow}", "rounds=100"] if flow else []
    plan = load_plan(folder / "plan" / "plan.yaml", wanted)
    assert plan.flow is not None
    method = make_method(plan.flow.name, plan.flow.settings)
    found = sites(folder, plan, tmp_path)
    rows = {name: data.table() for name, (_, data) in found.items()}
    state, _ = solve(method, rows, plan.rounds)
    assert done(state)
    once = Task("lift", 1, plan.rounds, "clinic", 0)
    config, data = found["clinic"]
    sums = make_runner(config, data).run(once, method.start(), {}).tensors
    expected = method.lift(method.start(), *rows["clinic"])
    assert all(np.array_equal(sums[key], x) for key, x in expected.items())
    if not flow:
        x, y = map(np.concatenate, zip(*rows.values(), strict=True))
        pooled = LogisticRegression(solver="newton-cholesky", tol=1e-12, max_iter=200).fit(x, y)
        assert len(x) == 569
        np.testing.assert_allclose(state["coef"], pooled.coef_, atol=1e-6)


def test_the_configuration_of_a_task_process_has_every_setting(
    enter: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = enter("torch_digits")
    found = sites(folder, load_plan(folder / "plan" / "plan.yaml"), tmp_path)
    config = found["two"][0]
    assert replace(config, runner=None, output_limit=0) == Config(  # type: ignore[arg-type]
        workspace=folder,
        collaborator="two",
        runner=None,  # type: ignore[arg-type]
        data_loader=config.data_loader,
        strategy=Choice("fedavg", {}),
        contract=None,
        source={"shard": 2, "of": 2},
        seed=7,
        rounds=10,
        metrics=("accuracy",),
        scope=(),
        device="cpu",
        threads=1,
        output_limit=0,
    )


@pytest.mark.slow
def test_tastes_of_unseen_users_are_rebuilt_and_never_leave_their_site(workspace: Any) -> None:
    here = workspace("torch_recommender")
    ran = here.fx("run", "--json", "-s", "retention={updates: all}")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    mean = root_of_mean_error(here.root)
    print(f"torch_recommender: {told['metrics']['rmse']:.4f}, the mean of each item: {mean:.4f}")
    assert told["metrics"]["rmse"] <= 0.40 < 1.0 < mean
    sent = [*(here.root / "runs" / told["run"] / "blobs").glob("*.*")]  # one file a reply
    assert len(sent) == 4 * (20 + 21)  # updates, scores
    shared = 4 * (150 * 4 + 150 + 1)  # bytes; those of a site's users would be 10,000
    assert max(path.stat().st_size for path in sent) < shared + 500
    updates = [path.read_bytes() for path in sent if path.stat().st_size > shared]
    assert len(updates) == 4 * 20
    assert all(b"item.weight" in update and b"user" not in update for update in updates)


def root_of_mean_error(root: Path) -> float:
    """Of each item's mean rating by the users who train, for those who don't."""
    data = subprocess.run(
        [sys.executable, "-c", MEAN], cwd=root, capture_output=True, text=True, check=True
    )
    return float(data.stdout)


MEAN = """
import torch
from src.data import ITEMS, Ratings
sites = [Ratings({"shard": k}, users=500) for k in (1, 2, 3, 4)]
def all(kind):
    batches = [b for site in sites for b in (site.train(seed=0) if kind else site.validate())]
    return torch.cat([p[:, 1] for p, _ in batches]), torch.cat([r for _, r in batches])
item, rating = all(True)
mean = torch.zeros(ITEMS).index_add(0, item, rating) / torch.bincount(item, minlength=ITEMS)
item, rating = all(False)
print(float(((rating - mean[item]) ** 2).mean().sqrt()))
"""
