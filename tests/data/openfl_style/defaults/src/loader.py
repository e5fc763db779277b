"""Points around two centres, drawn by the size of the file that names the site."""

import numpy as np
from openfl.federated.data.loader_pt import PyTorchDataLoader


class Blobs(PyTorchDataLoader):
    def __init__(self, data_path, batch_size, **kwargs):
        super().__init__(batch_size, random_seed=3, **kwargs)
        draw = np.random.default_rng(len(data_path))
        labels = np.arange(80) % 2
        points = draw.normal(size=(80, 4)).astype(np.float32) + 2 * labels[:, None]
        points = points.astype(np.float32)
        self.X_train, self.y_train = points[:60], labels[:60]
        self.X_valid, self.y_valid = points[60:], labels[60:]
