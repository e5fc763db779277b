"""Turns: a bound on the blocks in memory that a slow peer cannot turn into a queue."""

import asyncio

from openfed.transport.turns import Turns


def test_no_more_blocks_are_on_their_way_than_there_are_turns():
    async def main():
        turns, now, most = Turns(3, patience_s=60), 0, 0

        async def block():
            nonlocal now, most
            async with turns.one():
                now += 1
                most = max(most, now)
                for _ in range(5):
                    await asyncio.sleep(0)
                now -= 1

        await asyncio.gather(*(block() for _ in range(20)))
        return most

    assert asyncio.run(main()) == 3


def test_peers_that_have_stopped_give_their_turns_to_others():
    async def main():
        turns, stuck = Turns(2, patience_s=0.01), asyncio.Event()

        async def stopped():
            async with turns.one():
                await stuck.wait()

        waiting = [asyncio.create_task(stopped()) for _ in range(6)]
        async with asyncio.timeout(10):
            async with turns.one():
                pass
        stuck.set()
        await asyncio.gather(*waiting)
        async with asyncio.timeout(10):  # each turn was given back once, not twice
            async with turns.one(), turns.one():
                assert turns._free.locked()

    asyncio.run(main())


def test_a_block_that_fails_gives_its_turn_back():
    async def main():
        turns = Turns(1, patience_s=60)
        for _ in range(3):
            try:
                async with turns.one():
                    raise ConnectionError
            except ConnectionError:
                pass
        async with asyncio.timeout(10), turns.one():
            pass

    asyncio.run(main())
