"""Files that are whole or absent, locks on files, and the folders that ship beside the code.

A whole file is written aside, synced and renamed, and its folder synced.
"""

import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from openfed.failpoints import failpoint

Data = bytes | Iterable[bytes | memoryview]

_PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """The folder `name` of the checkout, or its copy inside the installed package."""
    installed = _PACKAGE / f"_{name}"  # first: beside it there may be a folder of anybody's
    return installed if installed.is_dir() else _PACKAGE.parent / name


def lock_file(path: Path, *, wait: bool) -> int:
    """Lock a folder, or a file, made (0600) if need be; the lock ends when the descriptor closes.

    Raises: BlockingIOError: another process holds it, and `wait` is false.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_beside(path: Path, data: Data, mode: int) -> Path:
    """Write a new file, of exactly this mode and synced, in `path`'s folder; returns its path."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with open(os.open(beside, flags, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            for block in (data,) if isinstance(data, bytes) else data:
                file.write(block)
            file.flush()
            failpoint("file.written")
            os.fsync(file.fileno())
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return beside


def write_whole(path: Path, data: Data, mode: int = 0o644) -> Path:
    """Replace `path` in one step; after a crash it holds the old bytes or the new ones."""
    beside = write_beside(path, data, mode)
    failpoint("file.synced")
    os.replace(beside, path)
    failpoint("file.renamed")
    sync_folder(path.parent)
    failpoint("file.durable")
    return path


@contextmanager
def readable(content: bytes) -> Iterator[str]:
    """A path to bytes that never touch the disk: `ssl` reads keys from paths only. A few KiB."""
    reader, writer = os.pipe()
    try:
        os.write(writer, content)  # less than a pipe holds
        os.close(writer)
        yield f"/dev/fd/{reader}"
    finally:
        os.close(reader)
