"""How a process of openfed ends: at SIGTERM, at Ctrl-C, or when its launcher is gone."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

END_S = 30.0
"""How long a process without a launcher may take to end in order; then it ends as it is: what
counts is on disk."""


def run_until_stopped(work: Callable[[asyncio.Event], Coroutine[Any, Any, T]]) -> T:
    """Run `work(stop)`; SIGTERM and SIGINT set `stop`."""

    async def main() -> T:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        return await work(stop)

    return asyncio.run(main())


def watch_lifeline() -> None:
    """Stop like at SIGTERM when the launcher closes our standard input, or dies; `END_S` later at
    the latest, whatever this process is in the middle of."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(END_S)
        os.write(2, b"openfed: the launcher is gone, and this process did not end by itself\n")
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
