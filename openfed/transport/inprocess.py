"""Both sides in one process, for simulations and tests.

Messages and blocks pass through the same bytes and checks as on a network, so what works here
works there. Who the peer is, is said by whoever builds the link: there is no certificate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from openfed.transport.base import Blocks, Reporting, Service
from openfed.wire.blocks import ending, read_blocks, write_blocks
from openfed.wire.convert import decode, decode_offset, encode, encode_offset
from openfed.wire.messages import (
    Hello,
    Next,
    Orders,
    Peer,
    Pull,
    Push,
    Renew,
    Renewed,
    Report,
    Verdict,
    Welcome,
)

M = TypeVar("M")


@dataclass(frozen=True)
class InProcess:
    """A `Link` to a service in the same event loop."""

    service: Service
    peer: Peer

    async def hello(self, hello: Hello) -> Welcome:
        return _passed(await self.service.hello(self.peer, _passed(hello)))

    async def next(self, next: Next) -> Orders:
        return _passed(await self.service.next(self.peer, _passed(next)))

    async def pull(self, pull: Pull) -> Blocks:
        blocks = self.service.pull(self.peer, _passed(pull))
        async with ending(read_blocks(write_blocks(blocks))) as bodies:
            async for body in bodies:
                yield body

    async def push(self, push: Push, blocks: Callable[[int], Blocks], report: Reporting) -> Verdict:
        push = _passed(push)
        found = await self.service.push_offset(self.peer, push)
        offset = decode_offset(encode_offset(found))
        async with ending(read_blocks(write_blocks(blocks(offset)))) as bodies:
            await self.service.push_blocks(self.peer, push, offset, bodies)
        return await self.report(await report())

    async def report(self, report: Report) -> Verdict:
        return _passed(await self.service.report(self.peer, _passed(report)))

    async def renew(self, renew: Renew) -> Renewed:
        return _passed(await self.service.renew(self.peer, _passed(renew)))

    async def close(self) -> None:
        pass


def _passed(message: M) -> M:
    return decode(type(message), encode(message))
