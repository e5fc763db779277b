"""Bounds on what a single update can move: fixed, adaptive and centred clipping.

Sources: norm clipping: Sun et al. 2019, arXiv:1911.07963. Adaptive clipping: Andrew et al. 2019,
arXiv:1905.03871, algorithm 1, without its noise. Centred clipping: Karimireddy, He, Jaggi 2021,
arXiv:2012.10333, "CenteredClip".
"""

import math
from collections.abc import Sequence

import numpy as np

from openfed.strategy.measure import distances, floating, mixture, norms, scaled
from openfed.strategy.reduce import Weighted
from openfed.tensors.record import Empty, Signature
from openfed.typing import Array, Tensors


def _factors(far: Array, radius: float) -> Array:
    """min(1, radius / far), 1 where far is 0."""
    return np.asarray(radius / np.maximum(far, radius))


def clip(updates: Sequence[Weighted], signature: Signature, *, norm: float) -> list[Weighted]:
    """A `Screen`: every update scaled by min(1, norm / |x|). `norm` > 0."""
    factors = _factors(norms(updates, signature), norm)
    return scaled(updates, factors.tolist(), floating(signature))


def next_norm(norm: float, lengths: Array, *, quantile: float = 0.5, rate: float = 0.2) -> float:
    """The norm to clip with in the next round: norm * exp(-rate * (b - quantile)), where b is the
    share of `lengths` that are at most `norm`. So it follows that quantile of what sites send.

    Sites count alike, whatever their weight. `quantile`: 0 .. 1; `rate` > 0: 0.2 in the paper.
    """
    return norm * math.exp(-rate * (float(np.mean(lengths <= norm)) - quantile))


def begin_adaptive(norm: float = 0.1) -> Tensors:
    """The state of adaptive clipping before the first round; 0.1 as in the paper."""
    return {"norm": np.array(norm, np.float64)}


def adaptive_clip(
    state: Tensors,
    updates: Sequence[Weighted],
    signature: Signature,
    *,
    quantile: float = 0.5,
    rate: float = 0.2,
) -> tuple[Tensors, list[Weighted]]:
    """(the next round's state, the updates clipped with this round's norm)."""
    norm, lengths = float(state["norm"]), norms(updates, signature)
    clipped = scaled(updates, _factors(lengths, norm).tolist(), floating(signature))
    return begin_adaptive(next_norm(norm, lengths, quantile=quantile, rate=rate)), clipped


def centred_clip(
    updates: Sequence[Weighted],
    signature: Signature,
    *,
    radius: float,
    center: Tensors = Empty,
    steps: int = 1,
) -> list[Weighted]:
    """A `Screen`: updates whose weighted mean is v after `steps` of

        v <- v + sum_i p_i (x_i - v) min(1, radius / |x_i - v|),  p_i = weight / sum of weights.

    v begins at `center`: the last round's aggregate, zero where that has no entry. So what a round
    move v is at most `steps` * radius, and hostile updates have their share of that. A pass over
    the updates for each step. `radius` > 0.
    """
    weights = np.array([update.weight for update in updates])
    p, shares = weights / weights.sum(), np.zeros(len(updates))
    for _ in range(steps):
        far = distances(updates, signature, mixture(shares, center))
        pull = p * _factors(far, radius)
        shares = (1 - pull.sum()) * shares + pull
    return scaled(updates, (shares / p).tolist(), floating(signature), center)
