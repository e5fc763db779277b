"""Methods at a site against loops written from the papers, with autograd, without openfed."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from openfed.tasks.seeds import derive
from openfed.tasks.torch_batches import halves
from openfed.tensors.record import Kind
from tests.unit.tasks.test_torch_runner import CLASSES, FEATURES, Data, runner, task

LR = 0.1


class Plain(nn.Module):
    """In float64, without draws."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(FEATURES, 4, dtype=torch.float64)
        self.head = nn.Linear(4, CLASSES, dtype=torch.float64)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x.double())))


def site(method, **more):
    chosen = {"model": {f"{__name__}:Plain": {}}, "optimizer": {"sgd": {"lr": LR}}, **more}
    return runner(method=method, **chosen)


def loss_of(params, batch):
    inputs, targets = batch
    hidden = torch.tanh(inputs.double() @ params["body.weight"].T + params["body.bias"])
    return functional.cross_entropy(hidden @ params["head.weight"].T + params["head.bias"], targets)


def tensors(record):
    names = ("body.bias", "body.weight", "head.bias", "head.weight")
    return {name: torch.tensor(record[name]).requires_grad_() for name in names}


def batches(seed, epochs=2):
    for epoch in range(epochs):
        yield from Data().train(seed=derive(seed, "pass", epoch))


def descend(params, seed, gradient, epochs=2):
    """Plain SGD on `gradient(name, p, g)`. Returns: how many steps."""
    steps = 0
    for batch in batches(seed, epochs):
        found = torch.autograd.grad(loss_of(params, batch), list(params.values()))
        with torch.no_grad():
            for (name, p), g in zip(params.items(), found, strict=True):
                p -= LR * gradient(name, p, g)
        steps += 1
    return steps


def close(found, wanted):
    for name, value in wanted.items():
        value = value.detach().numpy() if isinstance(value, torch.Tensor) else value
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-12, err_msg=name)


def sent_to(one, seed=3):
    """A model that has come some way, with control entries that are not zero."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=x.shape) * 0.3 for name, x in one.initial(5)[0].items()}


def control(model, name):
    return torch.tensor(model[f"control/{name}"])


def test_without_a_pull_fedprox_gives_the_bits_of_fedavg():
    plain, prox = site("fedavg"), site({"fedprox": {"mu": 0.0}})
    model = plain.initial(5)[0]
    one, two = plain.run(task(), model, {}), prox.run(task(), model, {})
    assert all((one.tensors[n] == two.tensors[n]).all() for n in model)


def test_fedprox():
    one = site({"fedprox": {"mu": 0.7}})
    model = sent_to(one)
    outcome = one.run(task(), model, {})
    sent, params = tensors(model), tensors(model)
    descend(params, task().seed, lambda n, p, g: g + 0.7 * (p - sent[n]))
    close(outcome.tensors, params)
    assert outcome.local is None


def test_scaffold_over_two_rounds():
    one = site({"scaffold": {"lr": 1.0}})
    first, signature = one.initial(5)
    assert {s.name for s in signature if s.kind is Kind.CONTROL} == {
        f"control/{name}" for name in tensors(first)
    }
    assert not any(x.any() for name, x in first.items() if name.startswith("control/"))
    model, own = sent_to(one), {}
    kept = {name: torch.zeros_like(p) for name, p in tensors(model).items()}
    for round in (1, 2):
        outcome = one.run(task(round=round), model, own)
        sent, params = tensors(model), tensors(model)
        c = {name: control(model, name) for name in params}
        now = dict(kept)
        steps = descend(params, task(round=round).seed, lambda n, p, g: g - now[n] + c[n])  # noqa: B023
        kept = {n: now[n] - c[n] + (sent[n] - p) / (steps * LR) for n, p in params.items()}
        close(outcome.tensors, params)
        close(outcome.local, {f"own/{n}": x for n, x in kept.items()})
        close(outcome.tensors, {f"control/{n}": c[n] + kept[n] - now[n] for n in params})
        own = outcome.local


def test_feddyn_over_two_rounds():
    one = site({"feddyn": {"alpha": 0.3}})
    model, own = sent_to(one), {}
    kept = {name: torch.zeros_like(p) for name, p in tensors(model).items()}
    for round in (1, 2):
        outcome = one.run(task(round=round), model, own)
        sent, params, now = tensors(model), tensors(model), dict(kept)
        seed = task(round=round).seed
        descend(params, seed, lambda n, p, g: g - now[n] + 0.3 * (p - sent[n]))  # noqa: B023
        kept = {n: now[n] - 0.3 * (p - sent[n]) for n, p in params.items()}
        close(outcome.tensors, params)
        close(outcome.local, {f"own/{n}": x for n, x in kept.items()})
        own = outcome.local


def test_mimelite():
    one = site({"mimelite": {"beta": 0.8}})
    model = sent_to(one)
    outcome = one.run(task(), model, {})
    params = tensors(model)
    whole = Data().inputs[:-10], Data().targets[:-10]
    gradient = torch.autograd.grad(loss_of(params, whole), list(params.values()))
    descend(params, task().seed, lambda n, p, g: 0.2 * g + 0.8 * control(model, n))
    close(outcome.tensors, params)
    told = zip(params, gradient, strict=True)
    close(outcome.tensors, {f"control/{n}": 0.2 * g + 0.8 * control(model, n) for n, g in told})
    assert outcome.numbers["n"] == (80.0,)  # the pass for the gradient trains nothing


def test_fedplus_goes_on_from_its_own_model():
    one = site({"fedplus": {"pull": 0.4}})
    model, other = sent_to(one), sent_to(one, seed=4)
    outcome = one.run(task(), model, {f"personal/{n}": x for n, x in other.items()})
    sent, params = tensors(model), tensors(other)
    descend(params, task().seed, lambda n, p, g: g + 0.4 * (p - sent[n]))
    close(outcome.tensors, params)
    close(outcome.local, {f"personal/{n}": p for n, p in params.items()})
    first = one.run(task(), model, {})
    params = tensors(model)
    descend(params, task().seed, lambda n, p, g: g + 0.4 * (p - sent[n]))
    close(first.tensors, params)


def test_ditto_shares_one_model_and_keeps_another():
    one = site({"ditto": {"pull": 0.4}})
    model, other = sent_to(one), sent_to(one, seed=4)
    own = {f"personal/{n}": x for n, x in other.items()}
    outcome = one.run(task(tuned=True), model, own)
    shared, sent, personal = tensors(model), tensors(model), tensors(other)
    descend(shared, task().seed, lambda n, p, g: g)
    descend(personal, task().seed, lambda n, p, g: g + 0.4 * (p - sent[n]))
    close(outcome.tensors, shared)
    close(outcome.local, {f"personal/{n}": p for n, p in personal.items()})
    total, count = outcome.numbers["metrics/validate_tuned/loss"]
    mine = [loss_of(personal, b).item() * len(b[0]) for b in Data().validate()]
    assert (total, count) == (pytest.approx(sum(mine)), 10)


SCOPE = (("head.*", "local"),)


def test_fedrep_trains_the_head_first_then_the_body():
    one = site({"fedrep": {"head_epochs": 1}}, scope=SCOPE, epochs=1)
    model = sent_to(one)
    head = {n: sent_to(site("fedavg"), seed=4)[n] for n in ("head.bias", "head.weight")}
    outcome = one.run(task(), model, head)
    params = tensors({**model, **head})
    passes = [list(Data().train(seed=derive(task().seed, "pass", k))) for k in (0, 1)]
    for side, given in zip(("head", "body"), passes, strict=True):
        for batch in given:
            found = torch.autograd.grad(loss_of(params, batch), list(params.values()))
            with torch.no_grad():
                for (name, p), g in zip(params.items(), found, strict=True):
                    p -= LR * g if name.startswith(side) else 0 * g
    close(outcome.tensors, {n: p for n, p in params.items() if n.startswith("body")})
    close(outcome.local, {n: p for n, p in params.items() if n.startswith("head")})


RECON = {"fedrecon": {"steps": 3, "lr": 0.5, "support": 0.5}}


def rebuilt(model, given):
    """The head made anew from the plan's first one on the support parts; the other parts."""
    params = tensors({**model, **{n: x for n, x in site("fedavg").initial(5)[0].items()
                                  if n.startswith("head")}})  # fmt: skip
    support, query = halves(given, 0.5)
    head = [n for n in params if n.startswith("head")]
    for _ in range(3):
        for batch in support:
            found = torch.autograd.grad(loss_of(params, batch), [params[n] for n in head])
            with torch.no_grad():
                for name, g in zip(head, found, strict=True):
                    params[name] -= 0.5 * g
    return params, query


def test_fedrecon_rebuilds_the_head_and_trains_the_body_on_other_samples():
    one = site(RECON, scope=SCOPE, epochs=1)
    model = sent_to(one)
    outcome = one.run(task(), model, {})
    params, query = rebuilt(model, list(batches(task().seed, 1)))
    body = [n for n in params if n.startswith("body")]
    for batch in query:
        found = torch.autograd.grad(loss_of(params, batch), [params[n] for n in body])
        with torch.no_grad():
            for name, g in zip(body, found, strict=True):
                params[name] -= LR * g
    close(outcome.tensors, {n: params[n] for n in body})
    assert outcome.tensors.keys() == set(body)
    assert outcome.local is None


def test_fedrecon_scores_samples_that_it_did_not_rebuild_from():
    one = site(RECON, scope=SCOPE)
    model = sent_to(one)
    numbers = one.run(task("validate"), model, {}).numbers
    params, query = rebuilt(model, list(Data().validate()))
    wanted = [loss_of(params, batch).item() * len(batch[0]) for batch in query]
    assert numbers["n"] == (5.0,)
    assert numbers["metrics/validate/loss"] == (pytest.approx(sum(wanted)), 5)


@pytest.mark.parametrize("form", ["pair", "numpy", "dict"])
def test_halves_are_disjoint_and_whole(form):
    given = list(Data(form=form).train(seed=1))
    inputs = {"dict": "x"}.get(form, 0)
    first, second = halves(given, 0.25)
    rows = [np.asarray(batch[inputs]) for batch in given]
    one, two = ([np.asarray(batch[inputs]) for batch in part] for part in (first, second))
    assert [len(x) for x in one] == [2] * 5
    for whole, a, b in zip(rows, one, two, strict=True):
        both = np.concatenate([a, b])
        assert sorted(map(tuple, both)) == sorted(map(tuple, whole))
    again = halves(given, 0.25)[0]
    assert all((np.asarray(a[inputs]) == b).all() for a, b in zip(again, one, strict=True))


def test_a_batch_of_one_is_for_rebuilding_only():
    first, second = halves([(torch.zeros(1, 2), torch.zeros(1))], 0.5)
    assert (len(first), len(second)) == (1, 0)


def test_a_rate_that_changes_counts_as_it_was():
    """SCAFFOLD divides by the sum of the rates, so a schedule over steps is covered."""
    settings = {"scheduler": {"linear": {"over": "steps", "floor": 0.0}}, "epochs": 2}
    one = site({"scaffold": {"lr": 1.0}}, **settings)
    model = one.initial(5)[0]
    outcome = one.run(task(), model, {})
    rates = 5 * LR * (1.0 + 0.875)  # of four rounds, an eighth is over after a pass
    moved = outcome.tensors["head.bias"] - model["head.bias"]
    np.testing.assert_allclose(outcome.local["own/head.bias"], -moved / rates, atol=1e-12)


def test_a_users_own_loop_is_corrected_too():
    loop = {"train": "tests.unit.tasks.test_torch_runner:user_loop", "epochs": 2}
    metric = ("tests.unit.tasks.test_torch_runner:user_metric",)
    by_loop = site({"fedprox": {"mu": 0.7}}, metrics=metric, **loop)
    shipped = site({"fedprox": {"mu": 0.7}})
    model = shipped.initial(5)[0]
    one, two = by_loop.run(task(), model, {}), shipped.run(task(), model, {})
    close(one.tensors, two.tensors)
