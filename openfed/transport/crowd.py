"""How many connections an aggregator takes, and what it says when there are no more.

gRPC turns away who comes beyond that, before a handshake and without a word. Without a limit,
connections take every file descriptor, also those that the journal and the spool need.
"""

import asyncio
import os
import resource
import time
from collections.abc import Callable

from openfed.errors import TransportError

MOST = 8192
"""Connections, however many descriptors there are: a silent one takes some 10 kB of memory."""
LOOK_S, AGAIN_S = 1.0, 60.0


def most_connections() -> int:
    """Half of the descriptors that this process has: the other half is for files, of which each
    site has a few."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(1, min(MOST, soft // 2))


async def tell_when_full(most: int, told: Callable[[TransportError], None]) -> None:
    """Look every `LOOK_S`; tell at once, and every `AGAIN_S` while it lasts."""
    last = float("-inf")
    while True:
        await asyncio.sleep(LOOK_S)
        if time.monotonic() - last >= AGAIN_S and await asyncio.to_thread(sockets, most) >= most:
            last = time.monotonic()
            told(TransportError("T19", f"{most} connections: nobody else gets in until some end"))


def sockets(fewest: int) -> int:
    """How many sockets this process has open; 0 where there are fewer descriptors than `fewest`,
    or nobody can tell."""
    try:
        found = os.listdir("/proc/self/fd")
    except OSError:  # not a Linux, or no descriptor left to look with
        return 0
    return sum(_is_socket(each) for each in found) if len(found) >= fewest else 0


def _is_socket(descriptor: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    except OSError:  # closed meanwhile
        return False
