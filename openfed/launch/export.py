"""`fx model save`: a model in the formats of others."""

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from openfed.errors import UsageError
from openfed.tensors.model_file import read_model, write_model
from openfed.typing import Tensors


def export(source: Path, target: Path, to: str) -> None:
    """Write the model of `source` as a new file. `to` is a key of `FORMATS`.

    Raises: UsageError: U10 not a model, U11 torch is missing, U18 `target` exists, U19 the format
    lacks a dtype.
    """
    tensors = read_model(source)
    if target.exists():
        raise UsageError("U18", f"{target} is there already; nothing was written")
    aside = target.with_name(f".{target.name}.new")
    try:
        FORMATS[to](aside, tensors)
        os.replace(aside, target)
    except FileNotFoundError as error:
        raise UsageError("U18", f"{target}: {error.strerror}") from None
    finally:
        aside.unlink(missing_ok=True)


def _npz(path: Path, tensors: Tensors) -> None:
    """As `numpy.savez` writes it, for any entry name."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in sorted(tensors.items()):
            if value.dtype.name == "bfloat16":
                raise UsageError("U19", f"{name} is bfloat16, which .npz files do not hold")
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                _write_array(file, value)


def _write_array(file: IO[bytes], value: np.ndarray) -> None:
    np.lib.format.write_array(file, value, allow_pickle=False)


def _torch(path: Path, tensors: Tensors) -> None:
    try:
        from openfed.tasks.torch import save_state_dict  # noqa: PLC0415  (torch is an extra)
    except ImportError:
        message = "this format needs torch: pip install 'openfed-fx[torch]'"
        raise UsageError("U11", message) from None
    save_state_dict(path, tensors)


FORMATS: Mapping[str, Callable[[Path, Tensors], None]] = {
    "safetensors": write_model,
    "torch": _torch,
    "npz": _npz,
}
