"""A `Link` that tells of every sign of life of the other side: an answer, or a block that it gave
or took. A long transfer over a slow line is one sign after the other."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from openfed.transport.base import Blocks, Link, Reporting
from openfed.wire.blocks import ending
from openfed.wire.messages import (
    Hello,
    Next,
    Orders,
    Pull,
    Push,
    Renew,
    Renewed,
    Report,
    Verdict,
    Welcome,
)

A = TypeVar("A")


def hearing(link: Link, heard: Callable[[], None]) -> Link:
    return _Hearing(link, heard)


@dataclass(frozen=True)
class _Hearing:
    link: Link
    heard: Callable[[], None]

    async def hello(self, hello: Hello) -> Welcome:
        return await self._answer(self.link.hello(hello))

    async def next(self, next: Next) -> Orders:
        return await self._answer(self.link.next(next))

    async def report(self, report: Report) -> Verdict:
        return await self._answer(self.link.report(report))

    async def renew(self, renew: Renew) -> Renewed:
        return await self._answer(self.link.renew(renew))

    async def pull(self, pull: Pull) -> Blocks:
        async with ending(self.link.pull(pull)) as blocks:
            async for block in blocks:
                self.heard()
                yield block
                del block  # or it would be held until the next one comes

    async def push(self, push: Push, blocks: Callable[[int], Blocks], report: Reporting) -> Verdict:
        async def taken(offset: int) -> Blocks:
            self.heard()  # it has said from where on
            async with ending(blocks(offset)) as given:
                async for block in given:
                    yield block
                    del block
                    self.heard()

        return await self._answer(self.link.push(push, taken, report))

    async def close(self) -> None:
        await self.link.close()

    async def _answer(self, call: Awaitable[A]) -> A:
        answer = await call
        self.heard()
        return answer
