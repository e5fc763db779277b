"""Methods that change how a site trains: the half of each that runs there. Arrays in, arrays out.

Each changes the gradient g at w, before every step of the optimiser, to

    scale * g + shift + pull * (w - sent),

where `sent` is the model that the site was sent, and may keep entries of its own from round to
round (`own`) and exchange some with the aggregator (`control`, zeros at first; the aggregator
gets how they moved). Both have one entry a parameter, under the parameter's name.
Its other half, at the aggregator, is in `server.py`.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from openfed.typing import Array, Tensors


@dataclass(frozen=True)
class Correction:
    """The line above. A parameter without an entry in `shift` has a shift of 0."""

    scale: float = 1.0
    pull: float = 0.0
    shift: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """What training did, by parameter: `moved`, the trained minus the sent value; `rates`, the sum
    of the learning rates of its steps; `gradient`, the mean gradient of all of the site's data at
    the sent value, for a method that is `by_gradient` only."""

    moved: Tensors
    rates: dict[str, float]
    gradient: Tensors = field(default_factory=dict)


class Client(Protocol):
    """`controlled`: it exchanges control entries. `by_gradient`: see `Trained`."""

    controlled: bool
    by_gradient: bool

    def correction(self, control: Tensors, own: Tensors) -> Correction:
        """`own` is empty before the site's first training."""
        ...

    def after(self, control: Tensors, own: Tensors, trained: Trained) -> tuple[Tensors, Tensors]:
        """The control entries and the site's own ones after training."""
        ...


@dataclass(frozen=True)
class FedProx:
    """g + mu (w - sent): the gradient of F(w) + mu/2 |w - sent|^2.

    Source: Li et al. 2020, arXiv:1812.06127, equation 2.
    """

    mu: float
    controlled = by_gradient = False

    def correction(self, control: Tensors, own: Tensors) -> Correction:
        return Correction(pull=self.mu)

    def after(self, control: Tensors, own: Tensors, trained: Trained) -> tuple[Tensors, Tensors]:
        return {}, {}


@dataclass(frozen=True)
class Scaffold:
    """g - c_i + c; afterwards c_i <- c_i - c + (sent - w) / (K lr), and c_i's change goes up.

    K lr is the sum of the steps' rates, so a schedule is covered; steps are those of plain SGD.
    Source: Karimireddy et al. 2020, arXiv:1910.06378, algorithm 1, option II.
    """

    controlled = True
    by_gradient = False

    def correction(self, control: Tensors, own: Tensors) -> Correction:
        return Correction(shift={name: c - _own(own, name, c) for name, c in control.items()})

    def after(self, control: Tensors, own: Tensors, trained: Trained) -> tuple[Tensors, Tensors]:
        told, kept = {}, {}
        for name, c in control.items():
            before, rates = _own(own, name, c), trained.rates.get(name)
            kept[name] = before  # without a step
            if rates:
                kept[name] = before - c - trained.moved[name] / c.dtype.type(rates)
            told[name] = c + (kept[name] - before)
        return told, kept


@dataclass(frozen=True)
class FedDyn:
    """g - g_i + alpha (w - sent); afterwards g_i <- g_i - alpha (w - sent).

    Source: Acar et al. 2021, arXiv:2111.04263, algorithm 1.
    """

    alpha: float
    controlled = by_gradient = False

    def correction(self, control: Tensors, own: Tensors) -> Correction:
        return Correction(pull=self.alpha, shift={name: -g for name, g in own.items()})

    def after(self, control: Tensors, own: Tensors, trained: Trained) -> tuple[Tensors, Tensors]:
        moved = trained.moved.items()
        return {}, {n: _own(own, n, d) - d.dtype.type(self.alpha) * d for n, d in moved}


@dataclass(frozen=True)
class MimeLite:
    """(1 - beta) g + beta m, with the aggregator's momentum m, which does not move while the site
    trains; up goes (1 - beta) times the gradient of all its data at `sent`, plus beta m.

    Source: Karimireddy et al. 2021, arXiv:2008.03606, algorithm 1 (MimeLite, SGD with momentum).
    """

    beta: float
    controlled = by_gradient = True

    def correction(self, control: Tensors, own: Tensors) -> Correction:
        beta = self.beta
        shift = {name: m.dtype.type(beta) * m for name, m in control.items()}
        return Correction(scale=1.0 - beta, shift=shift)

    def after(self, control: Tensors, own: Tensors, trained: Trained) -> tuple[Tensors, Tensors]:
        told = {}
        for name, m in control.items():
            beta = m.dtype.type(self.beta)
            told[name] = (m.dtype.type(1) - beta) * trained.gradient[name] + beta * m
        return told, {}


def _own(own: Tensors, name: str, like: Array) -> Array:
    return own[name] if name in own else np.zeros_like(like)
