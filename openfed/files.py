"""Files that are whole or absent: written aside, synced, renamed, and their folder synced."""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

Data = bytes | Iterable[bytes | memoryview]


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
            os.fsync(file.fileno())
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return beside


def write_whole(path: Path, data: Data, mode: int = 0o644) -> Path:
    """Replace `path` in one step; after a crash it holds the old bytes or the new ones."""
    os.replace(write_beside(path, data, mode), path)
    sync_folder(path.parent)
    return path
