"""In which forms a model is offered to the sites: stored and coded once for all of them."""

from collections.abc import Mapping
from contextlib import ExitStack

from openfed.codec.downlink import Decoded, Differences, lossy_entries, packet_specs
from openfed.codec.packet import Head, packet_blocks
from openfed.codec.pipeline import Pipeline
from openfed.store.spool import WHOLE, Spool
from openfed.tensors.frame import Held, Source, blocks, source_blocks
from openfed.tensors.record import Record, Signature
from openfed.typing import Tensors
from openfed.wire.messages import Blob, Payload


class Offers:
    """Blobs of what goes down. `decoded` is the digest of the model that the sites have now, where
    that is not the model of record: the base of the next differences. Part of a turn's state."""

    def __init__(self, spool: Spool, moving: Signature, pipeline: Pipeline) -> None:
        self.decoded = ""
        self._spool, self._specs, self._pipeline = spool, moving, pipeline
        self._lossy = lossy_entries(moving, pipeline)
        self._stored: dict[str, tuple[Tensors, str, int]] = {}
        self._offered: tuple[Tensors, Payload] | None = None

    @property
    def lossy(self) -> bool:
        """Whether the sites work on something else than the model of record."""
        return bool(self._lossy)

    def store(self, name: str, tensors: Tensors) -> tuple[str, int]:
        """Digest and size of the frame; hashed once as long as it stays the same object."""
        kept = self._stored.get(name)
        if kept is None or kept[0] is not tensors:
            kept = self._stored[name] = (tensors, *self._spool.put(blocks(Record(tensors))))
        return kept[1:]

    def kept(self, name: str, tensors: Tensors, digest: str, size: int) -> None:
        """These are the tensors of that frame."""
        self._stored[name] = tensors, digest, size

    def exact(self, name: str, tensors: Tensors) -> Payload:
        """The frame itself."""
        digest, size = self.store(name, tensors)
        return Payload(name, digest, size, (Blob(digest, size),))

    def model(self, model: Tensors, seed: int) -> Payload:
        """The model as the plan's downlink codes it; again the same for the same object."""
        if self._offered is None or self._offered[0] is not model:
            self._offered = model, self._coded(model, seed)
        return self._offered[1]

    def _coded(self, model: Tensors, seed: int) -> Payload:
        if not any(chain.header for chain in self._pipeline.chains(self._specs)):
            return self.exact("model", model)
        if self._lossy and not self.decoded:  # nothing to add to: the first is whole and exact
            payload = self.exact("model", model)
            self.decoded = payload.digest
            return payload
        return self._differences(model, seed) if self._lossy else self._packed(model, seed)

    def _packed(self, model: Tensors, seed: int) -> Payload:
        digest, size = self.store("model", model)
        packet = self._packet(Held(Record(model)), self._specs, "", seed)
        return Payload("model", digest, size, (packet,))

    def _differences(self, model: Tensors, seed: int) -> Payload:
        with ExitStack() as stack:
            base = stack.enter_context(self._spool.open(self.decoded, limit=WHOLE))
            changes = Differences(Held(Record(model)), base, self._lossy)
            specs = packet_specs(self._specs, self._pipeline)
            blob = self._packet(changes, specs, self.decoded, seed)
            chains = self._pipeline.chains(self._specs)
            packet = self._spool.packet(blob.digest, limit=WHOLE, allowed=chains)
            stack.enter_context(packet)
            decoded = Decoded(self._specs, packet, base, self._lossy)
            self.decoded, size = self._spool.put(source_blocks(decoded))
        return Payload("model", self.decoded, size, (blob, Blob(self.decoded, size)))

    def _packet(self, source: Source, specs: Signature, base: str, seed: int) -> Blob:
        head = Head(specs, self._pipeline.chains(self._specs), {}, base, seed)
        return Blob(*self._spool.put(packet_blocks(head, source)), base)


def frames(state: Mapping[str, Mapping[str, object]]) -> set[str]:
    """The blobs of an encoded state."""
    return {str(value["frame"]) for value in state.values() if "frame" in value}
