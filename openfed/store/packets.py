"""Packets on disk, read chunk by chunk: nothing is mapped, nothing is assumed."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openfed.codec.chain import Chain
from openfed.codec.packet import PREFIX, Head, header_length, most_bytes, read_head
from openfed.errors import WireError
from openfed.tensors.frame import CHUNK, check_bool, chunks, fill
from openfed.tensors.record import Signature
from openfed.typing import Numbers

ENDS = "the packet ends inside an entry"

Places = np.ndarray[Any, Any]
"""Where an entry's chunks lie: int64 [chunks, 2], offset in the file and bytes."""


@dataclass(frozen=True)
class PacketFile:
    """An open packet as a `Source`; `read` gives the decoded elements.

    Safe against a file that shrinks or changes while it is read: that is a `WireError`.
    """

    descriptor: int
    head: Head
    size: int
    places: Mapping[str, tuple[int, Places]]  # name -> index of the entry, where its chunks lie

    @property
    def specs(self) -> Signature:
        return self.head.specs

    @property
    def numbers(self) -> Numbers:
        return self.head.numbers

    def read(self, name: str, start: int, out: np.ndarray[Any, Any]) -> None:
        """Raises: WireError: W01 the file ends, W02 no booleans, W2x damaged codes."""
        entry, places = self.places[name]
        at, length = (int(x) for x in places[start // CHUNK])
        if self.head.chains[entry].header:
            data = np.empty(length, np.uint8)
            fill(self.descriptor, at, data, ENDS)
            self.head.decode(entry, start, data.data, out)
        else:
            fill(self.descriptor, at, out, ENDS)
            check_bool(name, out)

    def close(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> "PacketFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_packet(path: Path, *, limit: int, allowed: Collection[Chain]) -> PacketFile:
    """Open a packet file (never through a link), and check its header and every size in it.

    Raises: WireError: W01, W02, W2x not exactly one packet with allowed codecs; W03 above `limit`
    bytes, or its entries could be. OSError: the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise WireError("W03", f"a packet of {size} bytes, but at most {limit} are allowed")
        first = os.pread(descriptor, 16, 0)
        length = header_length(first)
        head = read_head(os.pread(descriptor, length, 16), allowed)
        most = 16 + length + most_bytes(head.specs, head.chains)
        if most > limit:  # so it has no more chunks than an honest one
            raise WireError("W03", f"a packet of up to {most} bytes, but at most {limit} allowed")
        if size > most:
            raise WireError("W01", f"a packet of {size} bytes, but its entries take less")
        return PacketFile(descriptor, head, size, _places(descriptor, head, 16 + length, size))
    except BaseException:
        os.close(descriptor)
        raise


def _places(descriptor: int, head: Head, at: int, size: int) -> Mapping[str, tuple[int, Places]]:
    places: dict[str, tuple[int, Places]] = {}
    for entry, (spec, chain) in enumerate(zip(head.specs, head.chains, strict=True)):
        found = []
        for _, count in chunks(spec):
            length = int.from_bytes(os.pread(descriptor, PREFIX, at), "little")
            if length > chain.most(count, spec.dtype) or at + PREFIX + length > size:
                raise WireError("W01", f"the packet's entry {spec.name!r} goes beyond its end")
            if not chain.header and length != count * spec.size // spec.count:
                raise WireError("W01", f"the packet's entry {spec.name!r} is of another size")
            found.append((at + PREFIX, length))
            at += PREFIX + length
        places[spec.name] = entry, np.array(found, np.int64).reshape(-1, 2)
    if at != size:
        raise WireError("W01", f"expected a packet of {at} bytes, got {size}")
    return places
