"""A blob that one thread writes while the event loop sends it."""

import asyncio
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

from openfed.node.bell import Bell
from openfed.transport.base import Blocks
from openfed.wire.messages import BLOCK, ENOUGH

RECENT = 4
"""Blocks that are kept in memory for a reader close behind."""


class Tail:
    """Made on the loop. `begin`, `grown` and `finished` are for the writing thread, `blocks` is
    for the loop; more than one reader may follow."""

    def __init__(self, block: int = BLOCK) -> None:
        self.block = block  # bytes, at most
        self._loop, self._bell = asyncio.get_running_loop(), Bell()
        self._recent: OrderedDict[int, bytes] = OrderedDict()  # by where they begin
        self._size, self._done = 0, False
        self._file: int | None = None

    def begin(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)

    def grown(self, block: bytes) -> None:
        """The next block is in the file."""
        self._loop.call_soon_threadsafe(self._hear, block, False)

    def finished(self) -> None:
        self._loop.call_soon_threadsafe(self._hear, b"", True)

    def _hear(self, block: bytes, done: bool) -> None:
        self._recent[self._size] = block
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        self._size, self._done = self._size + len(block), done
        self._bell.ring()

    async def blocks(self, offset: int) -> Blocks:
        """The blob's bytes from `offset` on, to its end."""
        while offset < ENOUGH:
            if offset < self._size:
                block = self._recent.get(offset) or self._read(offset)
                yield block
                offset += len(block)
            elif self._done:
                return
            else:
                await self._bell.heard()

    def _read(self, offset: int) -> bytes:
        assert self._file is not None
        return os.pread(self._file, min(self.block, self._size - offset), offset)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def joined(pieces: Iterable[bytes | memoryview], most: int) -> Iterator[bytes]:
    """The same bytes in blocks of at most `most`, as long as no piece is larger."""
    parts: list[bytes | memoryview] = []
    size = 0
    for piece in pieces:
        if size + len(piece) > most and parts:
            yield b"".join(parts)
            parts, size = [], 0
        parts.append(piece)
        size += len(piece)
    if parts:
        yield b"".join(parts)
