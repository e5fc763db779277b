"""IDX files, the format of MNIST and its kin, plain or gzipped.

Source: LeCun, Cortes, Burges, "The MNIST database", section "file formats": two zero bytes, the
type, the number of dimensions, each dimension in four bytes, the values; all big-endian.
"""

import struct
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from openfed.data.opening import LIMIT, check_size, opened, refused, unzipped
from openfed.data.table import Samples
from openfed.typing import Array

_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MAX_DIMENSIONS = 8


def read_mnist(images: str | Path, labels: str | Path, *, limit: int = LIMIT) -> Samples:
    """Images, uint8 of shape (n, height, width) and 0 to 255, with labels, int64 of shape (n,).

    Raises: as `read_idx`, and TaskError: K48 the two do not belong together.
    """
    x, y = read_idx(images, limit=limit), read_idx(labels, limit=limit)
    if x.dtype != np.uint8 or x.ndim != 3 or y.dtype.kind not in "iu" or y.ndim != 1:
        message = "expected images (bytes, 3 dimensions) and labels (integers, 1 dimension)"
        raise refused("K48", "idx files", message)
    if len(x) != len(y):
        raise refused("K48", "idx files", "there are not as many images as labels")
    return Samples(x, y.astype(np.int64))


def read_idx(path: str | Path, *, limit: int = LIMIT) -> Array:
    """The array, in the machine's byte order. `limit`: bytes of the file and of the array.

    Raises: TaskError: K41 no such file, or too large; K42 not an IDX file, cut off, or longer than
    its header says.
    """
    with opened(path, "idx file", limit) as raw, unzipped(raw, "idx file") as file:
        return _read(file, limit)


def _read(file: IO[bytes], limit: int) -> Array:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES:
        raise refused("K42", "idx file", "does not begin as an IDX file does")
    count = head[3]
    sizes = file.read(4 * count)
    if not 1 <= count <= _MAX_DIMENSIONS or len(sizes) < 4 * count:
        raise refused("K42", "idx file", f"expected 1 to {_MAX_DIMENSIONS} dimensions")
    shape, dtype = struct.unpack(f">{count}I", sizes), np.dtype(_TYPES[head[2]])
    size = prod(shape) * dtype.itemsize
    check_size(size, "idx file", limit)
    data = file.read(size)
    if len(data) < size or file.read(1):
        raise refused("K42", "idx file", "has more or fewer bytes than its header says")
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("=")).reshape(shape)
