"""Flower's sites: numpy only."""

import os
import sys
from collections import OrderedDict

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

sys.path.insert(0, os.environ["BENCH_SITE"])
import told

app = ClientApp()


@app.train()
def train(message, context):
    arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
    number = message.content["config"]["server-round"]
    moved = told.trained(arrays, context.node_config["name"], number)
    record = ArrayRecord(OrderedDict((name, Array(x)) for name, x in moved.items()))
    counted = MetricRecord({"num-examples": 100})
    return Message(content=RecordDict({"arrays": record, "metrics": counted}), reply_to=message)
