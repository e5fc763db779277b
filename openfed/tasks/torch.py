"""Any `torch.nn.Module` as a task runner.

The module is built anew for every task, from the plan's seed, and filled from the record: nothing
crosses from task to task, so a process that stays warm answers what a fresh one would. What a
batch may be, see `torch_batches`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from openfed.errors import TaskError
from openfed.strategy.client import Client, FedProx
from openfed.tasks.base import VALIDATE, Outcome, Task
from openfed.tasks.checks import check_pattern, check_scope
from openfed.tasks.config import Choice, Config, choice
from openfed.tasks.metrics import Sums, add, update
from openfed.tasks.replies import (
    add_scores,
    held_out,
    mean,
    reported,
    reseed,
    scored,
    split,
    wants,
    with_tuned,
)
from openfed.tasks.runners import called, kind_of, load, load_metrics, pick
from openfed.tasks.schedules import SCHEDULES
from openfed.tasks.torch_batches import Batches, forward, halves, samples_of, targets_of, to_device
from openfed.tasks.torch_methods import (
    PERSONAL,
    Corrected,
    below,
    client_of,
    controls,
    held,
    mean_gradient,
    rebuild,
)
from openfed.tasks.torch_state import (
    STATE,
    blank_state,
    entries,
    freeze,
    load_state,
    save_state,
    to_array,
    to_tensor,
    train_mode,
)
from openfed.tensors.record import Kind, Signature, is_local, matches, signature_of
from openfed.typing import Array, Json, Numbers, Tensors

LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "cross_entropy": functional.cross_entropy,
    "nll": functional.nll_loss,
    "bce": functional.binary_cross_entropy_with_logits,
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "smooth_l1": functional.smooth_l1_loss,
    "huber": functional.huber_loss,
}
OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Context:
    """What a loop of the user's gets besides model and batches."""

    round: int
    rounds: int
    seed: int
    device: torch.device
    settings: Mapping[str, Json]  # the runner's, with the task's over them
    optimizer: Optimizer


Loss = Callable[[Any, Any], tuple[Tensor, float]]
"""(output, batch) -> (mean loss, how much it counts in a sum: samples, or the weight of them)."""


def make_loss(chosen: Choice, device: torch.device) -> Loss:
    """A shipped loss, or the user's `(output, batch, **settings) -> scalar`."""
    function = pick("loss", chosen.name, LOSSES)
    if chosen.name not in LOSSES:
        return _own_loss(chosen, function)
    settings = {
        key: torch.tensor(value, device=device) if key in ("weight", "pos_weight") else value
        for key, value in chosen.settings.items()
    }
    by_class = chosen.name in ("cross_entropy", "nll")

    def loss(output: Tensor, batch: Any) -> tuple[Tensor, float]:
        targets = targets_of(batch)
        if not by_class:
            targets = targets.to(output.dtype)
            if targets.numel() == output.numel():
                targets = targets.reshape(output.shape)
        elif not targets.is_floating_point():
            targets = targets.long()
            return function(output, targets, **settings), _class_weight(targets, settings)
        return function(output, targets, **settings), samples_of(batch)

    return loss


def _own_loss(chosen: Choice, function: Callable[..., Any]) -> Loss:
    contract = "(output, batch) -> scalar, with a batch as the data loader yields it"
    call = called(chosen.name, contract, partial(function, **chosen.settings))

    def loss(output: Any, batch: Any) -> tuple[Tensor, float]:
        made = call(output, batch)
        if not isinstance(made, Tensor) or made.numel() != 1:
            shape = f" of shape {list(made.shape)}" if isinstance(made, Tensor) else ""
            told = f"{chosen.name} returned {kind_of(made)}{shape}, expected a scalar tensor"
            raise TaskError("K12", f"{told}: a loss is {contract}")
        return made, samples_of(batch)

    return loss


def _class_weight(targets: Tensor, settings: Mapping[str, Any]) -> float:
    """What torch divides by for the mean: the weights of the targets that are not ignored."""
    kept = targets[targets != settings["ignore_index"]]
    weight = settings.get("weight")
    return float(kept.numel() if weight is None else weight[kept].sum())


def make_optimizer(
    chosen: Choice, groups: Iterable[Mapping[str, Any]], named: Mapping[str, nn.Parameter]
) -> Optimizer:
    """`groups`: {match: glob, <settings>}; the first match wins, the rest take the common ones."""
    factory = pick("optimizer", chosen.name, OPTIMIZERS)
    left, made = dict(named), []
    for group in groups:
        check_pattern("task_runner.torch.param_groups", group["match"], left)
        own = [name for name in left if matches(name, [group["match"]])]
        settings = {key: value for key, value in group.items() if key != "match"}
        made.append({"params": [left.pop(name) for name in own], **settings})
    rest = [{"params": list(left.values())}] if left else []
    optimizer: Optimizer = factory([*made, *rest], **chosen.settings)
    return optimizer


def _reseed(seed: int) -> None:
    reseed(seed)
    torch.manual_seed(seed)


def pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


class TorchRunner:
    """Trains and validates the plan's module on the site's data; see `Runner`."""

    def __init__(self, config: Config, data: Any) -> None:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.set_num_threads(config.threads)
        # As use_deterministic_algorithms(True, warn_only=True), which imports the compiler first:
        torch.set_deterministic_debug_mode("warn")
        if data is not None and not callable(getattr(data, "train", None)):
            raise TaskError("K05", f"{type(data).__name__} has no method train(seed=...)")
        self._settings = config.runner.settings
        self._scope, self._seed, self._data = config.scope, config.seed, data
        self._method, self._client = config.strategy, client_of(config.strategy)
        self._device = pick_device(config.device)
        self._model = choice(self._settings["model"])
        self._loss = make_loss(choice(self._settings["loss"]), self._device)
        self._metrics = load_metrics(config.metrics)

    def initial(self, seed: int) -> tuple[Tensors, Signature]:
        model, fixed = self._build(seed)
        check_scope(entries(model)[0], self._scope)
        tensors, kinds = self._shared(model, fixed)
        if self._settings["optimizer_state"] == "average":
            state = blank_state(model, lambda net: self._optimizer(net, self._settings))
            for name, value in state.items():
                if not self._is_local(name):
                    tensors[name], kinds[name] = value, Kind.STATE
        if self._client and self._client.controlled:
            control = controls(self._sides(model)[1])
            tensors, kinds = (
                {**tensors, **control},
                {**kinds, **dict.fromkeys(control, Kind.CONTROL)},
            )
        return tensors, signature_of(tensors, kinds)

    def run(self, task: Task, model: Tensors, local: Tensors) -> Outcome:
        given = {**local, **model}
        if task.name == VALIDATE:
            net, _ = self._loaded(given)
            _reseed(task.seed)
            return Outcome(self._validate(net, VALIDATE))
        reports: dict[str, Sums] = {}
        if wants(task, "loss_before"):
            reports["loss_before"] = self._loss_before(self._loaded(given)[0], task)
        settings = _merged(self._settings, task.settings)
        own = {**given, **below(PERSONAL, local)} if self._method.name == "fedplus" else given
        net, outcome = self._trained(task, settings, given, own, self._client)
        if self._method.name == "ditto":
            net, kept = self._personal(task, settings, given)
            outcome = replace(outcome, local={**(outcome.local or {}), **kept})
        elif self._method.name == "fedplus":
            kept = {PERSONAL + name: x for name, x in outcome.tensors.items()}
            outcome = replace(outcome, local={**(outcome.local or {}), **kept})
        numbers = {**outcome.numbers, **reports}
        return replace(outcome, numbers=with_tuned(task, numbers, partial(self._validate, net)))

    def _personal(
        self, task: Task, settings: Mapping[str, Any], given: Tensors
    ) -> tuple[nn.Module, dict[str, Array]]:
        """Ditto's second model, which stays at the site and is drawn to the one that was sent.

        Source: Li et al. 2021, arXiv:2012.04221, algorithm 1.
        """
        own = {**given, **below(PERSONAL, given)}
        client = FedProx(float(self._method.settings["pull"]))
        net, outcome = self._trained(task, settings, given, own, client)
        return net, {PERSONAL + name: x for name, x in outcome.tensors.items()}

    def _trained(
        self,
        task: Task,
        settings: Mapping[str, Any],
        given: Tensors,
        begin: Tensors,
        client: Client | None,
    ) -> tuple[nn.Module, Outcome]:
        """Train from `begin`, where `given` was sent."""
        net, fixed = self._loaded(begin)
        _reseed(task.seed)
        optimizer, named = self._optimizer(net, settings)
        if self._settings["optimizer_state"] != "reset":
            load_state(optimizer, named, given)
        gradient = self._gradient(task, net) if client and client.by_gradient else {}
        train_mode(net, fixed, entries(net)[1])
        shared = self._sides(net)[1]
        corrected = Corrected(client, shared, given, optimizer) if client else None
        taken = _counted(optimizer) if wants(task, "steps") else None
        numbers = self._train(task, settings, net, optimizer)
        if taken is not None:
            numbers = {**numbers, "steps": (float(len(taken)),)}
        outcome = self._outcome(numbers, net, fixed, save_state(optimizer, named))
        if corrected is None:
            return net, outcome
        control, own = corrected.after(gradient)
        tensors, local = {**outcome.tensors, **control}, {**(outcome.local or {}), **own}
        return net, Outcome(numbers, tensors, local or None)

    def _loaded(self, given: Tensors) -> tuple[nn.Module, frozenset[str]]:
        """The module with these entries, and the names of the fixed ones."""
        net, fixed = self._build(self._seed)
        _, stored = entries(net)
        known = {name: to_tensor(given[at]) for name, at in stored.items() if at in given}
        net.load_state_dict(known, strict=False)
        return net, fixed

    def _gradient(self, task: Task, net: nn.Module) -> dict[str, Array]:
        batches = Batches(self._data, task.seed, self._device)
        return mean_gradient(net, self._sides(net)[1], batches, partial(self._scored, net))

    def _scored(self, net: nn.Module, batch: Any) -> tuple[Tensor, float]:
        return self._loss(forward(net, batch), batch)

    def _sides(self, net: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """The parameters that train: those that stay at the site, and those that are shared."""
        sides: tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]] = ({}, {})
        for name, value in entries(net)[0].items():
            if isinstance(value, nn.Parameter) and value.requires_grad:
                sides[not is_local(name, self._scope)][name] = value
        return sides

    def _build(self, seed: int) -> tuple[nn.Module, frozenset[str]]:
        _reseed(seed)
        model = pick("model", self._model.name, {})(**self._model.settings)
        if not isinstance(model, nn.Module):
            found = type(model).__name__
            raise TaskError("K08", f"{self._model.name} gave a {found}, not a torch.nn.Module")
        model.to(self._device)
        return model, freeze(model, self._settings["freeze"])

    def _shared(
        self, model: nn.Module, fixed: frozenset[str]
    ) -> tuple[dict[str, Array], dict[str, Kind]]:
        tensors: dict[str, Array] = {}
        kinds: dict[str, Kind] = {}
        for name, value in entries(model)[0].items():
            if not is_local(name, self._scope):
                tensors[name] = to_array(name, value)
                kind = Kind.PARAMETER if isinstance(value, nn.Parameter) else Kind.BUFFER
                kinds[name] = Kind.FROZEN if name in fixed else kind
        return tensors, kinds

    def _is_local(self, state: str) -> bool:
        """Whether an entry of the optimiser's state stays: it goes where its parameter goes."""
        return is_local(state.removeprefix(STATE).rpartition("/")[0], self._scope)

    def _optimizer(
        self, net: nn.Module, settings: Mapping[str, Any]
    ) -> tuple[Optimizer, dict[str, nn.Parameter]]:
        names = {id(value): name for name, value in entries(net)[0].items()}
        named = {
            names.get(id(value), name): value
            for name, value in net.named_parameters()
            if value.requires_grad
        }
        chosen = choice(settings["optimizer"])
        return make_optimizer(chosen, settings["param_groups"], named), named

    def _train(
        self, task: Task, settings: Mapping[str, Any], net: nn.Module, optimizer: Optimizer
    ) -> Numbers:
        batches = Batches(self._data, task.seed, self._device)
        if loop := settings["train"]:
            context = Context(task.round, task.rounds, task.seed, self._device, settings, optimizer)
            given = load(loop)(net, batches, context) or {}
            if not isinstance(given, Mapping):
                raise TaskError(
                    "K12", f"{loop} returned {kind_of(given)}, expected metrics: a dict"
                )
        else:
            given = {"loss": self._fit_by_method(task, settings, net, optimizer, batches)}
        if not batches.samples:
            raise TaskError("K04", f"{type(self._data).__name__}.train() gave no samples")
        numbers = reported(task.name, given, self._metrics, batches.samples)
        return {"n": (float(batches.samples),), **numbers}

    def _fit_by_method(
        self,
        task: Task,
        settings: Mapping[str, Any],
        net: nn.Module,
        optimizer: Optimizer,
        batches: Batches,
    ) -> Sums:
        """Where the method trains what stays at the site apart from what is shared.

        FedRep: Collins et al. 2021, arXiv:2102.07078, algorithm 1. FedRecon: Singhal et al. 2021,
        arXiv:2102.03448, algorithm 1; it reads the site's data into memory.
        """
        head, body = (side.values() for side in self._sides(net))
        chosen = self._method.settings
        if self._method.name == "fedrep":
            with held(body):
                first = {**settings, "epochs": chosen["head_epochs"], "steps": None}
                self._fit(task, first, net, optimizer, batches)
            with held(head):
                return self._fit(task, settings, net, optimizer, batches)
        if self._method.name == "fedrecon":
            query = self._rebuilt(net, batches)
            with held(head):
                return self._fit(task, settings, net, optimizer, query)
        return self._fit(task, settings, net, optimizer, batches)

    def _rebuilt(self, net: nn.Module, batches: Iterable[Any]) -> list[Any]:
        """Make what stays at the site anew, from a part of each batch. Returns: the other parts."""
        chosen = self._method.settings
        support, query = halves(batches, chosen["support"])
        head, body = (side.values() for side in self._sides(net))
        with held(body):
            steps, lr = chosen["steps"], chosen["lr"]
            rebuild(head, support, partial(self._scored, net), steps=steps, lr=lr)
        return query

    def _fit(
        self,
        task: Task,
        settings: Mapping[str, Any],
        net: nn.Module,
        optimizer: Optimizer,
        batches: Iterable[Any],
    ) -> Sums:
        """The loop that ships. Returns: the sums of the training loss."""
        every = settings["accumulate"]
        schedule = _schedule(settings["scheduler"])
        rates = [group["lr"] for group in optimizer.param_groups]
        take_step = _Step(net, optimizer, settings, self._device)
        total: Sums | None = None
        index = -1
        for index, (done, batch) in enumerate(_plan_of_batches(batches, settings)):
            if schedule and index % every == 0:
                factor = schedule(task.round, task.rounds, done)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            with take_step.autocast():
                value, weight = self._loss(forward(net, batch), batch)
            take_step.backward(value / every if every > 1 else value)
            total = add(total, (float(value.detach()) * weight, weight))
            if (index + 1) % every == 0:
                take_step()
        if (index + 1) % every:
            take_step()
        return total or (0.0, 0.0)

    @torch.no_grad()
    def _loss_before(self, net: nn.Module, task: Task) -> Sums:
        """The mean loss of the received model on the training data, which is a pass over them."""
        _reseed(task.seed)
        net.eval()
        total: Sums | None = None
        for batch in Batches(self._data, task.seed, self._device):
            value, weight = self._loss(forward(net, batch), batch)
            total = add(total, (float(value) * weight, weight))
        return mean(total)

    @torch.no_grad()
    def _validate(self, net: nn.Module, task: str) -> Numbers:
        net.eval()
        sums: dict[str, Sums] = {}
        samples = 0
        batches: Iterable[Any] = (to_device(b, self._device) for b in held_out(self._data))
        if self._method.name == "fedrecon":
            batches = self._rebuilt(net, batches)
        for batch in batches:
            samples += samples_of(batch)
            output = forward(net, batch)
            value, weight = self._loss(output, batch)
            loss = (float(value) * weight, float(weight)) if weight else (0.0, 0.0)
            given = (output, batch if isinstance(batch, Mapping) else batch[1])
            add_scores(sums, self._metrics, loss, given, partial(_shipped, output, batch))
        return scored(task, samples, sums)

    def _outcome(
        self, numbers: Numbers, net: nn.Module, fixed: frozenset[str], state: Tensors
    ) -> Outcome:
        tensors = entries(net)[0].items()
        trained = {name: to_array(name, value) for name, value in tensors if name not in fixed}
        shared, kept = split(trained, self._scope)
        if self._method.name == "fedrecon":
            kept = {}  # it is made anew whenever it is needed
        mode = self._settings["optimizer_state"]
        for name, array in state.items() if mode != "reset" else ():
            into = kept if mode == "keep" or self._is_local(name) else shared
            into[name] = array
        return Outcome(numbers, shared, kept or None)


class _Step:
    """One step of the optimiser in the plan's precision, gradients clipped."""

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        settings: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        self._net, self._optimizer, self._device = net, optimizer, device
        self._dtype = PRECISIONS[settings["precision"]]
        self._clip = settings["clip_grad_norm"]
        half = self._dtype is torch.float16
        self._scaler = torch.amp.GradScaler(device.type, enabled=half)

    def autocast(self) -> torch.autocast:
        mixed = self._dtype is not torch.float32
        return torch.autocast(
            self._device.type, self._dtype if mixed else torch.bfloat16, enabled=mixed
        )

    def backward(self, loss: Tensor) -> None:
        scaled: Any = self._scaler.scale(loss)
        scaled.backward()

    def __call__(self) -> None:
        if self._clip:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._net.parameters(), self._clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)


def _counted(optimizer: Optimizer) -> list[None]:
    """Gets one item for each step that the optimiser takes from now on."""
    taken: list[None] = []
    optimizer.register_step_post_hook(lambda *_: taken.append(None))
    return taken


def _merged(settings: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The task's settings over the runner's; `steps` and `epochs` displace each other."""
    merged = {**settings, **over}
    if over.get("steps") is not None:
        merged["epochs"] = None
    elif over.get("epochs") is not None:
        merged["steps"] = None
    return merged


def _schedule(given: Mapping[str, Any] | None) -> Callable[[int, int, float], float] | None:
    if given is None:
        return None
    chosen = choice(given)
    return partial(pick("scheduler", chosen.name, SCHEDULES), **chosen.settings)


def _plan_of_batches(
    batches: Iterable[Any], settings: Mapping[str, Any]
) -> Iterator[tuple[float, Any]]:
    """`epochs` passes, or batches for `steps` steps; with the share of the training done before.

    The number of batches in a pass is unknown, so with epochs the share moves once per pass.
    """
    if settings["steps"] is None:
        epochs = settings["epochs"]
        for epoch in range(epochs):
            for batch in batches:
                yield epoch / epochs, batch
        return
    wanted = settings["steps"] * settings["accumulate"]
    used = 0
    while used < wanted:
        before = used
        for batch in islice(batches, wanted - used):
            yield used / wanted, batch
            used += 1
        if used == before:
            return


def _shipped(output: Any, batch: Any, name: str) -> Sums:
    """One batch's sums of a shipped metric. Raises: TaskError: K05 no tensor to score."""
    if not isinstance(output, Tensor):
        found = type(output).__name__
        raise TaskError("K05", f"{name} needs a model that returns a tensor, not a {found}")
    return update(name, output.float().cpu().numpy(), targets_of(batch).cpu().numpy())
