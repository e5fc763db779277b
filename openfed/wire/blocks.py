"""Blocks of a transfer: 8 bytes offset, 4 bytes CRC-32 (little-endian), then the bytes."""

import struct
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from openfed.errors import WireError
from openfed.wire.messages import BLOCK

T = TypeVar("T")

HEADER = struct.Struct("<QI")
MOST_BLOCK = 4 << 20
"""Bytes of the largest block that a reader takes; writers send at most `BLOCK`."""


def write_block(offset: int, body: bytes | memoryview) -> bytes:
    return b"".join((HEADER.pack(offset, zlib.crc32(body)), body))


def read_block(block: bytes, offset: int, size: int | None) -> memoryview:
    """The bytes of the block that begins at `offset` of a blob of `size` bytes. Raises W12."""
    if not HEADER.size < len(block) <= HEADER.size + MOST_BLOCK:
        raise WireError("W12", f"a block of {len(block) - HEADER.size} bytes; 1 to {MOST_BLOCK}")
    begins, checksum = HEADER.unpack_from(block)
    body = memoryview(block)[HEADER.size :]
    if begins != offset:
        raise WireError("W12", f"expected the block at {offset}, found the one at {begins}")
    if size is not None and offset + len(body) > size:
        raise WireError("W12", f"block at {offset}: goes beyond the {size} bytes announced")
    if zlib.crc32(body) != checksum:
        raise WireError("W12", f"block at {offset}: damaged on the way")
    return body


async def write_blocks(
    blocks: AsyncIterator[bytes | memoryview], offset: int
) -> AsyncGenerator[bytes, None]:
    """Cut to `BLOCK` bytes and framed, the first at `offset`."""
    async with ending(blocks):
        async for block in blocks:
            view = memoryview(block).cast("B")
            for begin in range(0, len(view), BLOCK):
                body = view[begin : begin + BLOCK]
                yield write_block(offset, body)
                offset += len(body)


async def read_blocks(
    framed: AsyncIterator[bytes], offset: int, size: int | None = None
) -> AsyncGenerator[memoryview, None]:
    """The bytes of blocks that begin at `offset`. With a size: raises W13 if they end before it."""
    async with ending(framed):
        async for block in framed:
            body = read_block(block, offset, size)
            offset += len(body)
            yield body
    if size is not None and offset != size:
        raise WireError("W13", f"the transfer ended after {offset} of {size} bytes")


@asynccontextmanager
async def ending(iterator: AsyncIterator[T]) -> AsyncGenerator[AsyncIterator[T], None]:
    """Closes what it iterates now, in this task, and not whenever it is collected."""
    try:
        yield iterator
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()
