"""A task runner as OpenFL 1.5 has them: it overrides `validate`, and leaves training to OpenFL."""

import numpy as np
import torch
from openfl.federated import PyTorchTaskRunner
from openfl.utilities import TensorKey
from torch import nn, optim


def cross_entropy(output, target):
    return nn.functional.cross_entropy(output, target)


class Net(PyTorchTaskRunner):
    def __init__(self, device="cpu", **kwargs):
        super().__init__(device=device, **kwargs)
        self.init_network(device=self.device, **kwargs)
        self._init_optimizer()
        self.loss_fn = cross_entropy
        self.initialize_tensorkeys_for_functions()

    def _init_optimizer(self):
        self.optimizer = optim.Adam(self.parameters(), lr=0.05)

    def init_network(self, device, **kwargs):
        self.fc = nn.Linear(self.feature_shape[0], 2)
        self.to(device)

    def forward(self, x):
        return self.fc(x)

    def validate(self, col_name, round_num, input_tensor_dict, use_tqdm=False, **kwargs):
        self.rebuild_model(round_num, input_tensor_dict, validation=True)
        self.eval()
        right = samples = 0
        with torch.no_grad():
            for data, target in self.data_loader.get_valid_loader():
                found = self(torch.tensor(data)).argmax(dim=1)
                right += int((found == torch.tensor(target)).sum())
                samples += len(target)
        tags = ("metric", "validate_local" if kwargs["apply"] == "local" else "validate_agg")
        key = TensorKey("acc", col_name, round_num, True, tags)
        return {key: np.array(right / samples)}, {}

    def reset_opt_vars(self):
        self._init_optimizer()
