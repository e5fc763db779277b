"""The spool: frames and packets on disk by the digest of their bytes, and those still growing.

A blob of the node's own is named by its digest; one that a collaborator sent, by owner and
digest, so that what one site uploads is never taken as another's. A blob is there only whole and
synced: `finish` syncs the file, renames it, and syncs the folder before it returns. (One that can
be had again need not be synced; whoever keeps such blobs starts with `recover`.)
"""

import fcntl
import mmap
import os
import secrets
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from openfed.codec.chain import Chain
from openfed.errors import TransportError, WireError
from openfed.failpoints import failpoint
from openfed.files import sync_folder
from openfed.parse import DIGEST
from openfed.store.packets import PacketFile, open_packet
from openfed.tensors.frame import FrameFile, hasher, open_frame, unpack
from openfed.typing import Tensors

WHOLE = 1 << 62
"""No limit on the bytes of a blob: the node's own."""


def blob_name(digest: str, owner: str = "") -> str:
    """The file name of a blob; owners are collaborator names and hold no slash or dot pair."""
    return f"{owner}.{digest}" if owner else digest


class Spool:
    """One folder of blobs; safe for several threads as long as each blob has one writer."""

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs"
        self.growing = root / "growing"
        self.settled = root / "settled"  # name of a transfer -> digest of what it has become
        for folder in (self.blobs, self.growing, self.settled):
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

    def packet(
        self, digest: str, owner: str = "", *, limit: int, allowed: Collection[Chain]
    ) -> PacketFile:
        """Open a blob as a packet of at most `limit` bytes, coded in allowed chains only."""
        return open_packet(self.path(digest, owner), limit=limit, allowed=allowed)

    def mapped(self, digest: str) -> Tensors:
        """The tensors of a frame that this node wrote, as read-only views of the file: they take
        no memory that the kernel can't have back."""
        descriptor = os.open(self.path(digest), os.O_RDONLY | os.O_NOFOLLOW)
        try:
            frame = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        return unpack(frame, limit=len(frame), copy=False).tensors

    def writing(self) -> "Writing":
        """A new blob of the node's own."""
        return Writing(self)

    def put(self, blocks: Iterable[bytes | memoryview]) -> tuple[str, int]:
        """Store the node's own bytes; durable when it returns. Returns digest and size."""
        with self.writing() as blob:
            for block in blocks:
                blob.append(block)
            return blob.finish()

    def block(self, digest: str, offset: int, most: int) -> bytes:
        """At most so many bytes of a blob from `offset` on; none at its end."""
        with open(self.path(digest), "rb", buffering=0) as file:
            file.seek(offset)
            return file.read(most)

    def read(self, digest: str, offset: int, block: int) -> Iterator[bytes]:
        """The blob's bytes from `offset` on, `block` at a time."""
        with open(self.path(digest), "rb", buffering=0) as file:
            file.seek(offset)
            while data := file.read(block):
                yield data

    def grown(self, name: str, owner: str = "") -> int:
        """How many bytes of a transfer that is not whole are here."""
        part = self.growing / blob_name(name, owner)
        return part.stat().st_size if part.exists() else 0

    def became(self, name: str, owner: str = "") -> str:
        """Digest of the blob that a transfer of this name has become; empty where it is not whole,
        or the blob is not here any more."""
        try:
            digest = (self.settled / blob_name(name, owner)).read_text()
        except FileNotFoundError:
            return ""
        return digest if DIGEST.fullmatch(digest) and self.has(digest, owner) else ""

    def grow(self, name: str, owner: str = "", *, size: int) -> "Growing":
        """Go on with a transfer of at most `size` bytes, from `grown(...)` on. `name`: the digest,
        or a name for what has none yet."""
        return Growing(self, name, owner, size)

    def drop(self, digest: str, owner: str = "") -> None:
        """Forget a whole blob."""
        self.path(digest, owner).unlink(missing_ok=True)

    def drop_growing(self, name: str, owner: str = "") -> None:
        """Forget a transfer that is not whole, or what it has become."""
        for folder in (self.growing, self.settled):
            (folder / blob_name(name, owner)).unlink(missing_ok=True)

    def drop_unfinished(self) -> None:
        """Forget every transfer that is not whole."""
        for path in self.growing.iterdir():
            path.unlink(missing_ok=True)

    def keep_only(self, names: Collection[str]) -> None:
        """Remove every blob, whole or growing, whose name is not in `names`."""
        for folder in (self.settled, self.blobs, self.growing):
            for path in folder.iterdir():
                if path.name not in names:
                    path.unlink(missing_ok=True)
                    failpoint("spool.swept")

    def recover(self, sure: Collection[str]) -> None:
        """After a crash, also one of the machine: remove what is not what its name says, and what
        this node was writing. Blobs in `sure` were durable; a transfer goes on where it was."""
        for path in self.blobs.iterdir():
            if path.name not in sure and _digest(path) != path.name:
                path.unlink()
        for path in self.growing.glob(f"{_OWN}*"):
            path.unlink()


_OWN = "own-"
"""How the names of growing blobs begin that this node writes itself."""


class Writing:
    """A blob that this node writes; a context manager that leaves nothing behind unless it is
    finished. What is written can be read from `path` at once, `size` bytes of it."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.path = spool.growing / f"{_OWN}{secrets.token_hex(8)}"
        self.file = open(self.path, "xb")  # noqa: SIM115 (closed by __exit__)
        self.seen, self.size = hasher(), 0

    def append(self, *parts: Any) -> None:
        for part in parts:
            self.seen.update(part)
            self.file.write(part)
            self.size += len(part)

    def flush(self) -> None:
        """Let those who read the file see it all."""
        self.file.flush()

    def finish(self, *, durable: bool = True) -> tuple[str, int]:
        """Rename into place, synced if it is to be durable. Returns digest and size."""
        digest = self.seen.hexdigest()
        self.file.flush()
        _settle(self.spool, self.file.fileno(), self.path, self.spool.path(digest), durable)
        return digest, self.size

    def __enter__(self) -> "Writing":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.path.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        seen, _ = _hashed(file)
    return seen.hexdigest()


def _hashed(file: BinaryIO) -> tuple[hasher, int]:
    """The hasher that has seen what is left of a file, and how many bytes those are."""
    seen, size = hasher(), 0
    while block := file.read(1 << 20):
        seen.update(block)
        size += len(block)
    return seen, size


def _settle(spool: Spool, descriptor: int, part: Path, whole: Path, durable: bool) -> None:
    failpoint("spool.written")
    if durable:
        os.fsync(descriptor)
    failpoint("spool.synced")
    os.replace(part, whole)
    os.fchmod(descriptor, 0o400)  # not before: who comes back after a crash opens the part again
    failpoint("spool.renamed")
    if durable:
        sync_folder(spool.blobs)
    failpoint("spool.settled")


class Growing:
    """A blob that arrives block by block; a context manager that leaves what it has on disk.

    It has one writer at a time: what was hashed is what is on disk.
    Raises: TransportError T14 (transient): another transfer of this blob is under way.
    """

    def __init__(self, spool: Spool, name: str, owner: str, size: int) -> None:
        self.spool, self.name, self.owner, self.most = spool, name, owner, size
        self.part = spool.growing / blob_name(name, owner)
        self.file = open(self.part, "ab")  # noqa: SIM115 (closed by __exit__)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(self.part, "rb") as there:
                self.seen, self.at = _hashed(there)
        except BlockingIOError:
            self.file.close()
            raise TransportError("T14", "another transfer of these bytes is under way") from None
        except FileNotFoundError:  # between the two openings: another upload, or the ask's end
            self.file.close()
            raise TransportError("T14", "these bytes have just been swept") from None
        except OSError:
            self.file.close()
            raise

    def append(self, block: bytes | memoryview) -> None:
        """Raises: WireError W04: more bytes than are allowed."""
        if self.at + len(block) > self.most:
            self.discard()
            raise WireError("W04", f"a transfer of at most {self.most} bytes went on beyond that")
        self.seen.update(block)
        self.file.write(block)
        self.at += len(block)
        failpoint("spool.block")

    def finish(self, digest: str = "", *, durable: bool = True) -> str:
        """Check the digest, if it is known; sync and rename into place. Returns: the digest.

        Raises: WireError W04: the transfer was dropped; W05: another digest (the bytes are
        dropped).
        """
        found = self.seen.hexdigest()
        if digest and found != digest:
            self.discard()
            raise WireError("W05", f"expected bytes with digest {digest[:16]}..., got others")
        self.file.flush()
        whole = self.spool.path(found, self.owner)
        if self.name != found:
            # not synced: at worst, after a loss of power, the bytes are sent again
            (self.spool.settled / self.part.name).write_text(found)
        try:
            _settle(self.spool, self.file.fileno(), self.part, whole, durable)
        except FileNotFoundError:
            raise WireError("W04", "nobody waits for these bytes any more") from None
        return found

    def discard(self) -> None:
        self.file.close()
        self.part.unlink(missing_ok=True)

    def __enter__(self) -> "Growing":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
