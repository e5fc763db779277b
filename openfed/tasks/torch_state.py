"""What a module and its optimiser hold, as entries of a record, bit by bit."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from openfed.errors import TaskError
from openfed.tasks.checks import check_pattern
from openfed.tensors.record import DTYPES, matches
from openfed.typing import Array, Tensors

STATE = "optimizer/"
"""Entries of the optimiser's state are `optimizer/<parameter>/<key>`."""


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


def save_state_dict(file: IO[bytes], tensors: Tensors) -> None:
    """Write a model as the `state_dict` that `torch.load` reads (which openfed never does)."""
    torch.save({name: to_tensor(array) for name, array in tensors.items()}, file)


def freeze(model: nn.Module, patterns: Iterable[str]) -> frozenset[str]:
    """Stop training what the globs match; returns the stored names that are fixed for the run.

    Raises: TaskError: K11 a glob that matches nothing.
    """
    tensors, stored = entries(model)
    for pattern in patterns:
        check_pattern("task_runner.torch.freeze", pattern, stored)
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
