"""A small convolutional network for 28 x 28 pictures."""

from torch import Tensor, nn


class Net(nn.Module):
    """9,226 parameters at width 8: two convolutions that halve the picture, one linear layer."""

    def __init__(self, *, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 5, stride=2, padding=2),  # [n, 1, 28, 28] -> [n, width, 14, 14]
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),  # -> [n, 2 * width, 7, 7]
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(2 * width * 49, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.body(pictures))
