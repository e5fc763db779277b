"""A loader's batches, for torch: how they are counted and moved, and how they enter a model.

A batch is `(inputs, targets)`, or a dict whose entries go by name to the arguments that `forward`
takes. `inputs` may be a tuple (positional arguments) or a dict (by name).
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openfed.errors import TaskError
from openfed.tasks.seeds import derive
from openfed.tasks.torch_state import to_tensor
from openfed.typing import Array


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


def halves(batches: Iterable[Any], share: float) -> tuple[list[Any], list[Any]]:
    """Each batch's samples in two disjoint parts, `share` of them, at least one, in the first.

    A batch of one sample is in the first part only. The parts depend on the batches' order and
    sizes, nothing else.
    """
    first, second = [], []
    for index, batch in enumerate(batches):
        count = samples_of(batch)
        order = np.random.default_rng((index, count)).permutation(count)
        cut = max(1, round(share * count))
        first.append(_rows(batch, np.sort(order[:cut])))
        if cut < count:
            second.append(_rows(batch, np.sort(order[cut:])))
    return first, second


def _rows(batch: Any, rows: Array) -> Any:
    """These samples of a batch: of every tensor in it, these rows."""
    if isinstance(batch, Tensor | np.ndarray):
        return batch[rows]
    if isinstance(batch, Mapping):
        return {key: _rows(value, rows) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_rows(value, rows) for value in batch)
    return batch
