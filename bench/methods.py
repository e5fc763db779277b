"""`scripts/bench methods`: strategies on data that differ from site to site, side by side.

scikit-learn's digits, a fifth of them held out for a test set, the rest dealt to ten sites by a
Dirichlet distribution (alpha 0.1, ten samples at least); full participation, plain SGD. Every
method's learning rate is the best of the grid on other seeds than those that count. What runs is
openfed's own: runners, strategies, reduction; only processes and network are left out.
`test` is the last model's accuracy on the test set. A site's own samples, every fifth held out,
score the shared model before and after the site's training (`before`, `after`; for a method that
keeps a model at the site, `after` is that model), in the mean over the sites and for the worst one.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import report
from openfed.data.partition import dirichlet
from openfed.plan.choices import LOSSES
from openfed.plan.choices import STRATEGIES as SETTINGS
from openfed.registry import STRATEGIES
from openfed.strategy.base import CONTROL
from openfed.strategy.reduce import Weighted, reduce_updates
from openfed.tasks.base import Task
from openfed.tasks.config import Choice, Config
from openfed.tasks.seeds import derive
from openfed.tasks.torch import TorchRunner
from openfed.tensors.frame import Held
from openfed.tensors.record import Kind, Record
from openfed.tensors.update import add, difference, update_signature

SITES, BATCH = 10, 32
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedavgm": {"lr": 1.0, "momentum": 0.5},
    "fedadam": {"lr": 0.01},
    "fedprox": {"mu": 0.1},
    "scaffold": {},
    "feddyn": {"alpha": 0.1},
    "mimelite": {"beta": 0.5},
    "fedplus": {"pull": 0.1},
    "ditto": {"pull": 0.1},
    "fedrep": {"head_epochs": 1},
}
RATES = (0.03, 0.1, 0.3, 1.0)
HEAD = (("head.*", "local"),)
LOSS = LOSSES["cross_entropy"]().model_dump(exclude_none=True)


class Net(nn.Module):
    """64 -> 64 -> 10: 4,810 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Share:
    """A site's samples; every fifth is held out."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        held = torch.arange(len(targets)) % 5 == 4
        self._train, self._held = (inputs[~held], targets[~held]), (inputs[held], targets[held])

    def train(self, *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = self._train
        rows = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
        return ((inputs[part], targets[part]) for part in rows.split(BATCH))

    def validate(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self._held


def main(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)
    rows, runs = [], []
    for name in given.methods:
        tuned = {
            rate: mean(federated(name, rate, seed, given)["test"] for seed in given.tuning)
            for rate in RATES
        }
        rate = max(tuned, key=lambda each: tuned[each])
        found = [federated(name, rate, seed, given) for seed in given.seeds]
        runs.append({"method": name, "rate": rate, "tuned": tuned, "runs": found})
        first = runs[0]["runs"]
        rows.append(row(name, rate, found, first))
        report.table("so far", rows[-1:])
    rows.append(row("pooled", None, [pooled(seed, given) for seed in given.seeds], None))
    report.table(f"{given.rounds} rounds of {given.epochs} epochs, accuracy in points", rows)
    report.save("methods", {"table": rows, "runs": runs}, given.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench methods", description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--tuning", nargs="+", type=int, default=[100, 101])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--out", help="the JSON file")
    return parser


def digits(seed: int, alpha: float) -> tuple[list[Share], Share]:
    """The sites' shares, and the test set as one whose every sample is held out."""
    from sklearn.datasets import load_digits

    found = load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(found.target))
    inputs = torch.from_numpy((found.data[order] / 16).astype(np.float32))
    targets = torch.from_numpy(found.target[order])
    cut = len(order) // 5
    parts = dirichlet(targets[cut:].numpy(), SITES, rng, alpha=alpha, minimum=10)
    shares = [Share(inputs[cut:][part], targets[cut:][part]) for part in parts]
    test = Share(inputs[:0], targets[:0])
    test._held = inputs[:cut], targets[:cut]
    return shares, test


def runner(name: str, rate: float, seed: int, epochs: int, data: Any) -> TorchRunner:
    settings: dict[str, Any] = {
        "model": {"name": f"{__name__}:Net", "settings": {}},
        "loss": {"name": "cross_entropy", "settings": LOSS},
        "optimizer": {"name": "sgd", "settings": {"lr": rate}},
        "optimizer_state": "reset", "steps": None, "epochs": epochs, "scheduler": None,
        "train": None, "clip_grad_norm": None, "accumulate": 1, "precision": "fp32",
        "freeze": (), "param_groups": (),
    }  # fmt: skip
    config = Config(
        workspace=Path(), collaborator="", runner=Choice("torch", settings),
        data_loader=Choice("", {}), strategy=Choice(name, chosen(name)), contract=None, source=None,
        seed=seed, rounds=1, metrics=("accuracy",), scope=HEAD if name == "fedrep" else (),
        device="cpu", threads=1, output_limit=0,
    )  # fmt: skip
    return TorchRunner(config, data)


def chosen(name: str) -> dict[str, Any]:
    return SETTINGS[name].model_validate(METHODS[name]).model_dump()


def federated(name: str, rate: float, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """One run. Accuracies are in [0, 1]; NaN or infinity on the way ends it at 0."""
    shares, test = digits(seed, given.alpha)
    runners = [runner(name, rate, seed, given.epochs, share) for share in shares]
    model, signature = runners[0].initial(seed)
    strategy = STRATEGIES[name](**chosen(name))
    seen = {s.name for s in signature if s.kind in (Kind.PARAMETER, Kind.CONTROL)}
    state = strategy.init({n: x for n, x in model.items() if n in seen})
    kept: list[Any] = [{} for _ in shares]
    for round in range(1, given.rounds + 1):
        updates = []
        for site, one in enumerate(runners):
            outcome = one.run(task("train", round, site, seed), model, kept[site])
            kept[site] = outcome.local or kept[site]
            moved = {n: difference(x, model[n]) for n, x in outcome.tensors.items()}
            if not all(np.isfinite(x).all() for x in moved.values()):
                return {"seed": seed, "test": 0.0, "before": [0.0], "after": [0.0]}
            updates.append(Weighted(Held(Record(moved)), outcome.numbers["n"][0]))
        update = reduce_updates(updates, update_signature(signature))
        state, move = strategy.step(state, update, 1.0)
        model = add(model, move)
    personal = [
        one.run(task("train", given.rounds + 1, site, seed, tuned=True), model, kept[site])
        for site, one in enumerate(runners)
    ]
    shared = [
        one.run(task("validate", 1, site, seed), model, kept[site])
        for site, one in enumerate(runners)
    ]
    whole = {n: x for n, x in model.items() if not n.startswith(CONTROL)}
    scored = runner(name, rate, seed, 1, test).run(task("validate", 1, 0, seed), whole, kept[0])
    return {
        "seed": seed,
        "test": accuracy(scored, "validate"),
        "before": [accuracy(one, "validate") for one in shared],
        "after": [accuracy(one, "validate_tuned") for one in personal],
    }


def pooled(seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """All sites' data in one place, for as many passes, at the best rate for that."""
    shares, test = digits(seed, given.alpha)
    parts = [share._train for share in shares]
    whole = Share(torch.empty(0, 64), torch.empty(0, dtype=torch.int64))
    whole._train = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
    whole._held = test._held
    one = runner("fedavg", 0.1, seed, given.rounds * given.epochs, whole)
    trained = one.run(task("train", 1, 0, seed, tuned=True), one.initial(seed)[0], {})
    return {"seed": seed, "test": accuracy(trained, "validate_tuned"), "before": [], "after": []}


def task(name: str, round: int, site: int, seed: int, **settings: Any) -> Task:
    return Task(name, round, 1, str(site), derive(seed, round, site, name), settings)


def accuracy(outcome: Any, scored: str) -> float:
    right, count = outcome.numbers[f"metrics/{scored}/accuracy"]
    return right / count


def row(
    name: str, rate: float | None, found: Sequence[dict[str, Any]],
    first: Sequence[dict[str, Any]] | None,
) -> dict[str, Any]:  # fmt: skip
    tests = [100 * each["test"] for each in found]
    told: dict[str, Any] = {"method": name, "lr": rate, "test": mean(tests), "+-": stdev(tests)}
    pairs = zip(found, first or (), strict=False)
    gains = [100 * (one["test"] - base["test"]) for one, base in pairs]
    told |= {"over the first": mean(gains) if gains else None}
    told |= {"above it": f"{sum(gain > 0 for gain in gains)} of {len(gains)}" if gains else None}
    for key in ("before", "after"):
        sites = [x for each in found for x in each[key] if not math.isnan(x)]
        worst = [min(each[key]) for each in found if each[key]]
        told |= {key: 100 * mean(sites) if sites else None}
        told |= {f"worst {key}": 100 * mean(worst) if worst else None}
    return told
