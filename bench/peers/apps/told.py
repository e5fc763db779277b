"""What every site does in every framework: add its constant, and tell that it has."""

import json
import os
import socket

import numpy as np
import task


def first(mb):
    return task.init({"mb": mb, "content": "gaussian"})


def number(who):
    """1 for site01, site-1, col1."""
    return int("".join(c for c in str(who) if c.isdigit()))


def trained(arrays, who, round_number):
    """New arrays, each weight moved by the site's constant. `round_number` counts from 1."""
    step = np.float32(number(who) * task.STEP)
    moved = {name: np.add(value, step, dtype=np.float32) for name, value in arrays.items()}
    weight = float(moved["layer0.weight"].reshape(-1)[0])
    told = {"round": int(round_number), "who": number(who), "weight": weight}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(json.dumps(told).encode(), os.environ["BENCH_TOLD"])
    return moved
