"""How methods change what happens at a site, for torch (see `openfed.strategy.client`)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from openfed.strategy.base import CONTROL
from openfed.strategy.client import Client, FedDyn, FedProx, MimeLite, Scaffold, Trained
from openfed.tasks.config import Choice
from openfed.tasks.torch_state import to_array, to_tensor
from openfed.tensors.update import accumulator
from openfed.typing import Array, Tensors

OWN = "own/"
"""Entries that a method keeps at the site are `own/<parameter>`."""
PERSONAL = "personal/"
"""Those of a model of the site's own, beside the shared one, are `personal/<entry>`."""

Parameters = Mapping[str, nn.Parameter]

CLIENTS: Mapping[str, Callable[..., Client]] = {
    "fedprox": FedProx,
    "scaffold": lambda lr: Scaffold(),
    "feddyn": FedDyn,
    "mimelite": MimeLite,
    "fedplus": lambda pull: FedProx(pull),
}
"""Strategies that change the gradients of the shared model's training."""


def client_of(strategy: Choice) -> Client | None:
    make = CLIENTS.get(strategy.name)
    return make(**strategy.settings) if make else None


def controls(shared: Parameters) -> dict[str, Array]:
    """The control entries that a method begins with: zeros, in the type that updates have."""
    dtypes = {name: accumulator(str(p.dtype).removeprefix("torch.")) for name, p in shared.items()}
    return {CONTROL + n: np.zeros(tuple(p.shape), dtypes[n]) for n, p in shared.items()}


def below(prefix: str, tensors: Tensors) -> dict[str, Array]:
    """The entries below a prefix, without it."""
    return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}


class Corrected:
    """One training under a method: corrects the gradients before each step of the optimiser."""

    def __init__(
        self, client: Client, shared: Parameters, given: Tensors, optimizer: Optimizer
    ) -> None:
        """`given`: the model as it was sent, with its control entries, and the site's own ones."""
        self._client, self._shared = client, shared
        self._control, self._own = below(CONTROL, given), below(OWN, given)
        self._sent = {name: to_tensor(given[name]).to(p.device) for name, p in shared.items()}
        change = client.correction(self._control, self._own)
        self._scale, self._pull = change.scale, change.pull
        self._shift = {n: to_tensor(x).to(shared[n].device) for n, x in change.shift.items()}
        self._rates: dict[str, float] = {}
        self._names = {id(p): name for name, p in shared.items()}
        optimizer.register_step_pre_hook(self._correct)

    @torch.no_grad()
    def _correct(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                name = self._names.get(id(p))
                if name is None or p.grad is None:
                    continue
                self._rates[name] = self._rates.get(name, 0.0) + group["lr"]
                if self._scale != 1:
                    p.grad.mul_(self._scale)
                if name in self._shift:
                    p.grad.add_(self._shift[name].to(p.grad.dtype))
                if self._pull:
                    p.grad.add_(p - self._sent[name], alpha=self._pull)

    def after(self, gradient: Tensors) -> tuple[dict[str, Array], dict[str, Array]]:
        """The control entries and the site's own ones; `gradient` of a method that needs it."""
        moved = {name: _moved(p, self._sent[name]) for name, p in self._shared.items()}
        trained = Trained(moved, self._rates, gradient)
        told, kept = self._client.after(self._control, self._own, trained)
        return (
            {CONTROL + name: x for name, x in told.items()},
            {OWN + name: x for name, x in kept.items()},
        )


def _moved(p: Tensor, sent: Tensor) -> Array:
    return to_array("moved", _wide(p) - _wide(sent))


def _wide(value: Tensor) -> Tensor:
    """In the type that updates have."""
    kind = torch.float64 if value.dtype is torch.float64 else torch.float32
    return value.detach().to(kind)


def mean_gradient(
    net: nn.Module,
    shared: Parameters,
    batches: Iterable[Any],
    loss: Callable[[Any], tuple[Tensor, float]],
) -> dict[str, Array]:
    """Of the loss over all batches, of every shared parameter; in evaluation mode, so that the
    buffers stay."""
    net.eval()
    net.zero_grad(set_to_none=True)
    total = 0.0
    for batch in batches:
        value, weight = loss(batch)
        scaled: Any = value * weight
        scaled.backward()
        total += weight
    found = {name: _gradient(p, total or 1.0) for name, p in shared.items()}
    net.zero_grad(set_to_none=True)
    return found


def _gradient(p: nn.Parameter, weight: float) -> Array:
    summed = torch.zeros_like(p) if p.grad is None else p.grad
    return to_array("gradient", _wide(summed) / weight)


@contextmanager
def held(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """These parameters stay as they are meanwhile."""
    still = [p for p in parameters if p.requires_grad]
    for p in still:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in still:
            p.requires_grad_(True)


def rebuild(
    parameters: Iterable[nn.Parameter],
    batches: Sequence[Any],
    loss: Callable[[Any], tuple[Tensor, float]],
    *,
    steps: int,
    lr: float,
) -> None:
    """`steps` passes of gradient descent on `parameters` alone: Federated Reconstruction's first
    half. Source: Singhal et al. 2021, arXiv:2102.03448, algorithm 1."""
    optimizer = torch.optim.SGD(list(parameters), lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            for batch in batches:
                value: Any = loss(batch)[0]
                value.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)  # or who trains next would take these
