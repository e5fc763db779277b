"""scikit-learn's 1,797 digits as the four files of MNIST: python src/make_data.py"""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TEST = 297
"""Pictures of the test set."""


def write_digits(folder: Path) -> None:
    """Each digit of 8 x 8 becomes 24 x 24 and gets a margin of 2. Several sites may do this at
    once: they write the same, and the file that others look for comes last."""
    inputs, labels = load_digits(return_X_y=True)
    large = inputs.reshape(-1, 8, 8).repeat(3, axis=1).repeat(3, axis=2) * 255 / 16
    pictures = np.pad(large, ((0, 0), (2, 2), (2, 2))).round().astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(labels))
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in (("t10k", order[:TEST]), ("train", order[TEST:])):
        _write(folder / f"{part}-labels-idx1-ubyte.gz", labels[rows].astype(np.uint8))
        _write(folder / f"{part}-images-idx3-ubyte.gz", pictures[rows])


def _write(path: Path, values: np.ndarray) -> None:
    """An IDX file of bytes: its type, its dimensions, its values; whole, or not there."""
    head = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(gzip.compress(head + values.tobytes(), mtime=0))
    part.replace(path)


if __name__ == "__main__":
    write_digits(Path(__file__).parents[1] / "data")
