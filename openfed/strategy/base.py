"""The contract of server optimisers, and the weights of updates. Arrays in, arrays out."""

from collections.abc import Mapping
from typing import Protocol

from openfed.typing import Json, Tensors

CONTROL = "control/"
"""Entries that a method exchanges with the sites are `control/<parameter>`."""


class Strategy(Protocol):
    """What the aggregator does with the reduced update. Sees floating parameters only, and the
    control entries that its own method has.

    State comes first and goes first; it is tensors, so that every turn of a flow can save it.
    """

    def init(self, params: Tensors) -> Tensors: ...
    def step(self, state: Tensors, delta: Tensors, share: float) -> tuple[Tensors, Tensors]:
        """From the reduced `delta` (trained minus sent) to what is added to the model.

        `share`: of how many of the federation's sites it is, in (0, 1].
        What is added is then overwritten, so the new state must not share memory with it.
        """
        ...


def weight_of(samples: float, rule: str, settings: Mapping[str, Json]) -> float:
    """How much an update counts: `samples` (capped by settings["cap"], if given) or `uniform`."""
    if rule == "uniform":
        return 1.0
    cap = settings.get("cap")
    return min(samples, float(cap)) if isinstance(cap, int | float) else samples
