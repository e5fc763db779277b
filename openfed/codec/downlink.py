"""A model as it travels down: lossy entries as differences from what the sites have decoded.

The model of record is w, what the sites hold is w'. The packet holds C(w - w'), and both ends make
w' + D(C(w - w')) of it with the same operations, so to the same bits. What was lost in one round is
in the next difference: the error is fed back by construction. Source: Tang et al. 2019,
arXiv:1905.05957 (DoubleSqueeze), with differences to the decoded model in place of gradients.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from openfed.codec.pipeline import Pipeline
from openfed.tensors.frame import Source
from openfed.tensors.record import DTYPES, Signature, Spec
from openfed.tensors.update import accumulator, difference
from openfed.typing import Array, Numbers


def packet_specs(model: Signature, pipeline: Pipeline) -> Signature:
    """What the packet holds: differences of lossy entries, values of the others."""
    return tuple(_travelling(spec, pipeline) for spec in model)


def _travelling(spec: Spec, pipeline: Pipeline) -> Spec:
    lossy = pipeline.chain(spec).lossy
    return replace(spec, dtype=accumulator(spec.dtype).name) if lossy else spec


@dataclass(frozen=True)
class Differences:
    """What goes into the packet, from the `model` of record and the `base` that the sites hold."""

    model: Source
    base: Source
    lossy: Mapping[str, str]  # name -> dtype in the model

    @property
    def specs(self) -> Signature:
        return self.model.specs

    @property
    def numbers(self) -> Numbers:
        return {}

    def read(self, name: str, start: int, out: Array) -> None:
        if name not in self.lossy:
            self.model.read(name, start, out)
            return
        new, old = (np.empty(out.size, DTYPES[self.lossy[name]]) for _ in range(2))
        self.model.read(name, start, new)
        self.base.read(name, start, old)
        out[...] = difference(new, old)


@dataclass(frozen=True)
class Decoded:
    """What the sites make of the packet: `base` + difference for lossy entries."""

    specs: Signature  # the model's
    packet: Source
    base: Source
    lossy: Mapping[str, str]

    @property
    def numbers(self) -> Numbers:
        return {}

    def read(self, name: str, start: int, out: Array) -> None:
        if name not in self.lossy:
            self.packet.read(name, start, out)
            return
        change = np.empty(out.size, accumulator(out.dtype.name))
        self.packet.read(name, start, change)
        self.base.read(name, start, out)
        out[...] = np.add(out.astype(change.dtype, copy=False), change)


def lossy_entries(model: Signature, pipeline: Pipeline) -> Mapping[str, str]:
    """The entries that the pipeline codes with loss: name -> dtype."""
    return {spec.name: spec.dtype for spec in model if pipeline.chain(spec).lossy}
