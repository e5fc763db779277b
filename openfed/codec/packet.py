"""The packet: a record as it travels, coded chunk by chunk.

    0   8 bytes   b"openfed" 0x02
    8   8 bytes   length of the header, unsigned, little-endian
    16  header    canonical JSON: {"base": digest or "", "chains": [chain, ...], "numbers": {name:
                  [float, ...]}, "seed": integer, "tensors": [[name, dtype, [extent, ...], index
                  into chains], ...]}, a chain being [[name, version, settings], ...]
        body      for each tensor in header order, for each chunk of 65,536 of its elements:
                  length of the coded chunk (4 bytes, little-endian) and its bytes

A packet says how it was coded, stage by stage with versions, so that its bytes and the plan's
allow-list are all that decoding takes. What differs from another record names it: `base` is the
digest of that record. A reader knows every size before it allocates anything.
"""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from openfed.codec.base import Draw
from openfed.codec.chain import Chain, read_chain
from openfed.errors import WireError
from openfed.parse import DIGEST, strict_json
from openfed.tensors.frame import CHUNK, MAX_HEADER, Source, chunks, read_spec, read_vector
from openfed.tensors.record import DTYPES, FLOATING, Signature, Spec
from openfed.typing import Array, Numbers

MAGIC: Final = b"openfed\x02"
PREFIX: Final = 4
"""Bytes that say how long a coded chunk is."""


@dataclass(frozen=True)
class Head:
    """What a packet says of itself. `chains`: one for each of `specs`. `seed`: of its public
    randomness."""

    specs: Signature
    chains: tuple[Chain, ...]
    numbers: Numbers
    base: str = ""
    seed: int = 0

    def encode(self, entry: int, start: int, values: Array) -> bytes | memoryview:
        """The bytes of one chunk: `values` from element `start` of an entry on."""
        return self.chains[entry].encode(values, self.draw(entry, start))

    def decode(self, entry: int, start: int, data: Any, out: Array) -> None:
        """Fill `out` from the bytes of a chunk. Raises: WireError W2x: they are damaged."""
        self.chains[entry].decode(data, out, self.draw(entry, start))

    def draw(self, entry: int, start: int) -> Draw:
        return Draw(self.seed, entry, start // CHUNK)


def head_bytes(head: Head) -> bytes:
    """Everything before the body."""
    named = [json.dumps(chain.json(), sort_keys=True) for chain in head.chains]
    place = {chain: index for index, chain in enumerate(dict.fromkeys(named))}
    text = json.dumps(
        {
            "base": head.base,
            "chains": [json.loads(chain) for chain in place],
            "numbers": {name: [float(x) for x in xs] for name, xs in head.numbers.items()},
            "seed": head.seed,
            "tensors": [
                [spec.name, spec.dtype, list(spec.shape), place[chain]]
                for spec, chain in zip(head.specs, named, strict=True)
            ],
        },
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    ).encode()
    return MAGIC + len(text).to_bytes(8, "little") + text


Lost = Callable[[int, int, Array, bytes | memoryview], None]
"""Is told of every chunk: entry, first element, the values, and what they were coded to."""


def packet_blocks(
    head: Head, source: Source, lost: Lost | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of a packet of the source's entries, a chunk of 65,536 elements at a time."""
    yield head_bytes(head)
    for entry, spec in enumerate(head.specs):
        for start, count in chunks(spec):
            values = np.empty(count, DTYPES[spec.dtype])
            source.read(spec.name, start, values)
            data = head.encode(entry, start, values)
            if lost is not None:
                lost(entry, start, values, data)
            yield len(data).to_bytes(PREFIX, "little")
            yield data


def header_length(first: bytes) -> int:
    """Bytes of the header that follows the first 16; raises WireError W01 or W02."""
    if len(first) < 16 or first[:8] != MAGIC:
        raise WireError("W01", "expected an openfed packet (version 2), got other bytes")
    length = int.from_bytes(first[8:16], "little")
    if length > MAX_HEADER:
        raise WireError("W02", f"a packet header of {length} bytes is not allowed")
    return length


def read_head(header: bytes, allowed: Collection[Chain]) -> Head:
    """What `head_bytes` wrote after its first 16 bytes, if it is coded in allowed chains.

    Raises: WireError: W02 a header that is not allowed, W22 a chain that is not.
    """
    try:
        found = strict_json(header)
        base, seed, tensors = found["base"], found["seed"], found["tensors"]
        distinct = {json.dumps(chain.json(), sort_keys=True): chain for chain in allowed}.values()
        if len(found["chains"]) > len(distinct):
            raise WireError("W22", f"{len(found['chains'])} codec chains; the plan has fewer")
        listed = [read_chain(chain, distinct) for chain in found["chains"]]
        specs = tuple(read_spec(entry[:3]) for entry in tensors)
        chains = tuple(_chosen(listed, entry) for entry in tensors)
        numbers = {str(name): read_vector(xs) for name, xs in found["numbers"].items()}
        if len(found) != 5 or type(seed) is not int or not 0 <= seed < 2**63:
            raise ValueError("bad seed or unknown keys")
        if not isinstance(base, str) or (base and not DIGEST.fullmatch(base)):
            raise ValueError("base is not a digest")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise WireError("W02", f"unreadable packet header: {str(error)[:200]}") from error
    for before, after in pairwise(specs):
        if before.name >= after.name:
            raise WireError("W02", f"packet entries out of order: {before.name!r}, {after.name!r}")
    for spec, chain in zip(specs, chains, strict=True):
        if chain.lossy and spec.dtype not in FLOATING:
            raise WireError("W22", f"{spec.name!r}: {spec.dtype} in codecs that are for floats")
    return Head(specs, chains, numbers, base, seed)


def _chosen(chains: list[Chain], entry: list[Any]) -> Chain:
    _, _, _, index = entry
    if type(index) is not int or not 0 <= index < len(chains):
        raise ValueError("no such chain")
    return chains[index]


def most_bytes(specs: Signature, chains: Sequence[Chain]) -> int:
    """Most bytes that the body of a packet of these entries can have."""
    return sum(_most(spec, chain) for spec, chain in zip(specs, chains, strict=True))


def packet_limit(specs: Signature, chains: Sequence[Chain]) -> int:
    """Most bytes of a packet of these entries, and of some numbers, that anyone need take."""
    names = sum(len(spec.name) * 6 + 256 for spec in specs)
    return most_bytes(specs, chains) + names + (4 << 20)


def _most(spec: Spec, chain: Chain) -> int:
    whole, rest = divmod(spec.count, CHUNK)
    most = whole * (PREFIX + chain.most(CHUNK, spec.dtype)) if whole else 0
    return most + (PREFIX + chain.most(rest, spec.dtype) if rest else 0)


def check_chains(head: Head, chain: Callable[[Spec], Chain]) -> None:
    """Raises: WireError W22: an entry is coded in another chain than the plan gives it."""
    for spec, found in zip(head.specs, head.chains, strict=True):
        if found.json() != chain(spec).json():
            raise WireError("W22", f"{spec.name}: is not coded as the plan says")
