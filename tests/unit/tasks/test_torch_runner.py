"""The torch runner against plain torch: the same seeds must give the same bits."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from openfed.errors import TaskError
from openfed.plan.choices import LOSSES, TorchSettings
from openfed.tasks.base import Outcome, Task
from openfed.tasks.config import Choice, Config
from openfed.tasks.metrics import add, finish
from openfed.tasks.schedules import cosine, exponential, linear, step
from openfed.tasks.seeds import derive
from openfed.tasks.torch import TorchRunner
from openfed.tasks.torch_state import to_array, to_tensor
from openfed.tensors.frame import digest, pack, unpack
from openfed.tensors.record import Kind, Record

SAMPLES, FEATURES, CLASSES = 50, 6, 3


class Data:
    """Random samples; the last ten are for validation."""

    def __init__(self, seed: int = 0, *, form: str = "pair", samples: int = SAMPLES) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(samples, FEATURES, generator=generator)
        self.targets = torch.randint(0, CLASSES, (samples,), generator=generator)
        self.form = form

    def train(self, *, seed: int) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(max(0, len(self.inputs) - 10), generator=generator)
        return (self.batch(part) for part in (rows.split(8) if len(rows) else ()))

    def validate(self) -> Iterator[Any]:
        return (self.batch(part) for part in torch.arange(SAMPLES - 10, SAMPLES).split(4))

    def batch(self, rows: Tensor) -> Any:
        inputs, targets = self.inputs[rows], self.targets[rows]
        if self.form == "dict":
            return {"x": inputs, "targets": targets, "weight": torch.ones(len(rows))}
        return (inputs.numpy(), targets.numpy()) if self.form == "numpy" else (inputs, targets)


class Net(nn.Module):
    """Batch normalisation and dropout: state, and draws."""

    def __init__(self, *, hidden: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(FEATURES, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.3)
        )
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Odd(nn.Module):
    """Everything that is not a plain parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.zebra = nn.Linear(FEATURES, FEATURES, bias=False)
        self.alike = nn.Linear(FEATURES, FEATURES, bias=False)
        self.alike.weight = self.zebra.weight  # tied
        self.fixed = nn.Linear(FEATURES, FEATURES)
        self.fixed.requires_grad_(False)
        self.norm = nn.BatchNorm1d(FEATURES)
        self.head = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int32))
        self.register_buffer("third", torch.ones(3, dtype=torch.bfloat16) / 3)
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += len(x)
            self.scratch += 1
        return self.head(self.norm(self.fixed(self.alike(self.zebra(x)))))


def user_loss(output: Tensor, batch: Mapping[str, Tensor], *, factor: float) -> Tensor:
    each = functional.cross_entropy(output, batch["targets"], reduction="none")
    return factor * (each * batch["weight"]).mean()


def user_metric(output: Tensor, targets: Tensor) -> tuple[float, float]:
    return float((output.argmax(1) == targets).sum()), len(targets)


def bare_metric(output: Tensor, targets: Tensor) -> Tensor:
    return (output.argmax(1) == targets).float().mean()


def unary_metric(output: Tensor) -> tuple[float, float]:
    return 1.0, 2.0


def loss_of_targets(output: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(output, targets)


def loss_per_sample(output: Tensor, batch: Any) -> Tensor:
    return functional.cross_entropy(output, batch[1], reduction="none")


def bare_loop(model: nn.Module, batches: Any, ctx: Any) -> float:
    return float(sum(len(inputs) for inputs, _ in batches))


def user_loop(model: nn.Module, batches: Any, ctx: Any) -> dict[str, Any]:
    total = count = 0.0
    for _ in range(ctx.settings["epochs"]):
        for inputs, targets in batches:
            ctx.optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), targets)
            loss.backward()
            ctx.optimizer.step()
            total, count = total + float(loss.detach()) * len(inputs), count + len(inputs)
    return {"loss": (total, count), "user_metric": ctx.round / 10}


def named(choice: Any) -> dict[str, Any]:
    """`"mse"` or `{"huber": {"delta": 2.0}}` as the canonical form of a plan has it."""
    ((name, given),) = ({choice: {}} if isinstance(choice, str) else choice).items()
    loss = LOSSES[name]().model_dump(exclude_none=True) if name in LOSSES else {}
    return {"name": name, "settings": {**loss, **given}}


def runner(
    data: Any = None,
    *,
    metrics: Any = (),
    scope: Any = (),
    method: Any = "fedavg",
    **more: Any,
) -> TorchRunner:
    chosen = {name: field.default for name, field in TorchSettings.model_fields.items()}
    chosen |= {"model": f"{__name__}:Net", "loss": "cross_entropy", "epochs": 2}
    chosen |= {"optimizer": {"adam": {"lr": 0.01}}, **more}
    for name in ("model", "loss", "optimizer", "scheduler"):
        chosen[name] = chosen[name] and named(chosen[name])
    config = Config(
        workspace=Path(),
        collaborator="one",
        runner=Choice("torch", chosen),
        data_loader=Choice("unused", {}),
        strategy=Choice(**named(method)),
        source=None,
        contract=None,
        seed=5,
        rounds=4,
        metrics=metrics,
        scope=scope,
        device="cpu",
        threads=1,
        output_limit=0,
    )
    return TorchRunner(config, Data() if data is None else data)


def task(name: str = "train", round: int = 1, **settings: Any) -> Task:
    return Task(name, round, 4, "one", derive(5, round, "one", name), settings)


def fresh(kind: type[nn.Module] = Net, seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return kind()


def plain_loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, epochs: int = 2
) -> nn.Module:
    """What a person would write without openfed."""
    torch.manual_seed(seed)
    model.train()
    for epoch in range(epochs):
        for inputs, targets in Data().train(seed=derive(seed, "pass", epoch)):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return model


def same_bits(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return digest(Record(dict(got))) == digest(Record(dict(wanted)))


def arrays(model: nn.Module) -> dict[str, Any]:
    return {name: to_array(name, value) for name, value in model.state_dict().items()}


def test_a_task_gives_the_bits_of_a_plain_loop() -> None:
    one = runner()
    model, _ = one.initial(5)
    assert same_bits(model, arrays(fresh()))
    outcome = one.run(task(), model, {})
    net = fresh()
    plain_loop(net, torch.optim.Adam(net.parameters(), lr=0.01), task().seed)
    assert same_bits(outcome.tensors, arrays(net))
    assert outcome.numbers["n"] == (80.0,)
    assert outcome.local is None


def test_the_first_model_depends_on_the_seed_alone() -> None:
    one = runner()
    assert same_bits(one.initial(5)[0], runner().initial(5)[0])
    assert not same_bits(one.initial(5)[0], one.initial(6)[0])


def test_nothing_crosses_from_task_to_task() -> None:
    warm, cold = runner(), runner()
    model, _ = warm.initial(5)
    warm.run(task(round=1), model, {})
    warm.run(task("validate", round=1), model, {})
    again = warm.run(task(round=2), model, {})
    first = cold.run(task(round=2), model, {})
    assert same_bits(again.tensors, first.tensors)
    assert again.numbers == first.numbers


ODD = {"model": {f"{__name__}:Odd": {}}}


def test_entries_have_their_kinds_and_tied_ones_are_stored_once() -> None:
    model, signature = runner(**ODD).initial(5)
    kinds = {spec.name: spec.kind for spec in signature}
    assert "alike.weight" in kinds
    assert "zebra.weight" not in kinds
    assert "scratch" not in kinds
    assert kinds["fixed.weight"] == kinds["fixed.bias"] == Kind.FROZEN
    assert kinds["seen"] == kinds["norm.running_mean"] == kinds["third"] == Kind.BUFFER
    assert kinds["alike.weight"] == kinds["norm.weight"] == Kind.PARAMETER
    assert {spec.dtype for spec in signature} == {"float32", "bfloat16", "int32", "int64"}
    assert set(model) == set(kinds)


def test_an_odd_model_is_bit_exact_through_frames_and_training() -> None:
    one = runner(**ODD)
    model, _ = one.initial(5)
    frame = pack(Record(model))
    mapped = unpack(frame, limit=len(frame), copy=False).tensors
    outcome = one.run(task(), mapped, {})
    net = fresh(Odd)
    trained = [value for value in net.parameters() if value.requires_grad]
    plain_loop(net, torch.optim.Adam(trained, lr=0.01), task().seed)
    wanted = arrays(net)
    assert (wanted.pop("zebra.weight") == wanted["alike.weight"]).all()
    frozen = {name: wanted.pop(name) for name in ("fixed.weight", "fixed.bias")}
    assert same_bits(outcome.tensors, wanted)
    assert outcome.tensors["seen"].tolist() == [80, 80]
    assert outcome.tensors["seen"].dtype == np.int32
    merged = {**outcome.tensors, **frozen}
    back = unpack(pack(Record(merged)), limit=1 << 20).tensors
    assert same_bits(back, merged)
    loss = one.run(task("validate"), back, {}).numbers["metrics/validate/loss"]
    net.eval()
    with torch.no_grad():
        each = [(functional.cross_entropy(net(x), y), len(y)) for x, y in Data().validate()]
    assert loss[0] == sum(float(value) * count for value, count in each)


@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8),
    st.sampled_from(["float32", "int32", "uint32", "bfloat16", "float16"]),
)
@settings(max_examples=60, deadline=None)
def test_a_tensor_and_an_array_have_the_same_bits(words: list[int], dtype: str) -> None:
    bits = np.array(words, np.uint32)
    array = to_array("x", torch.from_numpy(bits.view(np.int32)).view(getattr(torch, dtype)))
    assert array.dtype.name == dtype
    assert to_array("x", to_tensor(array)).tobytes() == bits.tobytes()


def test_kept_optimizer_state_continues_where_the_site_left_off() -> None:
    one = runner(optimizer_state="keep")
    model, signature = one.initial(5)
    assert all(spec.kind != Kind.STATE for spec in signature)
    first = one.run(task(round=1), model, {})
    assert first.local is not None
    assert "optimizer/head.weight/exp_avg" in first.local
    assert not any(name.startswith("optimizer/") for name in first.tensors)
    second = runner(optimizer_state="keep").run(task(round=2), first.tensors, first.local)
    net = fresh()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for round in (1, 2):
        plain_loop(net, optimizer, task(round=round).seed)
    assert same_bits(second.tensors, arrays(net))
    reset = runner().run(task(round=2), first.tensors, {})
    assert not same_bits(reset.tensors, arrays(net))


@pytest.mark.parametrize(
    "optimizer",
    [
        {"adam": {"lr": 0.01, "weight_decay": 0.1}},
        {"adamw": {"lr": 0.01, "amsgrad": True}},
        {"sgd": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}},
        {"rmsprop": {"lr": 0.01, "centered": True, "momentum": 0.5}},
        {"adagrad": {"lr": 0.05}},
    ],
    ids=lambda one: next(iter(one)),
)
def test_averaged_optimizer_state_is_known_before_data_and_begins_as_none(
    optimizer: dict[str, Any],
) -> None:
    average = runner(optimizer=optimizer, optimizer_state="average")
    model, signature = average.initial(5)
    state = {spec.name for spec in signature if spec.kind == Kind.STATE}
    assert state
    assert all(not model[name].any() for name in state)
    got = average.run(task(), model, {})
    assert got.local is None
    shapes = {spec.name: (spec.dtype, spec.shape) for spec in signature}
    assert {n: (v.dtype.name, v.shape) for n, v in got.tensors.items()} == shapes
    wanted = runner(optimizer=optimizer).run(task(), model, {})
    assert same_bits({k: v for k, v in got.tensors.items() if k not in state}, wanted.tensors)
    assert any(got.tensors[name].any() for name in state)


def test_averaged_state_continues_in_the_next_round() -> None:
    one = runner(optimizer_state="average")
    first = one.run(task(round=1), one.initial(5)[0], {})
    second = one.run(task(round=2), first.tensors, {})
    net = fresh()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for round in (1, 2):
        plain_loop(net, optimizer, task(round=round).seed)
    weights = {k: v for k, v in second.tensors.items() if not k.startswith("optimizer/")}
    assert same_bits(weights, arrays(net))


def test_steps_end_a_task_in_the_middle_of_a_pass() -> None:
    one = runner(epochs=None, steps=7)
    model, _ = one.initial(5)
    assert one.run(task(), model, {}).numbers["n"] == (56.0,)
    assert one.run(task(steps=3), model, {}).numbers["n"] == (24.0,)
    assert one.run(task(epochs=1), model, {}).numbers["n"] == (40.0,)
    assert runner(accumulate=2, steps=3).run(task(), model, {}).numbers["n"] == (48.0,)


def test_accumulated_and_clipped_steps_are_those_of_a_plain_loop() -> None:
    one = runner(accumulate=2, clip_grad_norm=0.5, epochs=1, optimizer={"sgd": {"lr": 0.5}})
    got = one.run(task(), one.initial(5)[0], {})
    net = fresh()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    torch.manual_seed(task().seed)
    batches = list(Data().train(seed=derive(task().seed, "pass", 0)))
    assert len(batches) == 5  # so the last step has one batch
    for start in (0, 2, 4):
        optimizer.zero_grad()
        for inputs, targets in batches[start : start + 2]:
            (functional.cross_entropy(net(inputs), targets) / 2).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
    assert same_bits(got.tensors, arrays(net))


def test_a_schedule_is_a_function_of_round_and_step() -> None:
    assert [cosine(r, 4, 0.0) for r in (1, 3)] == pytest.approx([1.0, 0.5])
    assert cosine(4, 4, 1.0, over="steps", floor=0.1) == pytest.approx(0.1)
    assert cosine(2, 4, 0.9) == cosine(2, 4, 0.0)
    assert linear(3, 4, 0.5, over="steps") == pytest.approx(1 - 2.5 / 4)
    assert [step(r, 9, 0.0, every=2, gamma=0.5) for r in (1, 2, 3, 5)] == [1, 1, 0.5, 0.25]
    assert exponential(3, 9, 0.0, gamma=0.5) == 0.25
    one = runner(optimizer={"sgd": {"lr": 0.1}}, scheduler={"step": {"every": 1, "gamma": 0.5}})
    model, _ = one.initial(5)
    got = one.run(task(round=3), model, {})
    halved = runner(optimizer={"sgd": {"lr": 0.1 * 0.25}})
    assert same_bits(got.tensors, halved.run(task(round=3), model, {}).tensors)


def test_frozen_globs_do_not_travel_and_a_frozen_norm_keeps_its_statistics() -> None:
    one = runner(freeze=["body.*"])
    model, signature = one.initial(5)
    assert {spec.name for spec in signature if spec.kind != Kind.FROZEN} == {
        "head.weight",
        "head.bias",
    }
    outcome = one.run(task(), model, {})
    assert set(outcome.tensors) == {"head.weight", "head.bias"}
    net = fresh()
    assert isinstance(net, Net)
    net.body.requires_grad_(False)
    optimizer = torch.optim.Adam(net.head.parameters(), lr=0.01)
    torch.manual_seed(task().seed)
    net.body[1].eval()  # the norm; dropout goes on
    for epoch in range(2):
        for inputs, targets in Data().train(seed=derive(task().seed, "pass", epoch)):
            optimizer.zero_grad()
            functional.cross_entropy(net(inputs), targets).backward()
            optimizer.step()
    assert same_bits(outcome.tensors, {name: arrays(net)[name] for name in outcome.tensors})
    with pytest.raises(TaskError, match="K11.*freeze: 'tail.*' matches no entry"):
        runner(freeze=["tail.*"]).initial(5)


def test_groups_of_parameters_have_their_own_settings() -> None:
    groups = [{"match": "body.*", "lr": 0.0}]
    one = runner(param_groups=groups, optimizer={"sgd": {"lr": 0.1}})
    model, _ = one.initial(5)
    trained = one.run(task(), model, {}).tensors
    still = [name for name in trained if np.array_equal(trained[name], model[name])]
    assert still == ["body.0.bias", "body.0.weight", "body.1.bias", "body.1.weight"]


def test_local_entries_stay_and_are_given_back() -> None:
    scope = (("head.*", "local"), ("*", "global"))
    one = runner(scope=scope)
    model, _ = one.initial(5)
    assert not any(name.startswith("head.") for name in model)
    first = one.run(task(round=1), model, {})
    assert first.local is not None
    assert set(first.local) == {"head.weight", "head.bias"}
    assert set(first.tensors) == set(model)
    second = one.run(task(round=2), first.tensors, first.local)
    net = fresh()
    for round in (1, 2):
        plain_loop(net, torch.optim.Adam(net.parameters(), lr=0.01), task(round=round).seed)
    assert second.local is not None
    assert same_bits({**second.tensors, **second.local}, arrays(net))


def test_state_of_a_local_parameter_is_local_even_where_the_plan_averages() -> None:
    one = runner(scope=(("head.*", "local"),), optimizer_state="average")
    model, signature = one.initial(5)
    assert not any("head" in spec.name for spec in signature)
    outcome = one.run(task(), model, {})
    assert outcome.local is not None
    assert set(outcome.tensors) == {spec.name for spec in signature}
    assert "optimizer/head.weight/exp_avg" in outcome.local


def test_a_loop_of_the_users_own_trains_with_the_plans_optimizer() -> None:
    one = runner(train=f"{__name__}:user_loop", metrics=(f"{__name__}:user_metric",))
    model, _ = one.initial(5)
    got = one.run(task(), model, {})
    wanted = runner().run(task(), model, {})
    assert same_bits(got.tensors, wanted.tensors)
    assert got.numbers["n"] == (80.0,)
    assert got.numbers["metrics/train/user_metric"] == (8.0, 80.0)


@pytest.mark.parametrize("form", ["dict", "numpy"])
def test_batches_may_be_dicts_or_arrays(form: str) -> None:
    loss: Any = "cross_entropy"
    if form == "dict":
        loss = {f"{__name__}:user_loss": {"factor": 1.0}}
    one = runner(Data(form=form), loss=loss, metrics=("accuracy",))
    model, _ = one.initial(5)
    got = one.run(task(), model, {})
    wanted = runner().run(task(), model, {})
    for name, value in wanted.tensors.items():
        np.testing.assert_allclose(got.tensors[name], value, atol=1e-5)
    assert one.run(task("validate"), model, {}).numbers["n"] == (10.0,)


def test_validation_reports_sums_of_every_metric() -> None:
    metrics = ("accuracy", "perplexity", "f1", f"{__name__}:user_metric")
    one = runner(metrics=metrics)
    model, _ = one.initial(5)
    outcome = one.run(task("validate"), model, {})
    assert outcome.tensors == {}
    numbers = outcome.numbers
    names = ("loss", "accuracy", "perplexity", "f1", "user_metric")
    assert set(numbers) == {"n", *(f"metrics/validate/{name}" for name in names)}
    net = fresh().eval()
    inputs, targets = Data().inputs[-10:], Data().targets[-10:]
    with torch.no_grad():
        output = net(inputs)
    right = float((output.argmax(1) == targets).sum())
    assert numbers["metrics/validate/accuracy"] == (right, 10.0)
    assert numbers["metrics/validate/user_metric"] == (right, 10.0)
    loss = float(functional.cross_entropy(output, targets))
    assert finish("loss", numbers["metrics/validate/loss"]) == pytest.approx(loss)
    perplexity = finish("perplexity", numbers["metrics/validate/perplexity"])
    assert perplexity == pytest.approx(math.exp(loss))


def test_a_tuned_validation_scores_the_sites_own_model() -> None:
    one = runner(metrics=("accuracy",))
    model, _ = one.initial(5)
    outcome = one.run(task(tuned=True), model, {})
    after = one.run(task("validate"), outcome.tensors, {}).numbers
    assert outcome.numbers["metrics/validate_tuned/loss"] == after["metrics/validate/loss"]
    assert outcome.numbers["n"] == (80.0,)
    assert same_bits(outcome.tensors, one.run(task(), model, {}).tensors)


def test_a_site_without_validation_data_says_so() -> None:
    class TrainOnly:
        train = Data().train

    one = runner(TrainOnly())
    assert one.run(task("validate"), one.initial(5)[0], {}).numbers == {"n": (0.0,)}


def test_a_weighted_loss_is_divided_by_the_weights_of_all_sites() -> None:
    weight = [1.0, 3.5, 0.2]
    loss = {"cross_entropy": {"weight": weight, "ignore_index": 2}}
    sites = [runner(Data(seed), loss=loss) for seed in (1, 2)]
    model, _ = sites[0].initial(5)
    sums = None
    for site in sites:
        numbers = site.run(task("validate"), model, {}).numbers
        sums = add(sums, numbers["metrics/validate/loss"])
    net = fresh().eval()
    inputs = torch.cat([Data(seed).inputs[-10:] for seed in (1, 2)])
    targets = torch.cat([Data(seed).targets[-10:] for seed in (1, 2)])
    with torch.no_grad():
        pooled = functional.cross_entropy(
            net(inputs), targets, weight=torch.tensor(weight), ignore_index=2
        )
    assert sums is not None
    assert finish("loss", sums) == pytest.approx(float(pooled), rel=1e-5)


def test_regression_targets_never_broadcast() -> None:
    class Line(Data):
        def batch(self, rows: Tensor) -> Any:
            return self.inputs[rows], self.inputs[rows, 0]

    one = runner(
        Line(), model={"torch.nn:Linear": {"in_features": 6, "out_features": 1}}, loss="mse"
    )
    model, _ = one.initial(5)
    outcome = one.run(task("validate"), model, {})
    inputs = Line().inputs[-10:]
    output = inputs @ torch.from_numpy(model["weight"]).T + torch.from_numpy(model["bias"])
    wanted = float(((output[:, 0] - inputs[:, 0]) ** 2).sum())
    assert outcome.numbers["metrics/validate/loss"] == pytest.approx((wanted, 10.0), rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_updates_of_mixed_precision_are_float32(precision: str) -> None:
    one = runner(precision=precision, optimizer={"sgd": {"lr": 0.1}})
    model, signature = one.initial(5)
    trained = one.run(task(), model, {}).tensors
    assert {n: v.dtype.name for n, v in trained.items()} == {s.name: s.dtype for s in signature}
    full = runner(optimizer={"sgd": {"lr": 0.1}}).run(task(), model, {}).tensors
    assert not same_bits(trained, full)
    np.testing.assert_allclose(trained["head.weight"], full["head.weight"], atol=0.05)


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"not": "a tensor"}


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wave = nn.Parameter(torch.zeros(2, dtype=torch.complex64))


WRONG = {
    "no samples": ({"data": Data(samples=0)}, "K04.*Data.train"),
    "batches of one tensor": ({"data": [torch.ones(3, 2)]}, "K05.*list has no method train"),
    "an unknown loss": ({"loss": "hinge"}, "K08.*unknown loss 'hinge'; known: .*cross_entropy"),
    "an unknown optimizer": ({"optimizer": "adamm"}, "K08.*unknown optimizer 'adamm'"),
    "an unknown metric": ({"metrics": ("acc",)}, "K08.*unknown metric 'acc'; known: accuracy"),
    "a metric of a shipped name": ({"metrics": ("src.m:f1",)}, "K08.*shipped metric's name"),
    "a module that is none": ({"model": {"builtins:dict": {}}}, "K08.*not a torch.nn.Module"),
    "a missing class": ({"model": {"torch.nn:Linnear": {}}}, "K01.*torch.nn has no Linnear"),
    "extra state": (
        {"model": {f"{__name__}:Extra": {"in_features": 6, "out_features": 3}}},
        "K07.*_extra_state is a dict",
    ),
    "complex numbers": ({"model": {f"{__name__}:Complex": {}}}, "K07.*wave is a complex64"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=list(WRONG))
def test_what_cannot_be_run_is_a_typed_error(change: dict[str, Any], said: str) -> None:
    def attempt() -> Outcome:
        one = runner(**change)
        return one.run(task(), one.initial(5)[0], {})

    with pytest.raises(TaskError, match=said):
        attempt()


OWN = {
    "a metric of one number": (
        {"metrics": (f"{__name__}:bare_metric",)},
        r"K12.*:bare_metric returned a Tensor: return \(numerator, denominator\)",
    ),
    "a metric of one argument": (
        {"metrics": (f"{__name__}:unary_metric",)},
        r"K02.*:unary_metric raised TypeError.*called as \(output, targets\) -> \(num",
    ),
    "a loss of targets": (
        {"loss": f"{__name__}:loss_of_targets"},
        r"K02.*:loss_of_targets raised TypeError.*called as \(output, batch\) -> scalar",
    ),
    "a loss per sample": (
        {"loss": f"{__name__}:loss_per_sample"},
        r"K12.*:loss_per_sample returned a Tensor of shape \[4\], expected a scalar",
    ),
    "auc of three classes": ({"metrics": ("auc",)}, "K13.*asks for auc.*has 3.*outputs of two"),
    "r2 of three columns": ({"metrics": ("r2",)}, "K13.*asks for r2.*one output and one target"),
}


@pytest.mark.parametrize(("change", "said"), OWN.values(), ids=list(OWN))
def test_who_is_wrong_in_validation_is_named(change: dict[str, Any], said: str) -> None:
    one = runner(**change)
    with pytest.raises(TaskError, match=said):
        one.run(task("validate"), one.initial(5)[0], {})


def test_a_loop_that_returns_no_metrics_by_name_is_refused() -> None:
    one = runner(train=f"{__name__}:bare_loop")
    with pytest.raises(TaskError, match="K12.*:bare_loop returned a float, expected metrics"):
        one.run(task(), one.initial(5)[0], {})


def test_patterns_without_effect_are_refused_before_anything_is_shared() -> None:
    for change, said in (
        ({"scope": (("haed.*", "local"),)}, "scope: 'haed.*' matches no entry.* has body.0.bias"),
        ({"param_groups": [{"match": "tail.*"}]}, "param_groups: 'tail.*' matches no entry"),
    ):
        one = runner(optimizer_state="average", **change)
        with pytest.raises(TaskError, match=f"K11.*{said}"):
            one.initial(5)
    runner(scope=(("head.*", "local"),)).initial(5)


@pytest.mark.parametrize("batch", [torch.ones(4, 6), [torch.ones(4, 6)] * 3, "text", (1, 2)])
def test_a_batch_that_is_none_is_refused(batch: Any) -> None:
    class Broken:
        def train(self, *, seed: int) -> list[Any]:
            return [batch]

    one = runner(Broken())
    with pytest.raises(TaskError, match="K05.*expected batches"):
        one.run(task(), one.initial(5)[0], {})


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({}, 10), ({"accumulate": 3}, 4), ({"epochs": None, "steps": 7}, 7)],
)
def test_steps_are_those_of_the_optimizer_and_told_only_where_they_are_needed(
    settings: dict[str, Any], steps: int
) -> None:
    one = runner(**settings)
    model, _ = one.initial(5)
    assert one.run(task(reports=["steps"]), model, {}).numbers["steps"] == (float(steps),)
    assert not {"steps", "loss_before"} & one.run(task(), model, {}).numbers.keys()


def test_the_loss_before_is_of_the_model_as_it_came_and_changes_no_training() -> None:
    one = runner()
    model, _ = one.initial(5)
    model = one.run(task(), model, {}).tensors  # with statistics of its own
    told = one.run(task(round=2, reports=["loss_before"]), model, {})
    plain = one.run(task(round=2), model, {})
    assert same_bits(told.tensors, plain.tensors)
    assert told.numbers["n"] == plain.numbers["n"] == (80.0,)
    net, data = fresh().eval(), Data()
    net.load_state_dict({name: to_tensor(x) for name, x in model.items()})
    with torch.no_grad():
        wanted = functional.cross_entropy(net(data.inputs[:-10]), data.targets[:-10])
    np.testing.assert_allclose(told.numbers["loss_before"], (float(wanted),), rtol=1e-6)


def test_no_samples_have_no_loss_before() -> None:
    one = runner(Data(samples=0))
    with pytest.raises(TaskError, match="K04"):
        one.run(task(reports=["loss_before"]), one.initial(5)[0], {})
