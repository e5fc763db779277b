"""From what a task answered to the packet that is sent: the only way for tensors out of a site.

One pass, chunk by chunk: read, subtract the base, add what earlier packets lost, check, filter as
the site says, code, hash, write. So memory does not grow with the model, and sending begins with
the first chunk.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from openfed.codec.packet import Head, packet_blocks
from openfed.errors import TaskError, WireError
from openfed.failpoints import failpoint
from openfed.node.tail import Tail, joined
from openfed.store.spool import Spool, Writing
from openfed.tensors.check import check_finite
from openfed.tensors.frame import Source, head, padding
from openfed.tensors.record import DTYPES, Signature, Spec
from openfed.tensors.update import difference
from openfed.typing import Array, Numbers


@dataclass(frozen=True)
class Update:
    """`trained - base + residual`, as a `Source`; `specs` describe it, `model` the trained
    entries. Without a base they leave as they are: sums are no differences.

    Raises (from `read`): TaskError K23: an entry is not finite.
    """

    specs: Signature
    model: Mapping[str, Spec]
    trained: Source
    base: Source | None = None
    residual: Source | None = None
    left: frozenset[str] = field(default_factory=frozenset)  # names of the residual's entries

    @property
    def numbers(self) -> Numbers:
        return {}

    def read(self, name: str, start: int, out: Array) -> None:
        new = np.empty(out.size, DTYPES[self.model[name].dtype])
        old = np.zeros_like(new)
        try:
            self.trained.read(name, start, new)
            if self.base is not None:
                self.base.read(name, start, old)
        except WireError as error:  # the task can reach both files
            raise TaskError("K28", f"{name}: {error.message}") from error
        check_finite(name, new)
        out[...] = difference(new, old)
        if name in self.left and self.residual is not None:
            rest = np.empty_like(out)
            self.residual.read(name, start, rest)
            out += rest
        check_finite(name, out)


def lossy_specs(packet: Head) -> Signature:
    """The entries of a packet that lose something: those of the residual."""
    pairs = zip(packet.specs, packet.chains, strict=True)
    return tuple(spec for spec, chain in pairs if chain.lossy)


@dataclass
class _Residue:
    """Writes, chunk by chunk, what the packet lost: `values - decoded`."""

    packet: Head
    into: Writing
    specs: Signature

    def begin(self) -> None:
        self.into.append(head(self.specs, {}))

    def __call__(self, entry: int, start: int, values: Array, data: bytes | memoryview) -> None:
        spec = self.packet.specs[entry]
        if not self.packet.chains[entry].lossy:
            return
        decoded = np.empty_like(values)
        self.packet.decode(entry, start, data, decoded)
        np.subtract(values, decoded, out=decoded)
        self.into.append(decoded.view(np.uint8).data)
        if start + values.size == spec.count:
            self.into.append(padding(self.specs, self.specs.index(spec)))


def encode_reply(
    spool: Spool, packet: Head, update: Source, tail: Tail, *, feedback: bool
) -> tuple[str, int, str | None]:
    """Write the packet (and the new residual) into the spool; `tail` hears how far it is.

    Returns: digest and size of the packet, both durable, and digest of the residual's frame.
    Raises: TaskError K23: an entry is not finite; K28 what the task wrote can't be read.
    """
    with ExitStack() as stack:
        blob = stack.enter_context(spool.writing())
        lost = None
        if feedback:
            into = stack.enter_context(spool.writing())
            lost = _Residue(packet, into, lossy_specs(packet))
            lost.begin()
        tail.begin(blob.path)
        try:
            for block in joined(packet_blocks(packet, update, lost), tail.block):
                blob.append(block)
                blob.flush()
                failpoint("spool.flushed")
                tail.grown(block)
        except ValueError as error:  # a codec that can't take a value
            raise TaskError("K23", str(error)) from None
        tail.finished()
        digest, size = blob.finish()
        return digest, size, lost.into.finish()[0] if lost else None
