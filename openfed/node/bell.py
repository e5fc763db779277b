"""Waking those who wait: they look up for themselves what has changed."""

import asyncio


class Bell:
    """For one event loop. Between looking and waiting there must be no `await`."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake everyone who waits now."""
        self._event.set()
        self._event = asyncio.Event()

    async def heard(self, within_s: float | None = None) -> None:
        """Wait for the next ring, at most `within_s`."""
        try:
            await asyncio.wait_for(self._event.wait(), within_s)
        except TimeoutError:
            return
