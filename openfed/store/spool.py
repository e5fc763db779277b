"""The spool: frames on disk by the digest of their bytes, and uploads that are still growing.

A blob of the node's own is named by its digest; one that a collaborator sent, by owner and
digest, so that what one site uploads is never taken as another's. A blob is there only whole and
synced: `put` and `finish` sync the file, rename it, and sync the folder before they return.
"""

import fcntl
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from openfed.errors import TransportError, WireError
from openfed.files import sync_folder
from openfed.tensors.frame import FrameFile, open_frame


def blob_name(digest: str, owner: str = "") -> str:
    """The file name of a blob; owners are collaborator names and hold no slash or dot pair."""
    return f"{owner}.{digest}" if owner else digest


class Spool:
    """One folder of blobs; safe for several threads as long as each blob has one writer."""

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs"
        self.growing = root / "growing"
        for folder in (self.blobs, self.growing):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, digest: str, owner: str = "") -> Path:
        return self.blobs / blob_name(digest, owner)

    def has(self, digest: str, owner: str = "") -> bool:
        return self.path(digest, owner).exists()

    def size(self, digest: str, owner: str = "") -> int:
        return self.path(digest, owner).stat().st_size

    def open(self, digest: str, owner: str = "", *, limit: int) -> FrameFile:
        """Open a blob as a frame of at most `limit` bytes."""
        return open_frame(self.path(digest, owner), limit=limit)

    def put(self, blocks: Iterable[bytes | memoryview]) -> tuple[str, int]:
        """Store the node's own bytes; durable when it returns. Returns digest and size."""
        aside = self.growing / f"put-{os.getpid()}-{id(blocks)}"
        sha, size = hashlib.sha256(), 0
        with open(aside, "wb") as file:
            for block in blocks:
                sha.update(block)
                file.write(block)
                size += len(block)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.path(sha.hexdigest()))
        sync_folder(self.blobs)
        return sha.hexdigest(), size

    def read(self, digest: str, offset: int, block: int, owner: str = "") -> Iterator[bytes]:
        """The blob's bytes from `offset` on, `block` at a time."""
        with open(self.path(digest, owner), "rb") as file:
            file.seek(offset)
            while data := file.read(block):
                yield data

    def grown(self, digest: str, owner: str = "") -> int:
        """How many bytes of a transfer are here, whole or in part."""
        if self.has(digest, owner):
            return self.size(digest, owner)
        part = self.growing / blob_name(digest, owner)
        return part.stat().st_size if part.exists() else 0

    def grow(self, digest: str, owner: str = "", *, size: int) -> "Growing":
        """Go on with a transfer, from `grown(...)` bytes."""
        return Growing(self, digest, owner, size)

    def drop(self, digest: str, owner: str = "") -> None:
        """Forget a blob, whole or growing."""
        for folder in (self.blobs, self.growing):
            (folder / blob_name(digest, owner)).unlink(missing_ok=True)

    def keep_only(self, names: Collection[str]) -> None:
        """Remove every blob, whole or growing, whose name is not in `names`."""
        for folder in (self.blobs, self.growing):
            for path in folder.iterdir():
                if path.name not in names:
                    path.unlink(missing_ok=True)


class Growing:
    """A blob that arrives block by block; a context manager that leaves what it has on disk.

    It has one writer at a time: what was hashed is what is on disk.
    Raises: TransportError T14 (transient): another transfer of this blob is under way.
    """

    def __init__(self, spool: Spool, digest: str, owner: str, size: int) -> None:
        self.spool, self.digest, self.owner, self.size = spool, digest, owner, size
        self.part = spool.growing / blob_name(digest, owner)
        self.file = open(self.part, "ab")  # noqa: SIM115 (closed by __exit__)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            raise TransportError("T14", "another transfer of these bytes is under way") from None
        self.sha = hashlib.sha256()
        with open(self.part, "rb") as file:
            while block := file.read(1 << 20):
                self.sha.update(block)

    @property
    def at(self) -> int:
        return self.file.tell()

    def append(self, block: bytes | memoryview) -> None:
        """Raises: WireError W04: more bytes than the transfer declared."""
        if self.at + len(block) > self.size:
            self.discard()
            raise WireError("W04", f"a transfer of {self.size} bytes went on beyond its end")
        self.sha.update(block)
        self.file.write(block)

    def finish(self) -> None:
        """Check the digest, sync, and rename into place.

        Raises: WireError W04: bytes missing, or the transfer was dropped; W05: another digest (the
        bytes are dropped).
        """
        if self.at != self.size:
            raise WireError("W04", f"a transfer of {self.size} bytes ended after {self.at}")
        if self.sha.hexdigest() != self.digest:
            self.discard()
            raise WireError("W05", f"expected bytes with digest {self.digest[:16]}..., got others")
        self.file.flush()
        os.fsync(self.file.fileno())
        try:
            os.replace(self.part, self.spool.path(self.digest, self.owner))
        except FileNotFoundError:
            raise WireError("W04", "nobody waits for these bytes any more") from None
        sync_folder(self.spool.blobs)

    def discard(self) -> None:
        self.file.close()
        self.part.unlink(missing_ok=True)

    def __enter__(self) -> "Growing":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
