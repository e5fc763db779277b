"""Any `torch.nn.Module` as a task runner.

The module is built anew for every task, from the plan's seed, and filled from the record: nothing
crosses from task to task, so a process that stays warm answers what a fresh one would.

A batch is `(inputs, targets)`, or a dict whose entries go by name to the arguments that `forward`
takes. `inputs` may be a tuple (positional arguments) or a dict (by name).
"""

import copy
import inspect
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from openfed.errors import TaskError
from openfed.tasks.base import VALIDATE, Outcome, Task
from openfed.tasks.checks import reported
from openfed.tasks.config import Choice, Config, choice
from openfed.tasks.metrics import Sums, add, update
from openfed.tasks.runners import load, load_metrics, pick
from openfed.tasks.seeds import derive
from openfed.tensors.record import DTYPES, Kind, Signature, is_local, matches, signature_of
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
STATE = "optimizer/"
"""Entries of the optimiser's state are `optimizer/<parameter>/<key>`."""

Schedule = Callable[[int, int, float], float]
"""(round from 1, rounds, share of this round's training that is done) -> factor of every lr."""


def cosine(
    round: int, rounds: int, done: float, *, over: str = "rounds", floor: float = 0.0
) -> float:
    """Half a cosine from 1 to `floor` over the run; with `over="steps"` also within a round."""
    at = (round - 1 + (done if over == "steps" else 0.0)) / rounds
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * at))


def linear(
    round: int, rounds: int, done: float, *, over: str = "rounds", floor: float = 0.0
) -> float:
    """A straight line from 1 to `floor`; `over` as in `cosine`."""
    at = (round - 1 + (done if over == "steps" else 0.0)) / rounds
    return 1 - (1 - floor) * at


def step(round: int, rounds: int, done: float, *, every: int, gamma: float = 0.1) -> float:
    """Times `gamma` after every `every` rounds."""
    return float(gamma ** ((round - 1) // every))


def exponential(round: int, rounds: int, done: float, *, gamma: float) -> float:
    return float(gamma ** (round - 1))


SCHEDULES: Mapping[str, Callable[..., float]] = {
    "cosine": cosine,
    "linear": linear,
    "step": step,
    "exponential": exponential,
}


@dataclass(frozen=True)
class Context:
    """What a loop of the user's gets besides model and batches."""

    round: int
    rounds: int
    seed: int
    device: torch.device
    settings: Mapping[str, Json]  # the runner's, with the task's over them
    optimizer: Optimizer


class Batches:
    """One pass over the training data whenever it is iterated; moves batches, counts samples."""

    def __init__(self, data: Any, seed: int, device: torch.device) -> None:
        self._data, self._seed, self._device = data, seed, device
        self.passes = self.samples = 0

    def __iter__(self) -> Iterator[Any]:
        seed = derive(self._seed, "pass", self.passes)
        self.passes += 1
        for batch in self._data.train(seed=seed):
            self.samples += samples_of(batch)
            yield to_device(batch, self._device)


def samples_of(batch: Any) -> int:
    """The first extent of the batch's first tensor. Raises: TaskError: K05 no such batch."""
    paired = isinstance(batch, tuple | list) and len(batch) == 2
    tensor = next(_leaves(batch), None) if paired or isinstance(batch, Mapping) else None
    if tensor is None or not tensor.ndim:
        found = type(batch).__name__
        raise TaskError("K05", f"expected batches (inputs, targets) or a dict, got a {found}")
    return int(tensor.shape[0])


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Tensor | np.ndarray):
        yield batch
    elif isinstance(batch, Mapping | tuple | list):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _leaves(part)


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors and arrays on `device`; the rest as it is."""
    if isinstance(batch, np.ndarray):
        return to_tensor(batch).to(device)
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(to_device(value, device) for value in batch)
    return batch


def forward(model: nn.Module, batch: Any) -> Any:
    inputs = batch if isinstance(batch, Mapping) else batch[0]
    if isinstance(inputs, tuple):
        return model(*inputs)
    if not isinstance(inputs, Mapping):
        return model(inputs)
    takes = inspect.signature(model.forward).parameters.values()
    if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in takes):
        inputs = {one.name: inputs[one.name] for one in takes if one.name in inputs}
    return model(**inputs)


def targets_of(batch: Any) -> Any:
    if not isinstance(batch, Mapping):
        return batch[1]
    if "targets" not in batch:
        raise TaskError("K05", "shipped losses and metrics need an entry `targets` in a dict batch")
    return batch["targets"]


Loss = Callable[[Any, Any], tuple[Tensor, float]]
"""(output, batch) -> (mean loss, how much it counts in a sum: samples, or the weight of them)."""


def make_loss(chosen: Choice, device: torch.device) -> Loss:
    """A shipped loss, or the user's `(output, batch, **settings) -> scalar`."""
    function = pick("loss", chosen.name, LOSSES)
    if chosen.name not in LOSSES:
        made = partial(function, **chosen.settings)
        return lambda output, batch: (made(output, batch), samples_of(batch))
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
            weight = _class_weight(targets, settings)
            return function(output, targets, **settings), weight
        return function(output, targets, **settings), samples_of(batch)

    return loss


def _class_weight(targets: Tensor, settings: Mapping[str, Any]) -> float:
    """What torch divides by for the mean: the weights of the targets that are not ignored."""
    kept = targets[targets != settings.get("ignore_index", -100)]
    weight = settings.get("weight")
    return float(kept.numel() if weight is None else weight[kept].sum())


def entries(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parameters and persistent buffers, tied ones once, under the first of their sorted names.

    Returns: the tensors by name; and for every name of `state_dict`, the name it is stored under.
    Raises: TaskError: K07 a state that is no tensor.
    """
    tensors: dict[str, Tensor] = {}
    stored: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, value in sorted(model.state_dict(keep_vars=True).items()):
        if not isinstance(value, Tensor):
            raise TaskError("K07", f"{name} is a {type(value).__name__}, not a tensor")
        where = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        stored[name] = first.setdefault(where if value.numel() else id(value), name)
        tensors.setdefault(stored[name], value)
    return tensors, stored


def to_array(name: str, value: Tensor) -> Array:
    """The same bits as a numpy array. Raises: TaskError: K07 a dtype that no frame holds."""
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES or value.layout is not torch.strided:
        raise TaskError("K07", f"{name} is a {dtype} tensor ({value.layout}), which cannot travel")
    value = value.detach().cpu().contiguous()
    if value.dtype is torch.bfloat16:
        return value.view(torch.int16).numpy().view(DTYPES["bfloat16"])
    return np.asarray(value.numpy())


def to_tensor(array: Array) -> Tensor:
    """The same bits as a tensor of its own memory."""
    if array.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(np.array(array.view(np.int16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def save_state_dict(path: Path, tensors: Tensors) -> None:
    """Write a model as the `state_dict` that `torch.load` reads (which openfed never does)."""
    torch.save({name: to_tensor(array) for name, array in tensors.items()}, path)


def freeze(model: nn.Module, patterns: Iterable[str]) -> frozenset[str]:
    """Stop training what the globs match; returns the stored names that are fixed for the run.

    Raises: TaskError: K08 a glob that matches nothing.
    """
    tensors, stored = entries(model)
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in stored):
            raise TaskError("K08", f"freeze: {pattern!r} matches no entry of the model")
    fixed = {stored[name] for name in stored if matches(name, patterns)}
    for name, value in tensors.items():
        if isinstance(value, nn.Parameter):
            if name in fixed:
                value.requires_grad_(False)
            elif not value.requires_grad:
                fixed.add(name)
    return frozenset(fixed)


def train_mode(model: nn.Module, fixed: frozenset[str], stored: Mapping[str, str]) -> None:
    """Training mode; but a module whose buffers are all frozen keeps using them as they are."""
    model.train()
    for prefix, module in model.named_modules():
        path = f"{prefix}." if prefix else ""
        names = [path + name for name, _ in module.named_buffers(recurse=False)]
        names = [stored[name] for name in names if name in stored]
        if names and all(name in fixed for name in names):
            module.training = False


def make_optimizer(
    chosen: Choice, groups: Iterable[Mapping[str, Any]], named: Mapping[str, nn.Parameter]
) -> Optimizer:
    """`groups`: {match: glob, <settings>}; the first match wins, the rest take the common ones."""
    factory = pick("optimizer", chosen.name, OPTIMIZERS)
    left, made = dict(named), []
    for group in groups:
        own = [name for name in left if matches(name, [group["match"]])]
        if not own:
            raise TaskError("K08", f"param_groups: {group['match']!r} matches no parameter")
        settings = {key: value for key, value in group.items() if key != "match"}
        made.append({"params": [left.pop(name) for name in own], **settings})
    rest = [{"params": list(left.values())}] if left else []
    optimizer: Optimizer = factory([*made, *rest], **chosen.settings)
    return optimizer


def save_state(optimizer: Optimizer, named: Mapping[str, nn.Parameter]) -> dict[str, Array]:
    """The optimiser's state as entries; what is None has no entry."""
    return {
        f"{STATE}{name}/{key}": to_array(key, torch.as_tensor(value))
        for name, parameter in named.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def load_state(optimizer: Optimizer, named: Mapping[str, nn.Parameter], given: Tensors) -> None:
    for entry, value in given.items():
        if entry.startswith(STATE):
            name, _, key = entry.removeprefix(STATE).rpartition("/")
            if name in named:
                at = "cpu" if key == "step" else named[name].device
                optimizer.state[named[name]][key] = to_tensor(value).to(at)


def blank_state(model: nn.Module, make: Callable[[nn.Module], Any]) -> dict[str, Array]:
    """The state that an optimiser begins with: that of one step on nothing, counters set back."""
    still = copy.deepcopy(model)
    optimizer, named = make(still)
    for parameter in named.values():
        parameter.data.zero_()  # so that weight decay adds nothing either
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = save_state(optimizer, named)
    for entry, value in state.items():
        if entry.endswith("/step"):
            state[entry] = np.zeros_like(value)
    return state


def reseed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
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
        self._device = pick_device(config.device)
        self._model = choice(self._settings["model"])
        self._loss = make_loss(choice(self._settings.get("loss", "cross_entropy")), self._device)
        self._metrics = load_metrics(config.metrics)

    def initial(self, seed: int) -> tuple[Tensors, Signature]:
        model, fixed = self._build(seed)
        tensors, kinds = self._shared(model, fixed)
        if self._settings.get("optimizer_state") == "average":
            state = blank_state(model, lambda net: self._optimizer(net, self._settings))
            for name, value in state.items():
                if not self._is_local(name):
                    tensors[name], kinds[name] = value, Kind.STATE
        return tensors, signature_of(tensors, kinds)

    def run(self, task: Task, model: Tensors, local: Tensors) -> Outcome:
        net, fixed = self._build(self._seed)
        _, stored = entries(net)
        given = {**local, **model}
        known = {name: to_tensor(given[at]) for name, at in stored.items() if at in given}
        net.load_state_dict(known, strict=False)
        reseed(task.seed)
        if task.name == VALIDATE:
            return Outcome(self._validate(net, VALIDATE))
        settings = _merged(self._settings, task.settings)
        optimizer, named = self._optimizer(net, settings)
        if self._settings.get("optimizer_state", "reset") != "reset":
            load_state(optimizer, named, given)
        train_mode(net, fixed, stored)
        numbers = self._train(task, settings, net, optimizer)
        if task.settings.get("tuned"):
            tuned = self._validate(net, "validate_tuned")
            numbers |= {name: value for name, value in tuned.items() if name != "n"}
        return self._outcome(numbers, net, fixed, save_state(optimizer, named))

    def _build(self, seed: int) -> tuple[nn.Module, frozenset[str]]:
        reseed(seed)
        model = pick("model", self._model.name, {})(**self._model.settings)
        if not isinstance(model, nn.Module):
            found = type(model).__name__
            raise TaskError("K08", f"{self._model.name} gave a {found}, not a torch.nn.Module")
        model.to(self._device)
        return model, freeze(model, self._settings.get("freeze", ()))

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
        chosen = choice(settings.get("optimizer", "sgd"))
        return make_optimizer(chosen, settings.get("param_groups") or (), named), named

    def _train(
        self, task: Task, settings: Mapping[str, Any], net: nn.Module, optimizer: Optimizer
    ) -> dict[str, tuple[float, ...]]:
        batches = Batches(self._data, task.seed, self._device)
        if loop := settings.get("train"):
            context = Context(task.round, task.rounds, task.seed, self._device, settings, optimizer)
            given = load(loop)(net, batches, context) or {}
        else:
            given = {"loss": self._fit(task, settings, net, optimizer, batches)}
        if not batches.samples:
            raise TaskError("K04", f"{type(self._data).__name__}.train() gave no samples")
        numbers = reported(task.name, given, self._metrics, batches.samples)
        return {"n": (float(batches.samples),), **numbers}

    def _fit(
        self,
        task: Task,
        settings: Mapping[str, Any],
        net: nn.Module,
        optimizer: Optimizer,
        batches: Batches,
    ) -> Sums:
        """The loop that ships. Returns: the sums of the training loss."""
        every = int(settings.get("accumulate", 1))
        schedule = _schedule(settings.get("scheduler"))
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
    def _validate(self, net: nn.Module, task: str) -> dict[str, tuple[float, ...]]:
        """`n` alone where the site has no validation data."""
        net.eval()
        sums: dict[str, Sums] = {}
        samples = 0
        give = getattr(self._data, "validate", None)
        for batch in (give() if give else None) or ():
            samples += samples_of(batch)
            batch = to_device(batch, self._device)
            output = forward(net, batch)
            value, weight = self._loss(output, batch)
            loss = (float(value) * weight, float(weight)) if weight else (0.0, 0.0)
            for name, function in {"loss": None, **self._metrics}.items():
                made = (
                    loss
                    if name in ("loss", "perplexity")
                    else _scored(name, function, output, batch)
                )
                sums[name] = add(sums.get(name), made)
        return {"n": (float(samples),)} | {f"metrics/{task}/{k}": v for k, v in sums.items()}

    def _outcome(
        self, numbers: Numbers, net: nn.Module, fixed: frozenset[str], state: Tensors
    ) -> Outcome:
        shared: dict[str, Array] = {}
        kept: dict[str, Array] = {}
        for name, value in entries(net)[0].items():
            if name not in fixed:
                into = kept if is_local(name, self._scope) else shared
                into[name] = to_array(name, value)
        mode = self._settings.get("optimizer_state", "reset")
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
        self._dtype = PRECISIONS[settings.get("precision", "fp32")]
        self._clip = settings.get("clip_grad_norm")
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


def _merged(settings: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The task's settings over the runner's; `steps` and `epochs` displace each other."""
    merged = {**settings, **over}
    if over.get("steps") is not None:
        merged["epochs"] = None
    elif over.get("epochs") is not None:
        merged["steps"] = None
    return merged


def _schedule(value: Any) -> Schedule | None:
    if value is None:
        return None
    chosen = choice(value)
    return partial(pick("scheduler", chosen.name, SCHEDULES), **chosen.settings)


def _plan_of_batches(batches: Batches, settings: Mapping[str, Any]) -> Iterator[tuple[float, Any]]:
    """`epochs` passes, or batches for `steps` steps; with the share of the training done before.

    The number of batches in a pass is unknown, so with epochs the share moves once per pass.
    """
    if settings.get("steps") is None:
        epochs = int(settings.get("epochs") or 1)
        for epoch in range(epochs):
            for batch in batches:
                yield epoch / epochs, batch
        return
    wanted = int(settings["steps"]) * int(settings.get("accumulate", 1))
    used = 0
    while used < wanted:
        before = used
        for batch in islice(batches, wanted - used):
            yield used / wanted, batch
            used += 1
        if used == before:
            return


def _scored(name: str, function: Any, output: Any, batch: Any) -> Sums:
    """One batch's sums of a shipped metric, or of the user's `(output, targets)` function.

    A user's function gets the whole batch in place of targets where batches are dicts.
    """
    if function is None:
        if not isinstance(output, Tensor):
            found = type(output).__name__
            raise TaskError("K05", f"{name} needs a model that returns a tensor, not a {found}")
        targets = targets_of(batch)
        return update(name, output.float().cpu().numpy(), targets.cpu().numpy())
    above, below = function(output, batch if isinstance(batch, Mapping) else batch[1])
    return float(above), float(below)
