"""Arrays in numpy's .npz archives, read without anything that could run code or fill the memory.

Source: NEP 1, "A simple file format for NumPy arrays". Of the zip archive, members that are stored
or deflated are read; of the header, plain dtypes of fixed size.
"""

import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from openfed.data.opening import LIMIT, check_size, listed, opened, refused
from openfed.typing import Array

MAX_MEMBERS = 10_000

_PLAIN = "biufcUS"
_CODES: dict[str, tuple[Any, int]] = {"U": (np.uint32, 0x10FFFF), "b": (np.uint8, 1)}
"""The largest unit of a text, and of a truth value."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FAULTS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, EOFError, MemoryError),
    *(ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError, SyntaxError),
)
"""What zipfile and numpy's reader of headers raise at bytes that others wrote."""

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(path: str | Path, names: Sequence[str], *, limit: int = LIMIT) -> dict[str, Array]:
    """The arrays asked for, each of its own dtype and shape, in the machine's byte order.

    `limit`: bytes of the file, and of the arrays together.
    Raises: TaskError: K41 no such file, or too large; K42 not an .npz file of plain arrays;
    K45 an array that is not there.
    """
    with opened(path, "npz file", limit) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _arrays(archive, names, limit)
        except _FAULTS:
            raise refused("K42", "npz file", "is damaged, or no .npz file") from None


def _arrays(archive: zipfile.ZipFile, names: Sequence[str], limit: int) -> dict[str, Array]:
    entries = {entry.filename: entry for entry in archive.infolist()[: MAX_MEMBERS + 1]}
    if len(entries) < len(archive.infolist()):
        raise refused("K42", "npz file", f"has a name twice, or more than {MAX_MEMBERS} arrays")
    if absent := [name for name in names if f"{name}.npy" not in entries]:
        raise refused("K45", "npz file", f"lacks {listed(absent)}".replace("column", "array"))
    chosen = [entries[f"{name}.npy"] for name in names]
    check_size(sum(entry.file_size for entry in chosen), "npz file", limit)
    return {
        name: _array(archive, entry, f"npz file, array {name!r}")
        for name, entry in zip(names, chosen, strict=True)
    }


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, what: str) -> Array:
    """The header is believed only where the data that follow are as many bytes as it says."""
    if entry.compress_type not in _METHODS or entry.flag_bits & 1:
        raise refused("K42", what, "is encrypted, or compressed by another method than deflate")
    data = archive.read(entry)
    stream = io.BytesIO(data)
    version: Any = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise refused("K42", what, "is of another version of the format than 1.0 and 2.0")
    shape, fortran, dtype = _HEADERS[version](stream)
    if dtype.kind not in _PLAIN or not dtype.itemsize:
        raise refused("K42", what, "does not hold plain numbers or texts (nothing is unpickled)")
    start = stream.tell()
    if min(shape, default=0) < 0 or prod(shape) * dtype.itemsize != len(data) - start:
        raise refused("K42", what, "has more or fewer bytes than its header says")
    flat = np.frombuffer(data, dtype, offset=start).astype(dtype.newbyteorder("="))
    unit, most = _CODES.get(dtype.kind, (np.uint8, 255))
    if dtype.kind in _CODES and flat.view(unit).max(initial=0) > most:
        raise refused("K42", what, "has bytes that are no text, or no truth values")
    return flat.reshape(shape, order="F" if fortran else "C")
