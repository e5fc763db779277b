"""The two sides of every transport. A transport moves messages and blocks; it decides nothing.

Errors cross it: an `OpenFedError` raised by a `Service` is raised with the same class, code and
message by the `Link` at the other end. What a `Link` raises on its own is a `TransportError`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

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

Blocks = AsyncIterator[bytes | memoryview]
Reporting = Callable[[], Awaitable[Report]]


class Service(Protocol):
    """The aggregator's side. `peer` comes from the certificate, never from a message."""

    async def hello(self, peer: Peer, hello: Hello) -> Welcome: ...
    async def next(self, peer: Peer, next: Next) -> Orders: ...
    def pull(self, peer: Peer, pull: Pull) -> Blocks:
        """Blocks of the blob from `pull.offset` on; refuses one that no open assignment names."""
        ...

    async def push_offset(self, peer: Peer, push: Push) -> int:
        """How many bytes of this upload are here already; `ENOUGH` if no more is wanted."""
        ...

    async def push_blocks(self, peer: Peer, push: Push, offset: int, blocks: Blocks) -> None:
        """Take the blocks from `offset` on; returns once all of them are durable."""
        ...

    async def report(self, peer: Peer, report: Report) -> Verdict: ...
    async def renew(self, peer: Peer, renew: Renew) -> Renewed: ...


class Link(Protocol):
    """The collaborator's side: the only way out of its host."""

    async def hello(self, hello: Hello) -> Welcome: ...
    async def next(self, next: Next) -> Orders: ...
    def pull(self, pull: Pull) -> Blocks: ...
    async def push(self, push: Push, blocks: Callable[[int], Blocks], report: Reporting) -> Verdict:
        """Ask for the offset, send `blocks(offset)`, which is empty for `ENOUGH`, then `report()`,
        which is awaited when the last block has gone."""
        ...

    async def report(self, report: Report) -> Verdict: ...
    async def renew(self, renew: Renew) -> Renewed: ...
    async def close(self) -> None: ...
