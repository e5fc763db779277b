"""A small convolutional network for 8 x 8 pictures of digits."""

from torch import Tensor, nn


class Net(nn.Module):
    """6,090 parameters: two convolutions and one linear layer."""

    def __init__(self, *, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),  # [n, 1, 8, 8] -> [n, width, 8, 8]
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),  # -> [n, 2 * width, 2, 2]
            nn.Flatten(),
        )
        self.head = nn.Linear(8 * width, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.body(pictures))
