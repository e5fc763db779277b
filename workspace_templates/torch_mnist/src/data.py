"""Pictures in MNIST's files: a site's share of the training set, and its part of the test set."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openfed.data.idx import read_mnist
from openfed.data.partition import share
from openfed.data.table import Samples

Batch = tuple[Tensor, Tensor]


class Mnist:
    """`source` is what local.yaml's partition says: {of: folder, share: [1, 4], by: ..., seed: 7}.

    The test set is dealt out one by one, whatever the partitioner: the federation's accuracy is
    that of the whole of it.
    """

    def __init__(self, source: Mapping[str, Any], *, batch_size: int = 32) -> None:
        folder = Path(source["of"])
        if not _there(folder, "train-images-idx3-ubyte").exists():
            from src.make_data import write_digits  # only here: it needs scikit-learn

            write_digits(folder)
        number, sites = source["share"]
        train, test = _read(folder, "train"), _read(folder, "t10k")
        own = share(source, train.targets)
        self._train = Samples(train.inputs[own], train.targets[own])
        self._test = Samples(test.inputs[number - 1 :: sites], test.targets[number - 1 :: sites])
        self._batch_size = batch_size

    def samples(self) -> Samples:
        """What the plan's data contract is about."""
        return self._train

    def train(self, *, seed: int) -> Iterator[Batch]:
        return self._batches(self._train, np.random.default_rng(seed).permutation(len(self)))

    def validate(self) -> Iterator[Batch]:
        return self._batches(self._test, np.arange(len(self._test.targets)))

    def __len__(self) -> int:
        return len(self._train.targets)

    def _batches(self, samples: Samples, rows: np.ndarray) -> Iterator[Batch]:
        for start in range(0, len(rows), self._batch_size):
            part = rows[start : start + self._batch_size]
            pictures = torch.from_numpy(samples.inputs[part]).float().unsqueeze(1) / 255
            yield pictures, torch.from_numpy(samples.targets[part])


def _read(folder: Path, part: str) -> Samples:
    return read_mnist(
        _there(folder, f"{part}-images-idx3-ubyte"), _there(folder, f"{part}-labels-idx1-ubyte")
    )


def _there(folder: Path, name: str) -> Path:
    """The file, gzipped as MNIST comes, or unpacked."""
    plain = folder / name
    return plain if plain.exists() else folder / f"{name}.gz"
