"""The door to a site's files: regular files, of bounded size. Messages hold no file's name."""

import gzip
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np

from openfed.data.column import Column
from openfed.errors import TaskError
from openfed.typing import Array

LIMIT = 4 << 30
"""Bytes: of a file, and of what becomes of it in memory."""

SHOWN = 10
"""Positions that a message names at most."""


def refused(code: str, what: str, message: str) -> TaskError:
    """`what`: the format and, where there is one, the place: "csv file, line 7"."""
    return TaskError(code, f"{what}: {message}")


@contextmanager
def opened(path: str | Path, what: str, limit: int = LIMIT) -> Iterator[BinaryIO]:
    """A regular file of at most `limit` bytes; a pipe or a device is not waited for.

    Raises: TaskError: K41, it cannot be opened or read, or is larger.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (ValueError, TypeError):
        raise refused("K41", what, "expected a path") from None
    except OSError as error:
        raise refused("K41", what, f"cannot be opened: {error.strerror}") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise refused("K41", what, "is not a regular file")
        check_size(found.st_size, what, limit)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    except OSError as error:
        raise refused("K41", what, f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


@contextmanager
def unzipped(raw: BinaryIO, what: str) -> Iterator[IO[bytes]]:
    """The content of a file at its beginning, plain or gzipped. How much of it is read, and so how
    large it may become, is the reader's affair.

    Raises: TaskError: K42, while it is read: the compression is damaged.
    """
    zipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    try:
        yield cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if zipped else raw
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise refused("K42", what, "its gzip compression is damaged") from None


def check_size(size: int, what: str, limit: int) -> None:
    """Raises: TaskError: K41, more bytes than `limit`."""
    if size > limit:
        raise refused("K41", what, f"has, or would become, more than {limit} bytes")


def positions(header: Sequence[str], columns: Sequence[Column], what: str) -> list[int]:
    """Where each column stands in a file's header.

    Raises: TaskError: K45, one is not there or there twice. The header is not shown: where a file
    has none, it is a record.
    """
    names = [column.name for column in columns]
    if not names or len(set(names)) < len(names):
        raise refused("K45", what, "expected columns to read, each once")
    if absent := [name for name in names if name not in header]:
        raise refused("K45", what, f"lacks {listed(absent)}")
    if twice := [name for name in names if header.count(name) > 1]:
        raise refused("K45", what, f"has {listed(twice)} more than once")
    return [header.index(name) for name in names]


def listed(names: Iterable[str]) -> str:
    return "column " + ", ".join(repr(name) for name in names)


def missing_at(unit: str, gaps: Array) -> str:
    """`lines 3, 8, 9` of 1-based positions, and how many more."""
    first = ", ".join(str(position) for position in gaps[:SHOWN])
    more = f" and {len(gaps) - SHOWN} more" if len(gaps) > SHOWN else ""
    return f"{unit}{'s' * (len(gaps) > 1)} {first}{more}"


def text_array(cells: Sequence[str], what: str, limit: int) -> Array:
    """Texts as an array of dtype `U`, in which all take the longest one's room.

    Raises: TaskError: K41, that would be more than `limit` bytes; K43, a text has a NUL in it,
    which the array would lose.
    """
    check_size(4 * len(cells) * max(map(len, cells), default=0), what, limit)
    if any("\0" in cell for cell in cells):
        raise refused("K43", what, "a text has a NUL character")
    return np.array(cells, dtype=np.str_)
