"""One direction of a plan's compression: which chain each entry of a model gets."""

from collections.abc import Sequence
from dataclasses import dataclass

from openfed.codec.chain import Chain, make_chain
from openfed.plan.schema import Direction
from openfed.plan.values import Choice
from openfed.tensors.record import FLOATING, Kind, Signature, Spec


@dataclass(frozen=True)
class Pipeline:
    """The plan's word on one direction, as chains.

    `down`: differences to what the sites hold are coded, so what one packet loses is in the next:
    like error feedback, that needs each codec's biased form, which is a contraction.
    """

    direction: Direction
    down: bool = False

    @property
    def feedback(self) -> bool:
        return self.direction.feedback

    def chain(self, spec: Spec) -> Chain:
        """The chain of one entry; what is no floating parameter keeps its exact part only."""
        chain = _chain(self.direction.chain(spec.name), self.feedback or self.down)
        parameter = spec.kind is Kind.PARAMETER and spec.dtype in FLOATING
        return chain if parameter else chain.exact()

    def chains(self, specs: Signature) -> tuple[Chain, ...]:
        return tuple(self.chain(spec) for spec in specs)


def _chain(codecs: Sequence[Choice], biased: bool) -> Chain:
    return make_chain([(choice.name, choice.settings) for choice in codecs], biased=biased)
