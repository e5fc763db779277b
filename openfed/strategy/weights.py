"""Weights and scales that need more from sites than their updates: FedNova, q-FedAvg.

They are for the entries that the strategy sees: parameters. Buffers are averaged as they are.
Sources: FedNova: Wang et al. 2020, arXiv:2007.07481, section 4. q-FedAvg: Li et al. 2020,
arXiv:1905.10497, algorithm 2.
"""

import math
from collections.abc import Sequence

import numpy as np

from openfed.errors import OpenFedError
from openfed.strategy.measure import floating, norms, scaled
from openfed.strategy.reduce import Weighted
from openfed.tensors.record import Kind, Signature

SMALLEST_LOSS = 1e-10
"""Added to every loss, as in the authors' code: F^(q-1) of a loss of 0 would be infinite."""


def _parameters(signature: Signature) -> Signature:
    return tuple(spec for spec in signature if spec.kind is Kind.PARAMETER)


def _check(values: Sequence[float], updates: Sequence[Weighted], what: str, least: float) -> None:
    """Raises: OpenFedError F12: not one finite value of at least `least` for each update."""
    if len(values) != len(updates):
        message = f"expected {what} of each of {len(updates)} updates, got {len(values)}"
        raise OpenFedError("F12", message)
    for index, value in enumerate(values):
        if not (math.isfinite(value) and value >= least):
            place = f"update {index + 1} of {len(values)} in name order"
            message = f"{place}: expected {what} of at least {least:g}, got {value:g}"
            raise OpenFedError("F12", message)


def step_mass(steps: float, *, momentum: float = 0.0, proximal: float = 0.0) -> float:
    """|a|_1: how far `steps` local steps go, in gradients of the same length.

    SGD: steps. With momentum r (buffer empty at the round's begin, no dampening, not Nesterov's):
    (steps - r (1 - r^steps) / (1 - r)) / (1 - r). With a proximal term, `proximal` = lr * mu in
    (0, 1): (1 - (1 - proximal)^steps) / proximal. The learning rate is constant in a round.
    Raises: ValueError: both, or one out of its range.
    """
    if not (0 <= momentum < 1 and 0 <= proximal < 1) or (momentum and proximal):
        raise ValueError(f"momentum {momentum:g} with proximal {proximal:g}")
    if momentum:
        return (steps - momentum * (1 - math.pow(momentum, steps)) / (1 - momentum)) / (
            1 - momentum
        )
    return -math.expm1(steps * math.log1p(-proximal)) / proximal if proximal else float(steps)


def fednova(
    updates: Sequence[Weighted], signature: Signature, *, masses: Sequence[float]
) -> list[Weighted]:
    """Updates whose weighted mean is t * sum_i p_i x_i / m_i, with m_i the updates' `masses`
    (`step_mass`), p_i their shares of the weight, and t = sum_i p_i m_i.

    Raises: OpenFedError F12: a mass is missing, or is not a finite number of at least 1.
    """
    _check(masses, updates, "local steps", 1)
    weights = np.array([update.weight for update in updates])
    mean = float((weights * np.array(masses)).sum() / weights.sum())
    return scaled(updates, [mean / mass for mass in masses], floating(_parameters(signature)))


def qfedavg(
    updates: Sequence[Weighted],
    signature: Signature,
    *,
    losses: Sequence[float],
    q: float,
    rate: float,
) -> list[Weighted]:
    """Updates whose weighted mean is sum_i p_i F_i^q L x_i / sum_i p_i h_i, with
    h_i = q F_i^(q-1) |L x_i|^2 + L F_i^q and L = 1 / `rate`, the local learning rate.

    `losses` F_i: mean loss at each site of the model that was sent. Uniform weights are the paper's
    algorithm, which draws sites by their weight; q = 0 is FedAvg.
    Raises: OpenFedError F12: a loss is missing, or is not a finite number >= 0. F11: an update is
    so long that its squared norm is not finite.
    """
    _check(losses, updates, "a loss", 0)
    names = _parameters(signature)
    smoothness = 1 / rate
    loss = np.array(losses) + SMALLEST_LOSS
    with np.errstate(over="ignore"):
        length = np.square(smoothness * norms(updates, names))
        h = smoothness * loss**q + (q * loss ** (q - 1) * length if q else 0)
    if not np.isfinite(h).all():
        raise OpenFedError("F11", "an update is so large that its norm cannot be computed")
    weights = np.array([update.weight for update in updates])
    scale = loss**q * smoothness * weights.sum() / (weights * h).sum()
    return scaled(updates, scale.tolist(), floating(names))
