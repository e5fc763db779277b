"""scikit-learn's handwritten digits: 1,797 pictures, dealt out to the sites."""

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


class Digits:
    """One site's share; every fifth of its pictures is held out for validation.

    `source` is what local.yaml says for the site: {shard: 1, of: 2} is the first of two shares.
    """

    def __init__(self, source: Mapping[str, int], *, batch_size: int = 32) -> None:
        pictures, labels = read_digits()
        order = np.random.default_rng(0).permutation(len(labels))  # the same at every site
        own = torch.from_numpy(order[source["shard"] - 1 :: source["of"]])
        held_out = torch.arange(len(own)) % 5 == 4
        self._train, self._validate = own[~held_out], own[held_out]
        self._pictures, self._labels, self._batch_size = pictures, labels, batch_size

    def train(self, *, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        return self._batches(self._train[torch.randperm(len(self._train), generator=generator)])

    def validate(self) -> Iterator[Batch]:
        return self._batches(self._validate)

    def __len__(self) -> int:
        return len(self._train)

    def _batches(self, rows: Tensor) -> Iterator[Batch]:
        for part in rows.split(self._batch_size):
            yield self._pictures[part], self._labels[part]


def read_digits() -> Batch:
    """Pictures [1797, 1, 8, 8] in 0 to 1, labels [1797].

    The same as sklearn.datasets.load_digits(), but read from its file: importing scikit-learn
    takes two seconds, reading takes none.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("scikit-learn brings the digits: pip install scikit-learn")
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.float32))
    return table[:, :64].reshape(-1, 1, 8, 8) / 16, table[:, 64].long()
