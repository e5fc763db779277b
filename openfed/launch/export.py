"""`fx model save`: a model in the formats of others."""

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from openfed.errors import UsageError
from openfed.files import write_whole
from openfed.tensors.model_file import model_bytes, read_model
from openfed.typing import Tensors


def export(source: Path, target: Path, to: str | None = None) -> None:
    """Write the model of `source` as a new file, in the format of its suffix or `to`.

    Raises: UsageError: U10 not a model, U11 torch is missing, U18 `target` exists, U19 the format
    lacks a dtype, U22 the suffix is of another format, or of none.
    """
    tensors = read_model(source)
    if target.exists():
        raise UsageError("U18", f"{target} is there already; nothing was written")
    data = FORMATS[_format(target, to)](tensors)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, data)


def _format(target: Path, to: str | None) -> str:
    found = SUFFIXES.get(target.suffix.lower())
    if to is None and found is None:
        raise UsageError("U22", f"{target}: expected a name that ends in {', '.join(SUFFIXES)}")
    if to and found and to != found:
        raise UsageError("U22", f"{target}: the suffix says {found}, --to says {to}")
    return to or str(found)


def _npz(tensors: Tensors) -> bytes:
    """As `numpy.savez` writes it, for any entry name."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, value in sorted(tensors.items()):
            if value.dtype.name == "bfloat16":
                raise UsageError("U19", f"{name} is bfloat16, which .npz files do not hold")
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, value, allow_pickle=False)
    return written.getvalue()


def _torch(tensors: Tensors) -> bytes:
    try:
        from openfed.tasks.torch_state import save_state_dict  # noqa: PLC0415  (needs torch)
    except ModuleNotFoundError:
        message = "this format needs torch: pip install 'openfed-fx[torch]'"
        raise UsageError("U11", message) from None
    written = io.BytesIO()
    save_state_dict(written, tensors)
    return written.getvalue()


FORMATS: Mapping[str, Callable[[Tensors], bytes]] = {
    "safetensors": model_bytes,
    "torch": _torch,
    "npz": _npz,
}

SUFFIXES: Mapping[str, str] = {
    ".safetensors": "safetensors",
    ".pt": "torch",
    ".pth": "torch",
    ".npz": "npz",
}
