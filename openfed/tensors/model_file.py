"""Models at rest: safetensors files, which anyone reads without openfed. No metadata in them."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from openfed.errors import UsageError
from openfed.files import write_whole
from openfed.tensors.record import DTYPES
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

Entry = tuple[str, dict[str, Any]]


def write_model(path: Path, tensors: Tensors) -> None:
    """Replace the file whole: after a crash it holds the old model or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, model_bytes(tensors))


def model_bytes(tensors: Tensors) -> bytes:
    return save({name: np.asarray(tensors[name], order="C") for name in sorted(tensors)})


def read_model(path: Path) -> Tensors:
    """The tensors of a file; raises `UsageError` U10 for one that is not a model."""
    try:
        entries: list[Entry] = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except OSError as error:
        raise UsageError("U10", f"{path}: {error.strerror}") from None
    except SafetensorError as error:
        raise UsageError("U10", f"{path} is not a safetensors file: {error}") from None
    return {name: _array(path, name, entry) for name, entry in sorted(entries, key=_name)}


def _name(entry: Entry) -> str:
    return entry[0]


def _array(path: Path, name: str, entry: dict[str, Any]) -> np.ndarray[Any, Any]:
    if entry["dtype"] not in NAMES:
        raise UsageError("U10", f"{path}: {name} is of dtype {entry['dtype']}, known: {[*NAMES]}")
    return np.frombuffer(entry["data"], DTYPES[NAMES[entry["dtype"]]]).reshape(entry["shape"])
