"""A perceptron whose middle layer has a million weights."""

from torch import nn


class Net(nn.Sequential):
    def __init__(self, *, width: int, features: int = 64, classes: int = 10) -> None:
        super().__init__(
            nn.Linear(features, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, classes),
        )
