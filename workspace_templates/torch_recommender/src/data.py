"""Generated ratings of users who like what people of their kind like.

With ratings of your own, replace `site_ratings`; docs/data.md has a reader of MovieLens-1M's files.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

ITEMS, RANK, NOISE = 150, 4, 0.25
SEED = 20_261_122

Batch = tuple[Tensor, Tensor]


class Ratings:
    """One site's users. Every fifth is never trained with, only scored.

    `source` is what local.yaml says for the site: {shard: 1, of: 4}.
    """

    def __init__(
        self, source: Mapping[str, int], *, users: int, each: int = 40, batch_size: int = 50
    ) -> None:
        """`users`: at this site; `each`: ratings of a user; `batch_size`: users a batch."""
        self._pairs, self._ratings = site_ratings(source["shard"], users, each)
        rows = torch.arange(users)
        self._held, self._train = rows[rows % 5 == 4], rows[rows % 5 != 4]
        self._batch_size = batch_size

    def train(self, *, seed: int) -> Iterator[Batch]:
        order = torch.randperm(len(self._train), generator=torch.Generator().manual_seed(seed))
        return self._batches(self._train[order])

    def validate(self) -> Iterator[Batch]:
        return self._batches(self._held)

    def __len__(self) -> int:
        return len(self._train) * self._pairs.shape[1]

    def _batches(self, users: Tensor) -> Iterator[Batch]:
        for part in users.split(self._batch_size):
            yield self._pairs[part].flatten(0, 1), self._ratings[part].flatten()


def site_ratings(shard: int, users: int, each: int) -> tuple[Tensor, Tensor]:
    """(user, item) [users, each, 2] and their ratings [users, each].

    A rating is 3.5 + <user, item> + noise of standard deviation 0.25; that of the rest is 1. The
    items are the same at every site, the users are others.
    """
    item = np.random.default_rng(SEED).normal(0, 0.5, (ITEMS, RANK))
    rng = np.random.default_rng((SEED, shard))
    user = rng.normal(0, 1, (users, RANK))
    rated = np.array([rng.choice(ITEMS, each, replace=False) for _ in range(users)])
    ratings = 3.5 + np.einsum("ur,uer->ue", user, item[rated]) + rng.normal(0, NOISE, rated.shape)
    pairs = np.stack([np.broadcast_to(np.arange(users)[:, None], rated.shape), rated], axis=2)
    return torch.from_numpy(pairs), torch.from_numpy(ratings.astype(np.float32))
