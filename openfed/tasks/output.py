"""What user code prints, up to a limit, on its way to the log."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import F_SETPIPE_SZ, fcntl

PIPE = 1 << 20
"""Bytes a task may print at once while it keeps the pump thread from running."""


class Printed:
    """How many bytes were printed so far; more than `limit` were not all passed on."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0

    @property
    def too_much(self) -> bool:
        return self.bytes > self.limit


@contextmanager
def captured(limit: int) -> Iterator[Printed]:
    """Pass at most `limit` bytes of what is written to descriptors 1 and 2 on to the real 1.

    Whatever writes: Python, native code, child processes. What one of those that outlives the
    block goes on to write is read and passed on under the same limit.
    """
    printed = Printed(limit)
    kept = [os.dup(1), os.dup(2)]
    reading, writing = os.pipe()
    with suppress(OSError):  # more than /proc/sys/fs/pipe-max-size allows
        fcntl(writing, F_SETPIPE_SZ, PIPE)
    target = os.dup(1)
    pump = threading.Thread(target=_pump, args=(reading, target, printed), daemon=True)
    pump.start()
    _flush()
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)
    try:
        yield printed
    finally:
        _flush()
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        pump.join(timeout=1.0)


def _pump(reading: int, target: int, printed: Printed) -> None:
    while block := os.read(reading, 1 << 16):
        room = max(0, printed.limit - printed.bytes)
        printed.bytes += len(block)
        with suppress(OSError):  # nobody listens any more: go on reading, or the task would hang
            if room:
                _write_all(target, block[:room])
            if room and printed.too_much:
                _write_all(target, f"\n[openfed] more than {printed.limit} bytes\n".encode())
    os.close(reading)
    os.close(target)


def _write_all(target: int, block: bytes) -> None:
    while block:
        block = block[os.write(target, block) :]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # user code may have closed or replaced it
            stream.flush()
