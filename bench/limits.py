"""`scripts/bench limits`: what this machine can do, whatever openfed does with it.

One-thread work is timed by its CPU time (the best of several), transfers by wall and by the
CPU-seconds of both ends. GB = 1e9 bytes; MiB and KiB are binary.
"""

import argparse
import hashlib
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from blake3 import blake3

from bench import report, streams
from bench.meter import GB, MIB, best
from bench.one import BARE, Case, apart
from openfed.pki.files import ensure_federation

POINTS = ((2, 1), (8, 1), (2, 32), (8, 32), (2, 256), (8, 64))
Row = dict[str, Any]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench limits", description=__doc__)
    parser.add_argument("--only", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--out", help="the JSON file")
    given = parser.parse_args(arguments)
    found = {}
    for name in given.only.split(",") if given.only else PARTS:
        title, part = PARTS[name]
        found[name] = part(given.quick)
        report.table(title, found[name])
    report.save("limits", found, given.out)


# -- the wire --------------------------------------------------------------------------------------


def wire(quick: bool) -> list[Row]:
    """`x TLS`: CPU-seconds per GB beside those of the cheapest TLS socket."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="openfed-bench-") as folder:
        certs = Path(folder) / "cert"
        ensure_federation(certs, "bench", ("localhost",), ("site01",), time.time())
        for kind in ("tcp", "tls", "sync", "aio"):
            label = {"sync": "gRPC", "aio": "gRPC aio"}.get(kind, kind)
            found = streams.measure(kind, certs, 32 if quick else 512)
            rows += [{"through": label, **row} for row in found]
    least = min(row["CPU s/GB"] for row in rows if row["through"] == "tls")
    for row in rows:
        row["x TLS"] = row["CPU s/GB"] / least if "CPU s/GB" in row else None
        row.setdefault("ms", None)
    return rows


def bare_rounds(quick: bool) -> list[Row]:
    rows = []
    for n, mb in POINTS[:1] if quick else POINTS:
        found = apart(BARE, Case(n, mb, 6))
        rounds = found["rounds"]
        used = {
            key: sorted(one[key] for one in rounds)[len(rounds) // 2] for key in ("wall", "cpu")
        }
        moved = 2 * n * mb * MIB / GB
        row = {"N": n, "MB": mb, "s": used["wall"], "CPU s": used["cpu"]}
        rows.append(
            {**row, "CPU s/GB": used["cpu"] / moved, "server MB": found["peak_mb"]["server"]}
        )
    return rows


# -- one core --------------------------------------------------------------------------------------


def memory(quick: bool) -> list[Row]:
    """Over arrays that no cache holds; `x copy`: speed beside that of a copy."""
    count = (16 if quick else 256) * MIB // 4
    a, b = np.ones(count, np.float32), np.ones(count, np.float32)
    half, small = np.float32(0.5), np.empty(1 << 16, np.float32)

    def blocks() -> None:
        for at in range(0, count, small.size):
            part = a[at : at + small.size]
            np.multiply(b[at : at + small.size], half, out=small[: part.size])
            np.add(part, small[: part.size], out=part)

    work: dict[str, Callable[[], object]] = {
        "copy": lambda: np.copyto(a, b),
        "sum += x": lambda: np.add(a, b, out=a),
        "sum += w x, in blocks of 256 KiB": blocks,
        "sum += w x, with a temporary": lambda: np.add(a, b * half, out=a),
        "x + 1 into fresh memory": lambda: a + half,
        "first touch: tobytes": a.tobytes,
        "first touch: bytearray": lambda: bytearray(memoryview(b).cast("B")),
        "all finite?": lambda: np.isfinite(a).all(),
    }
    return _speeds(work, a.nbytes, "copy")


def hashing(quick: bool) -> list[Row]:
    data = np.random.default_rng(0).bytes((8 if quick else 64) * MIB)
    pieces = [data[at : at + MIB] for at in range(0, len(data), MIB)]

    def in_blocks(new: Callable[[], Any]) -> Callable[[], None]:
        def work() -> None:
            state = new()
            for piece in pieces:
                state.update(piece)
            state.digest()

        return work

    work: dict[str, Callable[[], object]] = {
        "SHA-256": in_blocks(hashlib.sha256),
        "BLAKE3, one thread": in_blocks(lambda: blake3(max_threads=1)),
        "CRC-32 (zlib)": lambda: [zlib.crc32(piece) for piece in pieces],
    }
    return _speeds(work, len(data), "SHA-256")


def compression(quick: bool) -> list[Row]:
    """Speeds are of the bytes that go in when packing (and come out when unpacking)."""
    count = (2 if quick else 16) * MIB // 4
    values = np.random.default_rng(0).standard_normal(count, dtype=np.float32) * np.float32(0.02)
    top = (values.view(np.uint32) >> 16).astype(np.uint16)
    data = {
        "gaussian float32": values.tobytes(),
        "its byte planes": values.view(np.uint8).reshape(-1, 4).T.tobytes(),
        "bfloat16 of it": top.tobytes(),
        "byte planes of the bfloat16": top.view(np.uint8).reshape(-1, 2).T.tobytes(),
    }
    rows = []
    for name, raw in data.items():
        for level in (1, 3):
            pack = zstandard.ZstdCompressor(level).compress
            packed = pack(raw)
            unpack = zstandard.ZstdDecompressor().decompress
            row = {"bytes": name, "level": level, "left": len(packed) / len(raw)}
            row["pack MB/s"] = len(raw) / 1e6 / best(lambda: pack(raw), 3)  # noqa: B023
            row["unpack MB/s"] = len(raw) / 1e6 / best(lambda: unpack(packed), 3)  # noqa: B023
            rows.append(row)
    return rows


def _speeds(work: dict[str, Callable[[], object]], size: int, base: str) -> list[Row]:
    speed = {name: size / GB / best(each, 5) for name, each in work.items()}
    return [
        {"what": name, "GB/s": found, f"x {base}": found / speed[base]}
        for name, found in speed.items()
    ]


PARTS: dict[str, tuple[str, Callable[[bool], list[Row]]]] = {
    "wire": ("One stream over the loopback device (CPU of both ends)", wire),
    "memory": ("Memory, one core", memory),
    "hashing": ("Hashing in pieces of 1 MiB, one core", hashing),
    "zstd": ("zstd, one core", compression),
    "bare": ("The bare round: gRPC and mTLS alone (bench/bare.py)", bare_rounds),
}
