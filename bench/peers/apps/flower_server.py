"""Flower's server: federated averaging, nothing evaluated."""

import os
import sys
from collections import OrderedDict

from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

sys.path.insert(0, os.environ["BENCH_SITE"])
import told

app = ServerApp()


@app.main()
def main(grid, context):
    settings = context.run_config
    first = OrderedDict((k, Array(x)) for k, x in told.first(settings["mb"]).items())
    nodes = settings["nodes"]
    strategy = FedAvg(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=nodes,
        min_evaluate_nodes=0,
        min_available_nodes=nodes,
    )
    strategy.start(grid=grid, num_rounds=settings["rounds"], initial_arrays=ArrayRecord(first))
