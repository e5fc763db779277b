"""The task of the fault runs: its result depends on model, site and round alone; it takes a moment.

`every` says how long, in seconds: a training is between once and four times that. `weights`: how
many numbers of float32 the model has.
"""

import time

import numpy as np


def site(source):
    return int(source)


def init(settings):
    return {
        "bias": np.zeros(3),
        "seen": np.zeros((), np.int64),
        "weights": np.zeros(settings["weights"], np.float32),
    }


def train(record, data, settings):
    draw = np.random.default_rng(settings["seed"])
    time.sleep(settings["every"] * (1 + 3 * draw.random()))
    wanted = draw.normal(size=settings["weights"]).astype(np.float32)
    record["weights"] -= 0.1 * (record["weights"] - wanted)
    record["bias"] += draw.normal(size=3) / 7
    record["seen"] += data
    return record, 10 * data, {"loss": float(np.mean(record["weights"] ** 2))}


def validate(record, data, settings):
    return data, {"loss": float(np.mean(record["weights"] ** 2))}
