"""OpenFL's side of the benchmark: numpy only."""

import os
import sys
import time

import numpy as np
from openfl.federated.data.loader import DataLoader
from openfl.federated.task.runner import TaskRunner
from openfl.utilities import TensorKey

sys.path.insert(0, os.environ["BENCH_SITE"])
import told

if cap := os.environ.get("BENCH_SLEEP_CAP"):
    from openfl.component.collaborator import collaborator

    collaborator.sleep = lambda seconds: time.sleep(min(float(seconds), float(cap)))


class Nothing(DataLoader):
    def __init__(self, *given, **settings):
        super().__init__(**settings)

    def get_feature_shape(self):
        return None

    def get_train_data_size(self):
        return 100

    def get_valid_data_size(self):
        return 100


class Adder(TaskRunner):
    def __init__(self, data_loader, mb=1, **settings):
        super().__init__(data_loader, **settings)
        self.mb = mb

    def train(self, col_name, round_num, input_tensor_dict, **given):
        moved = told.trained(input_tensor_dict, col_name, round_num + 1)
        tags = ("trained",)
        keyed = {TensorKey(k, col_name, round_num, False, tags): x for k, x in moved.items()}
        return keyed, {}

    def score(self, col_name, round_num, input_tensor_dict, **given):
        key = TensorKey("score", col_name, round_num, True, ("metric", "validate_agg"))
        return {key: np.array(0.5)}, {}

    def get_required_tensorkeys_for_function(self, func_name, **given):
        names = told.task.shapes(self.mb)
        return [TensorKey(name, "GLOBAL", 0, False, ("model",)) for name in names]

    def get_tensor_dict(self, with_opt_vars=False):
        return told.first(self.mb)

    def set_tensor_dict(self, tensor_dict, with_opt_vars=False):
        pass

    def initialize_tensorkeys_for_functions(self, with_opt_vars=False):
        pass

    def reset_opt_vars(self):
        pass
