"""A small network, with its own loops."""

import numpy as np
import torch
from openfl.federated import PyTorchTaskRunner
from openfl.utilities import Metric
from torch import nn
from torch.nn import functional


class DigitsRunner(PyTorchTaskRunner):
    """One hidden layer, with a normalisation whose buffers travel too."""

    def __init__(self, device="cpu", width=16, lr=0.01, **kwargs):
        super().__init__(device=device, **kwargs)
        self.model = nn.Sequential(
            nn.Linear(64, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, self.data_loader.num_classes),
        )
        self.to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)
        self.loss_fn = functional.cross_entropy

    def forward(self, x):
        return self.model(x)

    def train_(self, train_dataloader):
        losses = []
        for pictures, labels in train_dataloader:
            pictures, labels = torch.tensor(pictures), torch.tensor(labels)
            self.optimizer.zero_grad()
            loss = self.loss_fn(self(pictures), labels)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return Metric(name="crossentropy_loss", value=np.array(np.mean(losses)))

    def validate_(self, validation_dataloader):
        right = samples = 0
        with torch.no_grad():
            for pictures, labels in validation_dataloader:
                found = self(torch.tensor(pictures)).argmax(dim=1).numpy()
                right += int((found == labels).sum())
                samples += len(labels)
        return Metric(name="accuracy", value=np.array(right / samples))
