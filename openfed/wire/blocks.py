"""Blocks of a transfer: plain bytes, in order, `BLOCK` at a time.

They carry nothing of their own: TLS checks every byte on its way, and a transfer is whole only
when its digest is the expected one. Where it begins is agreed before the first block.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from openfed.errors import WireError
from openfed.wire.messages import BLOCK

T = TypeVar("T")

MOST_BLOCK = 4 << 20
"""Bytes of the largest block that a reader takes; writers send at most `BLOCK`."""


async def write_blocks(blocks: AsyncIterator[bytes | memoryview]) -> AsyncGenerator[bytes, None]:
    """Cut to `BLOCK` bytes."""
    async with ending(blocks):
        async for block in blocks:
            if isinstance(block, bytes) and 0 < len(block) <= BLOCK:
                yield block
            else:
                view = memoryview(block).cast("B")
                for begin in range(0, len(view), BLOCK):
                    yield bytes(view[begin : begin + BLOCK])
                del view
            del block  # or it would be held until the next one comes


async def read_blocks(blocks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Raises: WireError W12: an empty block, or one that is too large."""
    async with ending(blocks):
        async for block in blocks:
            if not 0 < len(block) <= MOST_BLOCK:
                raise WireError("W12", f"a block of {len(block)} bytes; expected 1 to {MOST_BLOCK}")
            yield block
            del block


@asynccontextmanager
async def ending(iterator: AsyncIterator[T]) -> AsyncGenerator[AsyncIterator[T], None]:
    """Closes what it iterates now, in this task, and not whenever it is collected."""
    try:
        yield iterator
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()
