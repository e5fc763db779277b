"""Server optimisers: what is done with the reduced update before it is added to the model.

FedAvg adds it as it is. The others treat it as a negative gradient. Of methods that also change
how a site trains, the site's half is in `client.py`.
Sources: FedAvgM: Hsu, Qi, Brown 2019, arXiv:1909.06335. FedAdagrad, FedAdam, FedYogi: Reddi et
al. 2021, arXiv:2003.00295, algorithm 2, without bias correction, as there. Scaffold: Karimireddy
et al. 2020, arXiv:1910.06378, algorithm 1. FedDyn: Acar et al. 2021, arXiv:2111.04263, algorithm 1.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from openfed.strategy.base import CONTROL
from openfed.typing import Tensors


def _zeros(params: Tensors, name: str, value: float = 0.0) -> Tensors:
    return {f"{name}/{key}": np.full_like(x, value) for key, x in params.items()}


@dataclass(frozen=True)
class FedAvg:
    """The model moves by the weighted mean of the updates."""

    def init(self, params: Tensors) -> Tensors:
        return {}

    def step(self, state: Tensors, delta: Tensors, share: float) -> tuple[Tensors, Tensors]:
        return state, delta


@dataclass(frozen=True)
class FedAvgM:
    """Momentum: m <- momentum * m + delta; the model moves by lr * m."""

    lr: float = 1.0
    momentum: float = 0.9

    def init(self, params: Tensors) -> Tensors:
        return _zeros(params, "m")

    def step(self, state: Tensors, delta: Tensors, share: float) -> tuple[Tensors, Tensors]:
        new, move = {}, {}
        for key, d in delta.items():
            m = new[f"m/{key}"] = np.asarray(d.dtype.type(self.momentum) * state[f"m/{key}"] + d)
            move[key] = np.asarray(d.dtype.type(self.lr) * m)
        return new, move


@dataclass(frozen=True)
class FedAdaptive:
    """m <- beta1 m + (1 - beta1) d; the model moves by lr * m / (sqrt(v) + tau), where
    adagrad: v <- v + d^2;  adam: v <- beta2 v + (1 - beta2) d^2;
    yogi: v <- v - (1 - beta2) d^2 sign(v - d^2).  v starts at tau^2.
    """

    rule: Literal["adagrad", "adam", "yogi"]
    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def init(self, params: Tensors) -> Tensors:
        return {**_zeros(params, "m"), **_zeros(params, "v", self.tau**2)}

    def step(self, state: Tensors, delta: Tensors, share: float) -> tuple[Tensors, Tensors]:
        new, move = {}, {}
        for key, d in delta.items():
            real = d.dtype.type
            b1, b2 = real(self.beta1), real(self.beta2)
            m = b1 * state[f"m/{key}"] + (real(1) - b1) * d
            v, square = state[f"v/{key}"], d * d
            if self.rule == "adagrad":
                v = v + square
            elif self.rule == "adam":
                v = b2 * v + (real(1) - b2) * square
            else:
                v = v - (real(1) - b2) * square * np.sign(v - square)
            new[f"m/{key}"], new[f"v/{key}"] = np.asarray(m), np.asarray(v)
            move[key] = np.asarray(real(self.lr) * m / (np.sqrt(v) + real(self.tau)))
        return new, move


@dataclass(frozen=True)
class Scaffold:
    """The model moves by lr * delta, the control entries by share * delta: c stays the mean of what
    all sites keep, also of those that were not asked."""

    lr: float = 1.0

    def init(self, params: Tensors) -> Tensors:
        return {}

    def step(self, state: Tensors, delta: Tensors, share: float) -> tuple[Tensors, Tensors]:
        factors = {key: share if key.startswith(CONTROL) else self.lr for key in delta}
        return {}, {key: np.asarray(d.dtype.type(factors[key]) * d) for key, d in delta.items()}


@dataclass(frozen=True)
class FedDyn:
    """h <- h + share * delta; the model moves by delta + h. (In the paper h is -alpha times this.)

    With weights other than uniform, delta is no longer the mean that the method's proof is of.
    """

    def init(self, params: Tensors) -> Tensors:
        return _zeros(params, "h")

    def step(self, state: Tensors, delta: Tensors, share: float) -> tuple[Tensors, Tensors]:
        new, move = {}, {}
        for key, d in delta.items():
            h = new[f"h/{key}"] = np.asarray(state[f"h/{key}"] + d.dtype.type(share) * d)
            move[key] = np.asarray(d + h)
        return new, move
