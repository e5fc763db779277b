"""Folders of PNG images, one folder per class, where Pillow is installed."""

import os
import stat
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from openfed.data.opening import LIMIT, check_size, opened, refused
from openfed.data.table import Samples
from openfed.typing import Array

MAX_FILES = 1_000_000

_WHAT = "image folder"
_CHANNELS = {"L": 1, "RGB": 3}
_FAULTS = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError),
    *(struct.error, zlib.error, MemoryError),
)
"""What Pillow raises at bytes that are not what they should be."""


def read_images(
    folder: str | Path,
    classes: Sequence[str],
    size: tuple[int, int],
    mode: Literal["L", "RGB"] = "L",
    *,
    limit: int = LIMIT,
) -> Samples:
    """`folder/CLASS/*.png` in the order of classes, then of names.

    Inputs: uint8 of shape (n, height, width), for RGB (n, height, width, 3), 0 to 255; targets:
    int64 of shape (n,), the class's position in `classes`. A class without a folder has no sample
    here. Names that begin with a dot are passed over. `size`: (height, width); nothing is scaled
    or converted. `limit`: bytes of each file, and of the array.
    Raises: TaskError: K41 no such folder, too many files or bytes; K42 not a sound PNG; K46 Pillow
    is not installed; K47 another size or mode, a folder that is no class, a file that is no .png.
    """
    try:
        from PIL import Image  # noqa: PLC0415  (optional: only some sites have images)
    except ImportError:
        raise refused("K46", _WHAT, "needs Pillow: pip install pillow") from None
    files = _files(Path(folder), classes)
    shape = (len(files), *size) if mode == "L" else (len(files), *size, 3)
    check_size(len(files) * size[0] * size[1] * _CHANNELS[mode], _WHAT, limit)
    inputs = np.empty(shape, np.uint8)
    for index, (path, place, number) in enumerate(files):
        what = f"{_WHAT}, class {classes[place]!r}, file {number} in the order of names"
        inputs[index] = _pixels(Image, path, what, (size[1], size[0]), mode, limit)
    return Samples(inputs, np.array([place for _, place, _ in files], dtype=np.int64))


def _files(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int, int]]:
    """Path, class and 1-based number within the class of each file."""
    present = _names(folder)
    strange = [name for name in present if name not in classes]
    if strange:
        message = f"{len(strange)} of its entries are no folder of a class of the plan"
        raise refused("K47", _WHAT, message)
    found = []
    for place, name in enumerate(classes):
        inside = _names(folder / name) if name in present else []
        for number, file in enumerate(inside, 1):
            if not file.lower().endswith(".png"):
                what = f"{_WHAT}, class {name!r}, file {number} in the order of names"
                raise refused("K47", what, "expected a .png file")
            found.append((folder / name / file, place, number))
    if len(found) > MAX_FILES:
        raise refused("K41", _WHAT, f"has more than {MAX_FILES} files")
    return found


def _names(folder: Path) -> list[str]:
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise refused("K47", _WHAT, "expected a folder, with a folder for each class")
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise refused("K41", _WHAT, f"cannot be read: {error.strerror}") from None


def _pixels(
    pillow: Any, path: Path, what: str, size: tuple[int, int], mode: str, limit: int
) -> Array:
    with opened(path, what, limit) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes: they are checked here, before any pixel is
        try:
            with pillow.open(file, formats=("PNG",)) as image:
                if image.size != size or image.mode != mode:
                    found = f"{image.size[1]} x {image.size[0]} {image.mode}"
                    expected = f"{size[1]} x {size[0]} {mode} (height x width)"
                    raise refused("K47", what, f"is {found}, expected {expected}")
                image.verify()  # checksums, which decoding passes over; an image is spent by it
            file.seek(0)
            with pillow.open(file, formats=("PNG",)) as image:
                return np.asarray(image, dtype=np.uint8)
        except (*_FAULTS, pillow.DecompressionBombError):
            raise refused("K42", what, "is damaged, or no PNG image") from None
