"""`scripts/bench codecs`: speed, size and error of every codec, beside theory and beside others.

One core, CPU time, the best of several, over chunks as openfed cuts them. MB = 1e6 bytes of
float32. `bits` counts every byte of a chunk. `error` is the relative L2 error. `over R(D)` is how
many bits more than the rate-distortion bound of a gaussian source, D = 4^-R, at this error.
"""

import argparse
import functools
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import zstandard

from bench import report
from bench.meter import best
from bench.samples import SAMPLES, pieces
from openfed.codec.base import CHUNK, Draw
from openfed.codec.chain import Chain, make_chain
from openfed.typing import Array

Row = dict[str, Any]
Stages = tuple[tuple[str, Mapping[str, Any]], ...]
FORMS = {"quantize", "lloyd", "randomk"}
"""What has a biased and an unbiased form worth telling apart here."""


def stages(*given: str | dict[str, Mapping[str, Any]]) -> Stages:
    """As a plan has them: `"rotate"`, `{"lloyd": {"bits": 4}}`."""
    return tuple((s, {}) if isinstance(s, str) else next(iter(s.items())) for s in given)


def _quantize(bits: int) -> dict[str, Mapping[str, Any]]:
    return {"quantize": {"bits": bits}}


def _lloyd(bits: int) -> dict[str, Mapping[str, Any]]:
    return {"lloyd": {"bits": bits}}


CHAINS: tuple[Stages, ...] = (
    stages("zstd"),
    stages("fp16"),
    stages("bf16"),
    stages("bf16", "zstd"),
    *(stages(_quantize(bits)) for bits in (8, 4, 2, 1)),
    stages(_quantize(8), "zstd"),
    *(stages("rotate", _lloyd(bits)) for bits in (8, 4, 2, 1)),
    stages(_lloyd(4)),
    *(
        stages("rotate", {"grid": {"step": s}}, "entropy")
        for s in (1.0, 0.516, 0.258, 0.129, 0.0645)
    ),
    stages({"grid": {"step": 0.258}}, "zstd"),
    stages({"kmeans": {"centers": 16}}),
    stages({"topk": {"fraction": 0.01}}),
    stages({"topk": {"fraction": 0.01}}, _quantize(8), "zstd"),
    stages({"randomk": {"fraction": 0.1}}),
    stages({"ternary": {"fraction": 0.01}}),
)

PUBLISHED: tuple[Row, ...] = (
    {"pipeline": "STC, p = 0.1", "compress MB/s": 3.4, "decompress": 185.0, "error": 0.959},
    {"pipeline": "SKC, p = 0.1, k = 6", "compress MB/s": 0.8, "decompress": 78.0, "error": 0.751},
    {"pipeline": "KC, k = 6", "compress MB/s": 0.21, "decompress": 50.0, "error": 0.241},
    {"pipeline": "EDEN 8 bit", "compress MB/s": 2.1, "decompress": 0.95, "error": 0.0063},
    {"pipeline": "EDEN 4 bit", "compress MB/s": 0.85, "decompress": 0.86, "error": 0.096},
    {"pipeline": "EDEN 1 bit", "compress MB/s": 3.5, "decompress": 3.6, "error": 0.741},
)
"""OpenFL 1.9 on 10 million gaussian float32, on this kind of machine, 2026-11-21."""
RATIOS = (30.5, 26.7, 8.5, 3.8, 7.6, 30.5)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench codecs", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few values, once")
    parser.add_argument("--count", type=int, help="values of a sample (4 million)")
    parser.add_argument("--only", help="chains that name this codec")
    parser.add_argument("--out", help="the JSON file")
    given = parser.parse_args(arguments)
    count, repeat = (1 << 17, 1) if given.quick else (1 << 22, 3)
    rows, own = [], []
    for name, make in SAMPLES.items():
        tensors = make(given.count or count)
        chosen = [c for c in CHAINS if not given.only or given.only in dict(c)]
        found = [
            {"values": name, **measure(each, form, tensors, repeat)}
            for each in chosen
            for form in (("biased", "unbiased") if FORMS & dict(each).keys() else ("",))
        ]
        report.table(f"Codecs on {name} values (one core)", found)
        rows += found
        own.append({"values": name, **zstd_itself(tensors, repeat)})
    report.table("The zstd chain beside zstd itself on the same bytes, in chunks (MB/s)", own)
    others = [{**row, "bits": 32 / r} for row, r in zip(PUBLISHED, RATIOS, strict=True)]
    report.table("OpenFL 1.9 on gaussian values, measured 2026-11-21", others)
    report.save("codecs", {"chains": rows, "zstd": own, "openfl": others}, given.out)


def label(chosen: Stages) -> str:
    return " ".join(
        name + "".join(f" {value}" for value in settings.values()) for name, settings in chosen
    )


def measure(chosen: Stages, form: str, tensors: list[Array], repeat: int) -> Row:
    """Speed, bits and error of a chain over all chunks of the tensors."""
    chain = make_chain(chosen, biased=form != "unbiased")
    given = [(Draw(7, entry, chunk), x) for entry, chunk, x in pieces(tensors)]
    packed = [(draw, bytes(chain.encode(x, draw)), x.size) for draw, x in given]
    out = np.empty(CHUNK, np.float32)

    def encode() -> None:
        for draw, x in given:
            chain.encode(x, draw)

    def decode() -> None:
        for draw, data, size in packed:
            chain.decode(data, out[:size], draw)

    count = sum(x.size for _, x in given)
    bits = 8 * sum(len(data) for _, data, _ in packed) / count
    wrong = error(chain, packed, [x for _, x in given])
    codes = [THEORY[name] for name, _ in chosen if name in THEORY]
    theory = codes[0](chosen, form, [x for _, x in given]) if codes else None
    return {
        "chain": label(chosen),
        "form": form,
        "bits": bits,
        "x smaller": 32 / bits,
        "error": wrong,
        "theory": theory,
        "x theory": wrong / theory if theory else None,
        "over R(D)": bits + math.log2(wrong) if 0 < wrong < 1 else None,
        "encode MB/s": 4e-6 * count / best(encode, repeat),
        "decode MB/s": 4e-6 * count / best(decode, repeat),
    }


def error(chain: Chain, packed: list[tuple[Draw, bytes, int]], values: list[Array]) -> float:
    """|x - decoded| / |x| over all chunks."""
    lost = whole = 0.0
    for (draw, data, size), x in zip(packed, values, strict=True):
        out = np.empty(size, np.float32)
        chain.decode(data, out, draw)
        lost += float(np.square(x - out, dtype=np.float64).sum())
        whole += float(np.square(x, dtype=np.float64).sum())
    return math.sqrt(lost / whole)


def zstd_itself(tensors: list[Array], repeat: int) -> Row:
    """Level 1, on the chunks' bytes as they lie and by byte planes, beside the chain."""
    values = [x for _, _, x in pieces(tensors)]
    size = sum(x.nbytes for x in values)
    pack, unpack = zstandard.ZstdCompressor(1), zstandard.ZstdDecompressor()
    chain, draw = make_chain(stages("zstd")), Draw(7, 0, 0)
    out = np.empty(CHUNK, np.float32)
    ours = [bytes(chain.encode(x, draw)) for x in values]

    def decode() -> None:
        for data, x in zip(ours, values, strict=True):
            chain.decode(data, out[: x.size], draw)

    row: Row = {
        "chain": 1e-6 * size / best(lambda: [chain.encode(x, draw) for x in values], repeat)
    }
    row["chain out"] = 1e-6 * size / best(decode, repeat)
    row["chain left"] = sum(map(len, ours)) / size
    raw = [x.tobytes() for x in values]
    planes = [x.view(np.uint8).reshape(-1, 4).T.tobytes() for x in values]
    for name, blobs in (("bytes", raw), ("planes", planes)):
        done = [pack.compress(blob) for blob in blobs]
        speed = 1e-6 * size / best(lambda: [pack.compress(b) for b in blobs], repeat)  # noqa: B023
        back = 1e-6 * size / best(lambda: [unpack.decompress(d) for d in done], repeat)  # noqa: B023
        row |= {f"zstd {name}": speed, f"{name} out": back}
        row |= {f"{name} left": sum(map(len, done)) / size}
        row |= {f"x {name}": row["chain"] / speed, f"x {name} out": row["chain out"] / back}
    return row


# -- theory ----------------------------------------------------------------------------------------


@functools.cache
def lloyd_max(levels: int) -> float:
    """Mean squared error of the best quantiser of a unit gaussian, by Lloyd's iteration."""
    wide = math.sqrt(3)  # the density of levels tends to the cube root of the gaussian's
    middles = [quantile((i + 0.5) / levels) * wide for i in range(levels)]
    for _ in range(500):
        middles = [centroid(a, b) for a, b in pairwise(edges_between(middles))]
    kept = 0.0
    for (a, b), middle in zip(pairwise(edges_between(middles)), middles, strict=True):
        kept += (cdf(b) - cdf(a)) * middle * (2 * centroid(a, b) - middle)
    return 1 - kept


def edges_between(middles: list[float]) -> list[float]:
    return [-math.inf, *((a + b) / 2 for a, b in pairwise(middles)), math.inf]


def cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def centroid(a: float, b: float) -> float:
    """Mean of a unit gaussian between two edges; worked out on the side where numbers are small."""
    if a + b > 0:
        return -centroid(-b, -a)
    return (
        (math.exp(-a * a / 2) - math.exp(-b * b / 2)) / math.sqrt(2 * math.pi) / (cdf(b) - cdf(a))
    )


def quantile(p: float) -> float:
    low, high = -40.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if cdf(middle) < p else (low, middle)
    return (low + high) / 2


def of_lloyd(chosen: Stages, form: str, values: list[Array]) -> float | None:
    """sqrt(D), or sqrt(D / (1 - D)) unbiased; of a gaussian, which a rotation makes of anything."""
    if chosen[0][0] != "rotate":
        return None
    lost = lloyd_max(1 << int(chosen[1][1]["bits"]))
    return math.sqrt(lost if form == "biased" else lost / (1 - lost))


def of_quantize(chosen: Stages, form: str, values: list[Array]) -> float | None:
    """A step's rounding error is uniform: step^2 / 12, and twice that when it is stochastic."""
    bits = int(chosen[0][1].get("bits", 1)) if chosen[0][0] == "quantize" else 1
    if bits < 4:
        return None
    lost = whole = 0.0
    for x in values:
        for group in (x[at : at + 1024] for at in range(0, x.size, 1024)):
            step = float(np.abs(group).max()) / (2 ** (bits - 1) - 1)
            lost += group.size * step**2 / (12 if form == "biased" else 6)
            whole += float(np.square(group, dtype=np.float64).sum())
    return math.sqrt(lost / whole)


def of_topk(chosen: Stages, form: str, values: list[Array]) -> float | None:
    """What the small ones hold of the energy."""
    if len(chosen) > 1:
        return None
    lost = whole = 0.0
    for x in values:
        energy = np.sort(np.square(x, dtype=np.float64))
        left = max(1, math.ceil(float(chosen[0][1]["fraction"]) * x.size))
        lost, whole = lost + float(energy[:-left].sum()), whole + float(energy.sum())
    return math.sqrt(lost / whole)


def of_randomk(chosen: Stages, form: str, values: list[Array]) -> float | None:
    fraction = float(chosen[0][1]["fraction"])
    return math.sqrt(1 - fraction if form == "biased" else 1 / fraction - 1)


THEORY: dict[str, Callable[[Stages, str, list[Array]], float | None]] = {
    "lloyd": of_lloyd,
    "quantize": of_quantize,
    "topk": of_topk,
    "randomk": of_randomk,
}
