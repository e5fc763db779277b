"""Golden bytes: what was written once is read for ever, and is still what is written.

`golden.json` holds, for each chain, the bytes of one chunk and the bytes of the float32 values that
they decode to. A change of either is a new version of a stage. To write it anew for a new version:
`python tests/unit/codec/test_golden.py`.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from openfed.codec.base import Draw
from openfed.codec.chain import make_chain

FILE = Path(__file__).with_name("golden.json")
DRAW = Draw(seed=2026, entry=5, chunk=2)
N = 40


def chains():
    spec = importlib.util.spec_from_file_location("chains", Path(__file__).with_name("conftest.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CHAINS


CHAINS = chains()


def values():
    """Distinct magnitudes with few bits: every sum of squares is exact, in any order."""
    number = np.arange(N)
    return (((number * 27 + 5) % N + 1) * np.where(number % 3, 1, -1) / 16).astype(np.float32)


def made(stages):
    chain = make_chain(stages)
    data = bytes(chain.encode(values(), DRAW))
    out = np.empty(N, np.float32)
    chain.decode(data, out, DRAW)
    return {"bytes": data.hex(), "values": out.tobytes().hex()}


@pytest.mark.parametrize("name", CHAINS)
def test_golden_bytes_decode_to_the_same_bits(name):
    golden = json.loads(FILE.read_text())[name]
    out = np.empty(N, np.float32)
    make_chain(CHAINS[name]).decode(bytes.fromhex(golden["bytes"]), out, DRAW)
    assert out.tobytes().hex() == golden["values"]


@pytest.mark.parametrize("name", [name for name in CHAINS if "zstd" not in name])
def test_the_same_values_give_the_golden_bytes(name):
    """Not of zstandard, which writes other frames in other versions of its library."""
    assert made(CHAINS[name]) == json.loads(FILE.read_text())[name]


def test_there_are_golden_bytes_of_every_chain():
    assert json.loads(FILE.read_text()).keys() == CHAINS.keys()


if __name__ == "__main__":
    golden = {name: made(stages) for name, stages in CHAINS.items()}
    FILE.write_text(json.dumps(golden, indent=0) + "\n")
