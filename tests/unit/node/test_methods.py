"""The methods that a plan names, in whole federations: from the plan's line to the model."""

import shutil

import numpy as np
import pytest

from openfed.tasks.base import Outcome
from openfed.tensors.frame import digest
from openfed.tensors.record import Kind, Record

AIM = np.float32([1.2, -0.8, 0.4, -1.0, 0.5, 0.2])
MODEL = {"w": np.zeros(len(AIM), np.float32)}
KINDS = {"w": Kind.PARAMETER}


class Site:
    """Goes half of the way to `AIM`, a little beside it; a hostile one four times as far the other
    way, and it claims a thousand times the samples."""

    def __init__(self, *, hostile=False):
        self.hostile = hostile

    def __call__(self, task, model, local):
        beside = np.random.default_rng(task.seed).normal(size=len(AIM)) * 0.05
        step = (AIM - model["w"]) / 2 + beside.astype(np.float32)
        about = {"n": (10_000.0 if self.hostile else 10.0,), "seconds": (0.0,)}
        return Outcome(about, {"w": model["w"] + step * np.float32(-4 if self.hostile else 1)})


def sites(count, hostile):
    return {f"s{k:02d}": Site(hostile=k < hostile) for k in range(count)}


def away(here):
    """How far the last model is from the aim, as a share of its norm."""
    return np.linalg.norm(here.last["w"] - AIM) / np.linalg.norm(AIM)


def run(lab, strategy, toys, rounds, **more):
    said = f"strategy: {strategy}\ntasks: [train]"
    here = lab(toys, rounds=rounds, model=MODEL, kinds=KINDS, more=said, **more)
    ended = here.run()
    assert ended.state == "completed", ended.reason
    return here


ROBUST = {
    "median": (10, 0.1),
    "{trimmed_mean: {f: 3}}": (10, 0.1),
    "geometric_median": (10, 0.1),
    "{krum: {f: 3}}": (10, 0.1),
    "{multi_krum: {f: 3}}": (10, 0.1),
    "{multi_krum: {f: 3, m: 2}}": (10, 0.1),
    "{bulyan: {f: 3}}": (15, 0.1),
    "{norm_clipping: {norm: 0.5}}": (10, 0.5),  # three of ten pull back as hard as others pull
    "{norm_clipping: {norm: 0.5, rule: median}}": (10, 0.1),
    "{adaptive_clipping: {norm: 0.5}}": (10, 0.5),
    "{centred_clipping: {radius: 0.1, steps: 5}}": (10, 0.2),
}
"""How many sites, and how far from the aim the model may be in the end."""


@pytest.mark.parametrize("strategy", ROBUST)
def test_three_hostile_sites_do_not_steer(lab, strategy):
    count, most = ROBUST[strategy]
    here = run(lab, strategy, sites(count, 3), rounds=6)
    assert here.lock.plan.weights.name == "uniform"
    assert away(here) < most


@pytest.mark.parametrize("weights", ["samples", "uniform"])
def test_three_hostile_sites_steer_the_mean(lab, weights):
    assert away(run(lab, f"fedavg\nweights: {weights}", sites(10, 3), rounds=6)) > 3


# -- what is remembered from round to round --------------------------------------------------------


def clipped(x, norm):
    return x * np.minimum(1, norm / np.linalg.norm(x, axis=1))[:, None]


def adaptive(rounds):
    """adaptive_clipping {norm: 0.3, quantile: 0.5, rate: 0.2} of [sites, elements] per round."""
    norm = 0.3
    for x in rounds:
        yield clipped(x, norm).mean(axis=0)
        norm *= np.exp(-0.2 * (np.mean(np.linalg.norm(x, axis=1) <= norm) - 0.5))


def centred(rounds):
    """centred_clipping {radius: 0.2, steps: 2}."""
    v = np.zeros(len(AIM))
    for x in rounds:
        for _ in range(2):
            v = v + clipped(x - v, 0.2).mean(axis=0)
        yield v


REMEMBER = {
    "adaptive_clipping: {norm: 0.3}": adaptive,
    "centred_clipping: {radius: 0.2, steps: 2}": centred,
}


@pytest.mark.parametrize("strategy", REMEMBER)
def test_the_next_round_goes_on_from_what_the_last_one_left_also_after_a_crash(
    lab, tmp_path, crash_points, strategy
):
    said = f"strategy: {{{strategy}}}\ntasks: [train]\nretention: {{updates: all}}"
    here = lab(sites(3, 1), rounds=3, model=MODEL, kinds=KINDS, more=said)
    points = crash_points(here, tmp_path / "points")
    rounds = [[x["w"].astype(float) for _, _, x in here.updates()[r]] for r in (1, 2, 3)]
    expected = sum(REMEMBER[strategy](np.array(rounds)))
    np.testing.assert_allclose(here.last["w"], expected, atol=1e-6)
    whole = digest(Record(here.last))
    for point in points[5::6]:
        shutil.copytree(here.root / "save", point / "save")
        (point / "save" / "toy_last.safetensors").unlink()
        here.root, original = point, here.root
        assert here.run().state == "completed"
        assert digest(Record(here.last)) == whole
        here.root = original


# -- what sites report -----------------------------------------------------------------------------

TORCH = '{{torch: {{model: "src.toy:Net", loss: mse, optimizer: {{sgd: {{{}}}}}}}}}'


class Reports:
    """Moves every element by `by`, and says this of it."""

    def __init__(self, by, n, **told):
        self.by, self.told = by, {"n": (n,), "seconds": (0,)} | {k: (v,) for k, v in told.items()}
        self.seen = []

    def __call__(self, task, model, local):
        self.seen.append(task.settings)
        told = {name: (float(x),) for name, (x,) in self.told.items()}
        return Outcome(told, {"w": model["w"] + np.float32(self.by)})


def moved(lab, strategy, sgd, **toys):
    here = run(lab, strategy, toys, rounds=1, runner=TORCH.format(sgd))
    assert len(set(here.last["w"].tolist())) == 1
    return here.last["w"][0]


@pytest.mark.parametrize(
    ("sgd", "one", "two", "expected"),
    [
        # p = 1/4, 3/4; t = 1/4 * 2 + 3/4 * 10 = 8; 8 * (1/4 * 4 / 2 + 3/4 * -10 / 10)
        ("lr: 0.1", (4, 2), (-10, 10), -2.0),
        # two steps with momentum 1/2 go 2.5 gradients: t = 1.375; t * (1/4 * 5 / 2.5 - 3/4 * 3)
        ("lr: 0.1, momentum: 0.5", (5, 2), (-3, 1), -2.40625),
    ],
)
def test_fednova_divides_by_the_steps_that_sites_report(lab, sgd, one, two, expected):
    one, two = Reports(one[0], 1, steps=one[1]), Reports(two[0], 3, steps=two[1])
    np.testing.assert_allclose(moved(lab, "fednova", sgd, one=one, two=two), expected, atol=1e-7)
    assert one.seen == [{"tuned": False, "reports": ["steps"]}]


def test_qfedavg_weighs_by_the_losses_that_sites_report(lab):
    # L = 1 / lr = 2, six elements: F L x = -2, 2 * 4 * -2;
    # h = 1 * 4 * 6 + 2 * 1, 1 * 4 * 6 * 4 + 2 * 4; the numbers of samples do not count
    toys = {"one": Reports(-1, 1, loss_before=1), "two": Reports(-2, 99, loss_before=4)}
    got = moved(lab, "{qfedavg: {q: 1.0}}", "lr: 0.5", **toys)
    np.testing.assert_allclose(got, (-2 - 16) / (26 + 104), atol=1e-7)


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        ("fednova", {}),
        ("fednova", {"steps": 0}),
        ("fednova", {"steps": 1, "loss_before": 1}),
        ("{qfedavg: {q: 1.0}}", {"loss_before": -1}),
        ("fedavg", {"steps": 1}),
    ],
)
@pytest.mark.parametrize("honest", [True, False], ids=["agent", "aggregator"])
def test_a_number_that_the_strategy_needs_must_be_there_and_no_other(
    lab, strategy, told, honest, monkeypatch
):
    if not honest:  # an agent that checks nothing
        for check in ("check_numbers", "check_reports"):
            monkeypatch.setattr(f"openfed.node.agent.{check}", lambda *_, **__: None)
    said = f"strategy: {strategy}\ntasks: [train]"
    runner = TORCH.format("lr: 0.1")
    toys = {"one": Reports(1, 1, **told)}
    here = lab(toys, rounds=1, model=MODEL, kinds=KINDS, more=said, runner=runner)
    ended = here.run()
    assert ended.state == "failed" and "one: K25" in ended.reason
