"""A generated task: ten classes that overlap, each of three clusters, unevenly spread over sites.

A classifier that knew the clusters would be right in 99 of 100 cases; from 16,000 samples one
learns to be right in about 90.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]

CLASSES, CLUSTERS, FEATURES = 10, 3, 64
SPREAD = 0.6
"""Standard deviation of a cluster's centre in each feature; that of a sample around it is 1."""
TRAIN, TEST = 4000, 3000


class Mixture:
    """One site's samples, drawn by its number `source`; its own mix of classes."""

    def __init__(self, source: int, *, batch_size: int) -> None:
        self._train = samples(source, "train", TRAIN)
        self._validate = samples(source, "test", TEST)
        self._batch_size = batch_size

    def train(self, *, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        inputs, targets = self._train
        for rows in torch.randperm(TRAIN, generator=generator).split(self._batch_size):
            yield inputs[rows], targets[rows]

    def validate(self) -> Iterator[Batch]:
        inputs, targets = self._validate
        yield from zip(inputs.split(1000), targets.split(1000), strict=True)

    def __len__(self) -> int:
        return TRAIN


def samples(site: int, use: str, count: int) -> Batch:
    """Inputs [count, FEATURES] and targets [count]."""
    centres = np.random.default_rng(0).standard_normal((CLASSES, CLUSTERS, FEATURES)) * SPREAD
    shares = np.random.default_rng((site, 0)).dirichlet(np.full(CLASSES, 2.0))
    draw = np.random.default_rng((site, 1 if use == "train" else 2))
    targets = draw.choice(CLASSES, count, p=shares)
    middle = centres[targets, draw.integers(CLUSTERS, size=count)]
    inputs = middle + draw.standard_normal((count, FEATURES))
    return torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(targets)
