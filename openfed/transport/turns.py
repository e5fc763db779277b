"""How many blocks are in memory at once, however many collaborators are transferring."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

MOST = max(4, 2 * (os.cpu_count() or 1))
"""Blocks on their way at once: enough to keep every core busy."""

PATIENCE_S = 0.03
"""A block that takes longer gives its turn to the next one, and goes on without: a peer on a slow
line costs the others at most so much per block."""


class Turns:
    """For one event loop."""

    def __init__(self, most: int = MOST, patience_s: float = PATIENCE_S) -> None:
        self._free, self._patience_s = asyncio.Semaphore(most), patience_s

    @asynccontextmanager
    async def one(self) -> AsyncGenerator[None, None]:
        """Wait for a turn, which lasts as long as the block, or until its time is up."""
        await self._free.acquire()
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self._free.release()

        timer = asyncio.get_running_loop().call_later(self._patience_s, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()
