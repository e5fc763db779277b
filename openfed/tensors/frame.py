"""The frame: a record as bytes, and back.

    0   8 bytes   b"openfed" 0x01
    8   8 bytes   length of the header, unsigned, little-endian
    16  header    canonical JSON, padded with spaces so that the body starts at a multiple of 64:
                  {"numbers": {name: [float, ...]}, "tensors": [[name, dtype, [extent, ...]], ...]}
        body      each tensor in header order, C order, little-endian, starting at a multiple of 64
                  from the start of the body; the bytes between them are zero

Tensors are sorted by name, so equal records are equal bytes, and the BLAKE3 hash of a frame is the
digest of its record. Nothing else is in a frame: no type names, no code, no metadata. A reader
checks the declared sizes against the bytes at hand before it allocates anything.
"""

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from blake3 import blake3

from openfed.errors import WireError
from openfed.parse import strict_json
from openfed.tensors.record import DTYPES, Record, Signature, Spec, signature_of
from openfed.typing import Numbers

MAGIC: Final = b"openfed\x01"
ALIGN: Final = 64
MAX_HEADER: Final = 16 << 20
"""Most bytes of a header: about 200,000 entries."""

CHUNK: Final = 1 << 16
"""Elements that are read, coded, checked and reduced at a time: 256 KiB of float32, which stay in
a core's cache."""

hasher = blake3
"""What names frames and everything else that is transferred: BLAKE3, as 64 hex digits."""


class Source(Protocol):
    """A record whose entries are read in pieces: an open file, or one in memory."""

    @property
    def specs(self) -> Signature: ...
    @property
    def numbers(self) -> Numbers: ...
    def read(self, name: str, start: int, out: np.ndarray[Any, Any]) -> None:
        """Fill `out` (1-D, contiguous, the entry's dtype) with elements from `start` on. `start`
        is a multiple of `CHUNK`, and `out` has `CHUNK` elements or the entry's last ones."""
        ...


def chunks(spec: Spec) -> Iterator[tuple[int, int]]:
    """(first element, number of elements) of each chunk of an entry."""
    for start in range(0, spec.count, CHUNK):
        yield start, min(CHUNK, spec.count - start)


def _aligned(length: int) -> int:
    return -(-length // ALIGN) * ALIGN


def head(specs: Signature, numbers: Numbers) -> bytes:
    """The first bytes of a frame, up to its body; `specs` sorted by name."""
    text = json.dumps(
        {
            "numbers": {name: [float(x) for x in xs] for name, xs in numbers.items()},
            "tensors": [[spec.name, spec.dtype, list(spec.shape)] for spec in specs],
        },
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    ).encode()
    header = text + b" " * (_aligned(16 + len(text)) - 16 - len(text))
    return MAGIC + len(header).to_bytes(8, "little") + header


def padding(specs: Signature, index: int) -> bytes:
    """The zero bytes after the entry `specs[index]`."""
    size = specs[index].size
    return b"\0" * (_aligned(size) - size if index < len(specs) - 1 else 0)


def _little_endian(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array)


def blocks(record: Record) -> Iterator[bytes | memoryview]:
    """The bytes of the frame, tensor by tensor, without a copy of a contiguous tensor.

    Raises: ValueError: a number is not finite. KeyError: a dtype that no frame may hold.
    """
    specs = signature_of(record.tensors)
    yield head(specs, record.numbers)
    for index, spec in enumerate(specs):
        if spec.size:
            flat = _little_endian(np.asarray(record.tensors[spec.name])).reshape(-1)
            yield flat.view(np.uint8).data
        if filler := padding(specs, index):
            yield filler


def source_blocks(source: Source) -> Iterator[bytes | memoryview]:
    """The bytes of the frame of a source, chunk by chunk; a block is valid until the next one."""
    yield head(source.specs, source.numbers)
    for index, spec in enumerate(source.specs):
        buffer = np.empty(min(CHUNK, spec.count), DTYPES[spec.dtype])
        for start, count in chunks(spec):
            source.read(spec.name, start, buffer[:count])
            yield buffer[:count].view(np.uint8).data
        if filler := padding(source.specs, index):
            yield filler


def pack(record: Record) -> bytes:
    """The whole frame as one value; for records that are small or must be in memory anyway."""
    return b"".join(blocks(record))


def digest(record: Record) -> str:
    """BLAKE3 of the frame, hex: the digest of the record."""
    seen = hasher()
    for block in blocks(record):
        seen.update(block)
    return seen.hexdigest()


def write_frame(path: Path, record: Record) -> None:
    """Write the frame over the file's old bytes: memory that is mapped already is the cheapest.

    Not durable: the caller syncs if it must.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for block in blocks(record):
            file.write(block)
        file.truncate()


@dataclass(frozen=True)
class Layout:
    """What a header says: entries, where each starts in the frame, numbers, bytes of the frame."""

    specs: Signature
    offsets: Mapping[str, int]
    numbers: Mapping[str, tuple[float, ...]]
    size: int


def read_layout(head: bytes | memoryview, *, limit: int) -> Layout:
    """Read the first bytes of a frame; `head` holds at least the whole header.

    Raises: WireError: W01 not a frame, W02 a header that is not allowed, W03 above `limit` bytes.
    """
    length = header_length(head)
    if len(head) < 16 + length:
        raise WireError("W01", f"expected a header of {length} bytes, got {len(head) - 16}")
    try:
        header = strict_json(bytes(head[16 : 16 + length]))
        tensors, numbers = header["tensors"], header["numbers"]
        specs = tuple(read_spec(entry) for entry in tensors)
        values = {str(name): read_vector(xs) for name, xs in numbers.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WireError("W02", f"unreadable frame header: {error}") from error
    return _lay_out(specs, values, 16 + length, limit)


def header_length(head: bytes | memoryview) -> int:
    """Bytes of the header that follows the first 16; raises WireError W01 or W02."""
    if len(head) < 16 or bytes(head[:8]) != MAGIC:
        raise WireError("W01", "expected an openfed frame (version 1), got other bytes")
    length = int.from_bytes(head[8:16], "little")
    if length > MAX_HEADER or (16 + length) % ALIGN:
        raise WireError("W02", f"a frame header of {length} bytes is not allowed")
    return length


def _lay_out(
    specs: Signature, numbers: Mapping[str, tuple[float, ...]], start: int, limit: int
) -> Layout:
    for before, after in pairwise(specs):
        if before.name >= after.name:
            raise WireError("W02", f"frame entries out of order: {before.name!r}, {after.name!r}")
    offsets: dict[str, int] = {}
    end = at = start
    for spec in specs:
        offsets[spec.name] = at
        end = at + spec.size
        at += _aligned(spec.size)
    if end > limit:
        raise WireError("W03", f"a frame of {end} bytes, but at most {limit} are allowed here")
    return Layout(specs, offsets, numbers, end)


def read_spec(entry: Any) -> Spec:
    name, dtype, shape = entry
    if not isinstance(name, str) or not name or len(name) > 1024:
        raise ValueError(f"bad entry name {str(name)[:40]!r}")
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {str(dtype)[:40]!r} of {name!r}")
    if not isinstance(shape, list) or len(shape) > 32:
        raise ValueError(f"bad shape of {name!r}")
    if not all(type(x) is int and 0 <= x < 1 << 48 for x in shape):
        raise ValueError(f"bad shape of {name!r}")
    return Spec(name, dtype, tuple(shape))


def read_vector(xs: Any) -> tuple[float, ...]:
    if not isinstance(xs, list) or len(xs) > 65536:
        raise ValueError("numbers must be lists of at most 65536 floats")
    try:
        values = tuple(float(x) for x in xs if type(x) in (int, float))
    except OverflowError:  # an integer of some hundred digits
        raise ValueError("numbers must be finite floats") from None
    if len(values) != len(xs) or not all(math.isfinite(x) for x in values):
        raise ValueError("numbers must be finite floats")
    return values


def unpack(data: bytes | memoryview | mmap.mmap, *, limit: int, copy: bool = True) -> Record:
    """The record in a whole frame.

    `copy=False` gives read-only views into `data`, which must then outlive the record.
    Raises: WireError: the bytes are not exactly one allowed frame.
    """
    view = memoryview(data).toreadonly()
    layout = read_layout(view, limit=limit)
    if len(view) != layout.size:
        raise WireError("W01", f"expected a frame of {layout.size} bytes, got {len(view)}")
    _check_padding(view, layout)
    tensors = {}
    for spec in layout.specs:
        at = layout.offsets[spec.name]
        flat = np.frombuffer(view[at : at + spec.size], DTYPES[spec.dtype])
        check_bool(spec.name, flat)
        value = flat.reshape(spec.shape)
        tensors[spec.name] = value.copy() if copy else value
    return Record(tensors, layout.numbers)


def _check_padding(view: memoryview, layout: Layout) -> None:
    """Bytes that no entry owns must be zero: a frame has no room for anything else."""
    for spec, following in pairwise(layout.specs):
        end = layout.offsets[spec.name] + spec.size
        if any(view[end : layout.offsets[following.name]]):
            raise WireError("W02", f"bytes hidden behind the frame entry {spec.name!r}")


def check_bool(name: str, flat: np.ndarray[Any, Any]) -> None:
    """Raises: WireError W02: booleans that are neither 0 nor 1."""
    if flat.dtype == np.bool_ and flat.size and flat.view(np.uint8).max() > 1:
        raise WireError("W02", f"the frame entry {name!r} holds bytes that are no booleans")


@dataclass(frozen=True)
class Held:
    """A record in memory as a `Source`."""

    record: Record

    @property
    def specs(self) -> Signature:
        return signature_of(self.record.tensors)

    @property
    def numbers(self) -> Numbers:
        return self.record.numbers

    def read(self, name: str, start: int, out: np.ndarray[Any, Any]) -> None:
        out[...] = np.asarray(self.record.tensors[name]).reshape(-1)[start : start + out.size]


def fill(descriptor: int, at: int, out: np.ndarray[Any, Any], ends: str) -> None:
    """Fill `out` (contiguous) with the file's bytes from `at` on; raises WireError W01 `ends`."""
    into = out.view(np.uint8).reshape(-1).data
    while into:
        got = os.preadv(descriptor, [into], at)
        if got == 0:
            raise WireError("W01", ends)
        into, at = into[got:], at + got


@dataclass(frozen=True)
class FrameFile:
    """An open frame on disk, read in pieces with `pread`: nothing is mapped, nothing assumed.

    Safe against a file that shrinks or changes while it is read: a short read is a `WireError`.
    """

    descriptor: int
    layout: Layout

    @property
    def specs(self) -> Signature:
        return self.layout.specs

    @property
    def numbers(self) -> Numbers:
        return self.layout.numbers

    def read(self, name: str, start: int, out: np.ndarray[Any, Any]) -> None:
        """Fill `out` (1-D, the entry's dtype) with elements from `start` on."""
        at = self.layout.offsets[name] + start * out.itemsize
        fill(self.descriptor, at, out, f"the frame ends inside its entry {name!r}")
        check_bool(name, out)

    def tensor(self, spec: Spec) -> np.ndarray[Any, Any]:
        """The whole entry, in fresh memory."""
        flat = np.empty(spec.count, DTYPES[spec.dtype])
        self.read(spec.name, 0, flat)
        return flat.reshape(spec.shape)

    def record(self) -> Record:
        """Everything, in fresh memory."""
        tensors = {spec.name: self.tensor(spec) for spec in self.layout.specs}
        return Record(tensors, self.layout.numbers)

    def close(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> "FrameFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_frame(path: Path, *, limit: int) -> FrameFile:
    """Open a frame file (never through a link) and check its header and its size.

    Raises: WireError: not exactly one allowed frame. OSError: the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        first = os.pread(descriptor, 16, 0)
        head = first + os.pread(descriptor, header_length(first), 16)
        layout = read_layout(head, limit=limit)
        size = os.fstat(descriptor).st_size
        if size != layout.size:
            raise WireError("W01", f"expected a frame of {layout.size} bytes, got {size}")
    except BaseException:
        os.close(descriptor)
        raise
    return FrameFile(descriptor, layout)
