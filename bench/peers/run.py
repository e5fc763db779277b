"""`scripts/bench peers`: openfed, the bare round and other frameworks on the same work, in one run.

N sites, a model of 8 float32 tensors and M MiB, a task that adds a constant, the weighted mean,
every process on this machine. Each framework is installed once, in an environment of its own
below the cache folder. `as shipped` polls as it ships; tuned polls as often as it can be told to.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench import report
from bench.meter import MIB
from bench.one import BARE, OPENFED, Case
from bench.one import apart as run_apart
from bench.peers import flower, nvflare, openfl
from bench.peers.drive import apart
from bench.peers.place import make_venv
from bench.rounds import middle, points_of

PEERS = {
    "openfl": (openfl.PACKAGES, ""),
    "nvflare": (nvflare.PACKAGES, ""),
    "flower": (flower.PACKAGES, flower.UNBOUND),
}
"""Name -> what is installed, and a requirement of it that is taken in any version."""
POINTS = "2x1,2x32"
Row = dict[str, Any]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench peers", description=__doc__)
    parser.add_argument("--points", type=points_of, default=points_of(POINTS))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--rounds", type=int, default=4, help="measured, after one to warm up")
    parser.add_argument("--as-shipped", action="store_true", help="also with the polling of old")
    parser.add_argument("--cache", default=str(Path.home() / ".cache" / "openfed-bench"))
    parser.add_argument("--out", help="the JSON file")
    given = parser.parse_args(arguments)
    names = given.peers.split(",")
    Path(given.cache).mkdir(parents=True, exist_ok=True)
    for name in names:
        make_venv(Path(given.cache), name, *PEERS[name])
    rows = []
    for n, mb in given.points:
        rows += at(n, mb, given.rounds + 1, names, given.as_shipped, given.cache)
    for row in rows:
        print(row.pop("failed", None) or "", end="", file=sys.stderr)
    report.table("The same work through every framework (medians; x: beside openfed)", rows)
    report.save("peers", rows, given.out)


def at(n: int, mb: int, rounds: int, names: list[str], shipped: bool, cache: str) -> list[Row]:
    """Every framework at one point; openfed first and last, as machines change while one looks."""
    ways = [True, False] if shipped else [True]
    ours, base = [], []
    found: list[Row] = []
    ours.append(run_apart(OPENFED, Case(n, mb, rounds)))
    base.append(run_apart(BARE, Case(n, mb, rounds)))
    for name in names:
        for tuned in ways:
            label = f"{name} {'tuned' if tuned else 'as shipped'}"
            result = apart(name, n, mb, rounds, tuned, cache)
            found.append(line(label, n, mb, [result]))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    ours.append(run_apart(OPENFED, Case(n, mb, rounds)))
    base.append(run_apart(BARE, Case(n, mb, rounds)))
    mine = line(OPENFED, n, mb, ours)
    found = [line(BARE, n, mb, base), mine, *found]
    for row in found:
        for key in ("s", "CPU s"):
            row[f"x {key}"] = row[key] / mine[key] if row[key] is not None else None
    return found


def line(label: str, n: int, mb: int, runs: list[Row]) -> Row:
    row: Row = {"N": n, "MB": mb, "framework": label}
    if "failed" in runs[0]:
        return {**row, "s": None, "CPU s": None, "failed": f"{label}: {runs[0]['failed']}\n"}
    wire = middle(runs, "wire") / MIB if runs[0]["counted"] else None
    return {
        **row,
        "s": middle(runs, "wall"),
        "CPU s": middle(runs, "cpu"),
        "server MB": max(run["peak_mb"]["server"] for run in runs),
        "loopback MB": wire,
    }
