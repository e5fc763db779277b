"""Work in threads is waited for, and what it opened is closed, whoever is cancelled."""

import asyncio
import threading

import pytest

from openfed.node.threads import opened, to_the_end


class Door:
    def __init__(self, log, gate=None):
        if gate:
            gate.wait(20)
        self.log = log

    def __enter__(self):
        self.log.append("opened")
        return self

    def __exit__(self, *about):
        self.log.append("closed")


async def cancelled_once(work, begun, gate):
    task = asyncio.create_task(work)
    await begun.wait()
    for _ in range(3):  # one who is cancelled again still waits
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_who_is_cancelled_waits_for_the_thread():
    async def main():
        begun, gate, log = asyncio.Event(), threading.Event(), []
        loop = asyncio.get_running_loop()

        def work():
            loop.call_soon_threadsafe(begun.set)
            gate.wait(20)
            log.append("done")

        await cancelled_once(to_the_end(asyncio.to_thread(work)), begun, gate)
        assert log == ["done"]
        assert await to_the_end(asyncio.to_thread(lambda: 7)) == 7

    asyncio.run(main())


def test_what_a_thread_opens_is_closed_also_when_nobody_waits_any_more():
    async def main():
        begun, gate, log = asyncio.Event(), threading.Event(), []
        loop = asyncio.get_running_loop()

        def make():
            loop.call_soon_threadsafe(begun.set)
            return Door(log, gate)

        async def work():
            async with opened(make):
                log.append("used")

        await cancelled_once(work(), begun, gate)
        assert log == ["opened", "closed"]
        await work()
        assert log[2:] == ["opened", "used", "closed"]

    asyncio.run(main())


def test_what_fails_to_open_or_inside_says_so_once():
    def broken():
        raise OSError("no")

    async def main():
        with pytest.raises(OSError, match="no"):
            async with opened(broken):
                raise AssertionError("never here")
        log = []
        with pytest.raises(ValueError):
            async with opened(lambda: Door(log)):
                raise ValueError
        assert log == ["opened", "closed"]

    asyncio.run(main())
