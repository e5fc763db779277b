"""scikit-learn's digits, dealt out: the site of shard k of n has every n-th of them."""

from openfl.federated import PyTorchDataLoader

from .shards import digits


class DigitsInMemory(PyTorchDataLoader):
    """The site's share, in memory; a quarter of it is held out."""

    def __init__(self, data_path, batch_size, collaborator_count, num_classes, **kwargs):
        super().__init__(batch_size, **kwargs)
        pictures, labels = digits(int(data_path), collaborator_count)
        cut = len(labels) // 4
        self.X_valid, self.y_valid = pictures[:cut], labels[:cut]
        self.X_train, self.y_train = pictures[cut:], labels[cut:]
        self.num_classes = num_classes
