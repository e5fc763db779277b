"""Work in threads, which can't be stopped: whoever is cancelled waits for it."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await it; where the caller is cancelled, however often, only when it is done."""
    task = asyncio.ensure_future(work)
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.exception()  # nobody else will ask for it
        raise cancelled
    return task.result()


@asynccontextmanager
async def opened(make: Callable[[], AbstractContextManager[T]]) -> AsyncGenerator[T, None]:
    """What `make` opens in a thread; closed also where the caller is cancelled meanwhile."""
    with ExitStack() as stack:
        yield await to_the_end(asyncio.to_thread(lambda: stack.enter_context(make())))
