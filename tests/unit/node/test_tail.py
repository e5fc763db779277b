"""A file that is sent while it is written: every reader gets every byte once, in order."""

import asyncio
import threading

import pytest
from blake3 import blake3

from openfed.node.tail import Tail
from openfed.store.spool import Spool
from openfed.wire.messages import BLOCK, ENOUGH

PARTS = [bytes([i]) * (BLOCK // 2 + i) for i in range(10)]
WHOLE = b"".join(PARTS)


class Writer:
    """Writes parts in a thread, one whenever `go` says so."""

    def __init__(self, spool, tail):
        self.spool, self.tail = spool, tail
        self.allowed = threading.Semaphore(0)

    def go(self, parts=10):
        for _ in range(parts):
            self.allowed.release()

    def __call__(self):
        with self.spool.writing() as blob:
            self.tail.begin(blob.path)
            for part in PARTS:
                assert self.allowed.acquire(timeout=20)
                blob.append(part)
                blob.flush()
                self.tail.grown(part)
            self.tail.finished()
            return blob.finish()[0]


@pytest.fixture
def play(tmp_path):
    """Runs `await body(tail, writer, written)`; `written` is the task that writes."""

    def run(body):
        async def main():
            tail = Tail()
            writer = Writer(Spool(tmp_path), tail)
            written = asyncio.create_task(asyncio.to_thread(writer))
            try:
                await asyncio.wait_for(body(tail, writer, written), 20)
            finally:
                writer.go()
                assert await written == blake3(WHOLE).hexdigest()
                tail.close()

        asyncio.run(main())

    return run


async def read(tail, offset=0):
    return [bytes(block) async for block in tail.blocks(offset)]


def test_a_reader_that_comes_first_gets_blocks_as_they_are_written(play):
    async def body(tail, writer, written):
        blocks = tail.blocks(0)
        first = asyncio.create_task(anext(blocks))
        await asyncio.sleep(0)
        assert not first.done()
        writer.go(1)
        assert await first == PARTS[0]
        assert not written.done()
        writer.go()
        rest = [block async for block in blocks]
        assert b"".join(rest) == b"".join(PARTS[1:])
        assert max(map(len, rest)) <= BLOCK

    play(body)


def test_a_reader_that_comes_last_gets_everything(play):
    async def body(tail, writer, written):
        writer.go()
        await written
        assert b"".join(await read(tail)) == WHOLE

    play(body)


@pytest.mark.parametrize(
    "offset", [1, BLOCK // 2, BLOCK - 1, BLOCK, 2 * BLOCK + 12345, len(WHOLE) - 1, len(WHOLE)]
)
def test_a_reader_begins_anywhere(play, offset):
    async def body(tail, writer, written):
        reading = asyncio.create_task(read(tail, offset))
        writer.go()
        assert b"".join(await reading) == WHOLE[offset:]

    play(body)


def test_two_readers_get_the_same_bytes(play):
    async def body(tail, writer, written):
        one, two = (asyncio.create_task(read(tail, offset)) for offset in (0, BLOCK // 2))
        for _ in PARTS:
            writer.go(1)
            await asyncio.sleep(0)
        assert b"".join(await one) == WHOLE
        assert b"".join(await two) == WHOLE[BLOCK // 2 :]

    play(body)


def test_a_reader_that_is_given_up_leaves_the_others_alone(play):
    async def body(tail, writer, written):
        given_up = asyncio.create_task(read(tail))
        other = asyncio.create_task(read(tail))
        writer.go(5)
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        writer.go()
        assert b"".join(await other) == WHOLE

    play(body)


def test_nothing_is_sent_to_whom_it_is_enough(play):
    async def body(tail, writer, written):
        assert await read(tail, ENOUGH) == []  # at once, however little is written

    play(body)


def test_closing_what_never_began_is_nothing():
    async def main():
        tail = Tail()
        tail.close()
        tail.close()

    asyncio.run(main())
