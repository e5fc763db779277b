"""What sites of the benchmarks train: it is copied into the workspace as `src/task.py`.

All values are small multiples of a power of two, so that sums and means of them are exact in
float32: what a model should be after so many rounds is known to the last bit.
"""

import functools

import numpy as np

TENSORS = 8
STEP = 2.0**-10
BLOCK = 1 << 18


def site(source):
    """The plan's data loader: a site's data is its number, from 1."""
    return source


def shapes(mb):
    """Elements of each tensor of a model of so many MiB."""
    count = int(mb * (1 << 18)) // TENSORS
    return {f"layer{index}.weight": count for index in range(TENSORS)}


def first(tensor, start, count):
    """Elements of the first model, different all over: multiples of 2**-16 below 16."""
    index = np.arange(start, start + count, dtype=np.uint64) + np.uint64(97 * tensor)
    scattered = (index * np.uint64(2654435761) >> np.uint64(7)) & np.uint64(0xFFFFF)
    return scattered.astype(np.float32) * np.float32(2.0**-16)


def change(number, tensor, start, count):
    """What site `number` adds to elements, each round: multiples of 2**-10 below 1."""
    index = np.arange(start, start + count, dtype=np.uint64) + np.uint64(31 * tensor)
    scattered = (index * np.uint64(40503) + np.uint64(977 * number)) & np.uint64(1023)
    return scattered.astype(np.float32) * np.float32(STEP)


@functools.cache
def gaussian(count, seed):
    """Multiples of 2**-16, about normal: one block over and over, as it costs little."""
    block = np.random.default_rng(seed).standard_normal(min(count, BLOCK))
    return np.resize((np.round(block * 1311) / 65536).astype(np.float32), count)


def init(settings):
    """`content`: "index" for `first`, else gaussian, kept: a task begins with making it."""
    counts = enumerate(shapes(settings["mb"]).items())
    if settings["content"] == "index":
        return {name: first(tensor, 0, count) for tensor, (name, count) in counts}
    return {name: gaussian(count, tensor) for tensor, (name, count) in counts}


def train(record, number, settings):
    """Adds a constant to each weight, another at each site; with `noise`, gaussian values."""
    for tensor, values in enumerate(record.values()):
        if settings["noise"]:
            values += gaussian(values.size, (number, tensor, settings["round"]))
        else:
            values += np.float32(number * STEP)
    return record, 100, {}


def validate(record, number, settings):
    """A loss, another at each site."""
    return 100, {"loss": float(number)}
