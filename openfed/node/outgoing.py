"""What goes down to many sites at about the same time: each block is read once for all of them."""

import asyncio
from collections import OrderedDict

from openfed.store.spool import Spool
from openfed.wire.messages import block_size

KEPT = 8
"""Blocks that are kept: as far as sites that pull at the same time lie apart."""


class Outgoing:
    """Blocks of the spool's blobs, the last of them in memory. For one event loop."""

    def __init__(self, spool: Spool, sites: int) -> None:
        self._spool, self._size = spool, block_size(sites)
        self._kept: OrderedDict[tuple[str, int], asyncio.Future[bytes]] = OrderedDict()

    async def block(self, digest: str, offset: int) -> bytes:
        """The next bytes of a blob, at most a block; none at its end."""
        place = digest, offset
        if place not in self._kept:
            read = asyncio.to_thread(self._spool.block, digest, offset, self._size)
            self._kept[place] = asyncio.ensure_future(read)
        self._kept.move_to_end(place)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        try:
            return await asyncio.shield(self._kept[place])
        except OSError:
            self._kept.pop(place, None)
            raise
