"""Matrix factorisation: what a user likes stays at the site, what items are like is shared."""

import torch
from torch import Tensor, nn


class Factors(nn.Module):
    """rating = mean + item's bias + user's bias + <user's vector, item's vector>.

    `user.weight` [users, rank + 1] is local by the plan's scope; its last column is the bias. All
    else is shared: `item.weight` [items, rank], `bias.weight` [items, 1], `mean`.
    """

    def __init__(self, *, users: int, items: int, rank: int) -> None:
        super().__init__()
        self.user = nn.Embedding(users, rank + 1)
        self.item = nn.Embedding(items, rank)
        self.bias = nn.Embedding(items, 1)
        self.mean = nn.Parameter(torch.zeros(1))
        nn.init.zeros_(self.user.weight)
        nn.init.zeros_(self.bias.weight)
        nn.init.normal_(self.item.weight, std=0.3)

    def forward(self, pairs: Tensor) -> Tensor:
        """pairs [n, 2] of (user's row at this site, item) -> ratings [n]."""
        user, item = self.user(pairs[:, 0]), pairs[:, 1]
        liked = (user[:, :-1] * self.item(item)).sum(1)
        return self.mean + self.bias(item)[:, 0] + user[:, -1] + liked


def per_user(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The sum over the batch's users of each user's mean squared error.

    So a step of a user's vector does not depend on how many users share the batch.
    """
    pairs, ratings = batch
    _, user, count = pairs[:, 0].unique(return_inverse=True, return_counts=True)
    return ((output - ratings) ** 2 / count[user]).sum()
