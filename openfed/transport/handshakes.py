"""Failed handshakes of the server, by cause.

gRPC for Python has no hook for them, and tells neither side why a connection came to nothing. Its C
core prints a line on standard error for each: `heard` puts a pipe in place of descriptor 2, reads,
and passes on what comes.
"""

import os
import queue
import re
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fcntl import F_SETPIPE_SZ, fcntl
from threading import Thread

LINE = re.compile(rb"ssl_transport_security\.cc:\d+\] Handshake failed with error (.*)")
"""As gRPC prints it unless GRPC_VERBOSITY forbids; it does not say who it was."""

CAUSES = (
    ("no certificate", rb"PEER_DID_NOT_RETURN_A_CERTIFICATE"),
    ("expired certificate", rb"certificate has expired"),
    ("certificate not yet valid", rb"certificate is not yet valid"),
    ("certificate of another role", rb"unsupported certificate purpose"),
    ("unknown authority", rb"issuer certificate|self.signed|signature failure"),
    ("TLS before 1.3", rb"NO_SHARED_CIPHER|UNSUPPORTED_PROTOCOL"),
    ("not TLS", rb"WRONG_VERSION_NUMBER|HTTP_REQUEST|HTTPS_PROXY_REQUEST"),
    ("broken off by the peer", rb"_ALERT_|BAD_PACKET_LENGTH"),  # so comes an alert of OpenSSL's
)
"""What to call it, and what BoringSSL calls it; the first that is found counts. Who connects and
says nothing is no handshake: gRPC prints no line for that."""

OTHER = "other"

MOST_LINE = 64 << 10
"""Bytes that are held while their newline has not come."""
READ, KEPT = 8 << 10, 2048
"""Bytes at a time, and how many times while standard error takes nothing; more are dropped."""
PIPE = 1 << 20
"""Bytes that may come while Python is busy."""
PATIENCE_S = 2.0

Todo = queue.Queue[tuple[bytes, list[str]] | None]
"""What to pass on, and then what to tell; None: that was all."""


def cause(line: bytes) -> str | None:
    """Why a handshake failed, if that is what a line of gRPC's says."""
    if (found := LINE.search(line)) is None:
        return None
    return next((name for name, words in CAUSES if re.search(words, found[1])), OTHER)


def telling(count: int) -> bool:
    """Whether the count is one to speak of: 1, 2, 5, 10, 20, 50, 100, ..."""
    while count and count % 10 == 0:
        count //= 10
    return count in (1, 2, 5)


@contextmanager
def heard(saw: Callable[[str], bool], tell: Callable[[str], None]) -> Iterator[None]:
    """Until the block ends, `saw(cause)` is called for every failed handshake, in a thread that
    must not wait. Where it says yes, the line is passed on and `tell(cause)` follows, in another
    thread, that may. Every other line is passed on as it is.

    Only what C code prints goes this way: Python's `sys.stderr` keeps where it wrote to. Nobody
    waits for anybody: what comes while the pipe is full is lost, and so is what a crash leaves in
    it.
    """
    with apart():
        old = _standard_error()
        ours, theirs = os.pipe()
        os.set_blocking(theirs, False)  # who prints may hold the lock that the reader needs
        with suppress(OSError):
            fcntl(theirs, F_SETPIPE_SZ, PIPE)
        todo: Todo = queue.Queue(KEPT)
        reader = Thread(target=_read, args=(ours, saw, todo), daemon=True)
        writer = Thread(target=_pass_on, args=(os.dup(old), tell, todo), daemon=True)
        reader.start()
        writer.start()
        os.dup2(theirs, 2)
        os.close(theirs)
        try:
            yield
        finally:
            os.dup2(old, 2)  # nobody has the other end any more, so both threads end
            os.close(old)
            reader.join(PATIENCE_S)
            writer.join(PATIENCE_S)


@contextmanager
def apart() -> Iterator[None]:
    """Until the block ends, `sys.stderr` writes to a descriptor of its own, to the same place."""
    before = sys.stderr
    try:
        own = os.dup(2) if before.fileno() == 2 else None
    except (AttributeError, OSError, ValueError):  # none, a file in memory, a closed one
        own = None
    if own is None:
        yield
        return
    with open(own, "w", 1, encoding=before.encoding, errors=before.errors) as sys.stderr:
        before.flush()
        try:
            yield
        finally:
            sys.stderr = before


def _standard_error() -> int:
    """A duplicate of descriptor 2; what a process without one prints goes nowhere."""
    try:
        return os.dup(2)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        if null != 2:
            os.dup2(null, 2)
            os.close(null)
        return os.dup(2)


def _read(source: int, saw: Callable[[str], bool], todo: Todo) -> None:
    """Reads and counts, whatever becomes of what was read."""
    held = b""
    with open(source, "rb", 0) as pipe:
        while block := pipe.read(READ):
            *lines, held = (held + block).split(b"\n")
            passed, causes = _sorted_out(lines, saw)
            if len(held) > MOST_LINE:
                passed, held = passed + held, b""
            with suppress(queue.Full):
                todo.put_nowait((passed, causes))
    todo.put((held, []))
    todo.put(None)


def _sorted_out(lines: list[bytes], saw: Callable[[str], bool]) -> tuple[bytes, list[str]]:
    """The lines to pass on, each with its newline, and the causes to tell."""
    passed, causes = [], []
    for line in lines:
        found = cause(line)
        if found is not None and not saw(found):
            continue
        passed.append(line + b"\n")
        if found is not None:
            causes.append(found)
    return b"".join(passed), causes


def _pass_on(target: int, tell: Callable[[str], None], todo: Todo) -> None:
    takes = select.poll()
    takes.register(target, select.POLLOUT)
    with open(target, "wb", 0) as old:
        while (item := todo.get()) is not None:
            passed, causes = item
            with suppress(OSError):  # nobody has the other end any more
                while passed:
                    takes.poll()
                    passed = passed[old.write(passed) or 0 :]
            for each in causes:
                with suppress(OSError):
                    tell(each)
