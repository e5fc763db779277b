"""Models at rest: safetensors files, which anyone reads without openfed. No metadata in them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from openfed.errors import UsageError
from openfed.files import write_whole
from openfed.tensors.record import DTYPES, Spec, dtype_name
from openfed.typing import Tensors

NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}
"""What safetensors calls our dtypes. (`safetensors.numpy.load` knows no bfloat16.)"""

KINDS = {ours: theirs for theirs, ours in NAMES.items()}


def write_model(path: Path, tensors: Tensors) -> None:
    """Replace the file whole: after a crash it holds the old model or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, model_blocks(tensors))


def model_bytes(tensors: Tensors) -> bytes:
    return b"".join(model_blocks(tensors))


def model_blocks(tensors: Tensors) -> Iterator[bytes | memoryview]:
    """The file, tensor by tensor. (The library's own `save` holds every tensor a second time.)

    The format: 8 bytes length of the header, little-endian; the header, JSON, padded with spaces to
    a multiple of 8; the tensors, C order, little-endian, the widest dtypes first so that each is
    aligned. Source: the format's description in the safetensors repository.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, at = {}, 0
    for name in names:
        array = tensors[name]
        place = [at, at + array.nbytes]
        kind = KINDS[dtype_name(array)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": place}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        if tensors[name].nbytes:
            yield np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data


def read_model(path: Path) -> Tensors:
    """The tensors of a file, as read-only views of it; raises `UsageError` U10 for one that is not
    a model. The file must not be written to while they are in use (`write_model` replaces it)."""
    try:
        with safe_open(path, framework="numpy") as file:
            specs = [_spec(path, file, name) for name in file.offset_keys()]
        whole = np.memmap(path, np.uint8, "r") if specs else np.empty(0, np.uint8)
    except OSError as error:
        raise UsageError("U10", f"{path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UsageError("U10", f"{path} is not a safetensors file: {error}") from None
    at, found = whole.size - sum(spec.size for spec in specs), {}
    for spec in specs:  # nothing lies between the tensors: the library has checked that
        flat = np.asarray(whole[at : at + spec.size]).view(DTYPES[spec.dtype])
        found[spec.name] = flat.reshape(spec.shape)
        at += spec.size
    return dict(sorted(found.items()))


def _spec(path: Path, file: Any, name: str) -> Spec:
    entry = file.get_slice(name)
    kind = entry.get_dtype()
    if kind not in NAMES:
        raise UsageError("U10", f"{path}: {name} is of dtype {kind}, known: {[*NAMES]}")
    return Spec(name, NAMES[kind], tuple(entry.get_shape()))
