"""Memory for a whole model: a large one lies in a file, so that the kernel can take it back."""

import mmap
import os
import tempfile
from pathlib import Path

import numpy as np

from openfed.tensors.record import DTYPES, Signature
from openfed.typing import Tensors

IN_MEMORY = 256 << 20
"""Bytes of the largest model that is kept in memory of its own."""

PAGE = 4096


def scratch(folder: Path, signature: Signature) -> Tensors:
    """Memory for every entry, in a file without a name in `folder` where the model is large."""
    if sum(spec.size for spec in signature) <= IN_MEMORY:
        return {spec.name: np.empty(spec.shape, DTYPES[spec.dtype]) for spec in signature}
    at, places = 0, {}
    for spec in signature:
        places[spec.name] = at
        at += -(-spec.size // PAGE) * PAGE
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, at)  # a full disk is an error here, not a signal later
        memory = mmap.mmap(file.fileno(), at)
    return {
        spec.name: np.frombuffer(memory, DTYPES[spec.dtype], spec.count, places[spec.name]).reshape(
            spec.shape
        )
        for spec in signature
    }
