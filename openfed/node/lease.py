"""How long an agent goes on with a task without hearing from its aggregator."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from openfed.node.bell import Bell

LEAST_S = 1.0
"""No lease is shorter, whatever an aggregator says."""


class Lease:
    """For one event loop. `clock` in seconds, never set back; `sleep` waits for some of them."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.seconds = float("inf")  # until the aggregator has said
        self._clock, self._sleep = clock, sleep
        self._at, self._bell = clock(), Bell()

    def grant(self, seconds: float) -> None:
        self.seconds = max(seconds, LEAST_S)

    def heard(self) -> None:
        """The aggregator has given a sign of life."""
        self._at = self._clock()
        self._bell.ring()

    async def over(self) -> None:
        """Returns when nothing has been heard for so long."""
        while (left := self._at + self.seconds - self._clock()) > 0:
            await self._sleep(left)

    async def renewed(self) -> None:
        """Returns when something is heard."""
        await self._bell.heard()
