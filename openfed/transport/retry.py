"""A `Link` that tries again: only transient faults, with backoff and jitter, until a deadline."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from random import SystemRandom
from typing import TypeVar

from openfed.errors import TransportError
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

M = TypeVar("M", Hello, Next, Pull, Push, Report, Renew)
A = TypeVar("A")

_random = SystemRandom().random


@dataclass(frozen=True)
class Policy:
    first_s: float = 0.2  # the first pause; each next one is twice as long
    most_s: float = 10.0  # the longest pause
    deadline_s: float = 600.0  # of failing without any progress


def retrying(
    link: Link,
    policy: Policy,
    *,
    random: Callable[[], float] = _random,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
    told: Callable[[TransportError], None] = lambda fault: None,
) -> Link:
    """The same link; each attempt says in its stamp which one it is.

    Permanent faults, and every error that is not a `TransportError`, are raised at once. After
    `deadline_s` of failing, the last fault is raised. `told` hears of each that is waited out.
    """
    return _Retrying(link, policy, random, sleep, clock, told)


@dataclass(frozen=True)
class _Retrying:
    link: Link
    policy: Policy
    random: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    clock: Callable[[], float]
    told: Callable[[TransportError], None]

    async def hello(self, hello: Hello) -> Welcome:
        return await self._until_done(self.link.hello, hello)

    async def next(self, next: Next) -> Orders:
        return await self._until_done(self.link.next, next)

    async def push(self, push: Push, blocks: Callable[[int], Blocks], report: Reporting) -> Verdict:
        return await self._until_done(lambda push: self.link.push(push, blocks, report), push)

    async def report(self, report: Report) -> Verdict:
        return await self._until_done(self.link.report, report)

    async def renew(self, renew: Renew) -> Renewed:
        return await self._until_done(self.link.renew, renew)

    async def pull(self, pull: Pull) -> Blocks:
        pauses = _Pauses(self)
        while True:
            try:
                async with ending(self.link.pull(pull)) as blocks:
                    async for block in blocks:
                        pull = replace(pull, offset=pull.offset + len(block))
                        pauses = _Pauses(self)
                        yield block
                return
            except TransportError as fault:
                await pauses.after(fault)
            pull = _next_attempt(pull)

    async def close(self) -> None:
        await self.link.close()

    async def _until_done(self, call: Callable[[M], Awaitable[A]], message: M) -> A:
        pauses = _Pauses(self)
        while True:
            try:
                return await call(message)
            except TransportError as fault:
                await pauses.after(fault)
            message = _next_attempt(message)


class _Pauses:
    """The pauses of one stretch of failing."""

    def __init__(self, owner: _Retrying) -> None:
        self.owner = owner
        self.pause = owner.policy.first_s
        self.began: float | None = None

    async def after(self, fault: TransportError) -> None:
        owner = self.owner
        now = owner.clock()
        self.began = now if self.began is None else self.began
        if fault.permanent or now - self.began + self.pause > owner.policy.deadline_s:
            raise fault
        owner.told(fault)
        await owner.sleep(self.pause * (0.5 + owner.random() / 2))
        self.pause = min(2 * self.pause, owner.policy.most_s)


def _next_attempt(message: M) -> M:
    stamp = message.stamp
    return replace(message, stamp=replace(stamp, attempt=stamp.attempt + 1))
