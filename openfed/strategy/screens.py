"""Screens as a run has them: with what they remember of earlier rounds, and what sites reported.

What is remembered is tensors; before the first round it is empty.
"""

from collections.abc import Callable, Sequence
from functools import partial

from openfed.strategy import weights
from openfed.strategy.clipping import adaptive_clip, begin_adaptive, centred_clip
from openfed.strategy.reduce import Weighted, reduce_updates
from openfed.tensors.record import FLOATING, Signature
from openfed.typing import Tensors

Screening = Callable[[Tensors, Sequence[Weighted], Signature], tuple[Tensors, Sequence[Weighted]]]
"""From (what is remembered, the accepted updates, what one of them looks like) to (what is
remembered from now on, the updates that count), both in name order."""


def forgetful(screen: Callable[..., Sequence[Weighted]], **settings: object) -> Screening:
    """A `Screen` with its settings, that remembers nothing."""
    chosen = partial(screen, **settings)
    return lambda memory, updates, signature: (memory, chosen(updates, signature))


def adaptive_clipping(
    memory: Tensors,
    updates: Sequence[Weighted],
    signature: Signature,
    *,
    norm: float,
    quantile: float,
    rate: float,
) -> tuple[Tensors, Sequence[Weighted]]:
    """Remembers the norm, which begins as `norm`."""
    state = memory or begin_adaptive(norm)
    return adaptive_clip(state, updates, signature, quantile=quantile, rate=rate)


def centred_clipping(
    memory: Tensors,
    updates: Sequence[Weighted],
    signature: Signature,
    *,
    radius: float,
    steps: int,
) -> tuple[Tensors, Sequence[Weighted]]:
    """Remembers the aggregate, the next round's center. It is made here, in one more pass: whoever
    reduces the updates adds the model to the result in place."""
    kept = centred_clip(updates, signature, radius=radius, center=memory, steps=steps)
    return reduce_updates(kept, tuple(s for s in signature if s.dtype in FLOATING)), kept


def fednova(
    updates: Sequence[Weighted], signature: Signature, *, momentum: float
) -> Sequence[Weighted]:
    """`weights.fednova` by the local steps that the sites report; `momentum` is their SGD's."""
    masses = [weights.step_mass(n, momentum=momentum) for n in _reported(updates, "steps")]
    return weights.fednova(updates, signature, masses=masses)


def qfedavg(
    updates: Sequence[Weighted], signature: Signature, *, q: float, rate: float
) -> Sequence[Weighted]:
    """`weights.qfedavg` by the losses that the sites report of the model that they received."""
    losses = _reported(updates, "loss_before")
    return weights.qfedavg(updates, signature, losses=losses, q=q, rate=rate)


def _reported(updates: Sequence[Weighted], name: str) -> list[float]:
    return [update.source.numbers[name][0] for update in updates]
