"""`scripts/bench rounds`: a round of openfed beside the bare round, where training adds a constant.

Both sides run as real processes over mTLS on the loopback device, one after the other, several
times. A round lasts from the end of one to the end of the next, as the server tells it; CPU time
is that of every process of the federation between these two moments.
"""

import argparse
import json
import sys
from typing import Any

from bench import report
from bench.meter import MIB, median
from bench.one import BARE, OPENFED, Case, Found, apart

POINTS = ((2, 1), (8, 1), (2, 32), (8, 32), (2, 256), (8, 64))
QUICK = ((2, 1), (2, 8))


def main(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)
    points = given.points or (QUICK if given.quick else POINTS)
    repeat = 1 if given.quick else given.repeat
    pipeline, rows, raw = _pipeline(given), [], []
    for n, mb in points:
        case = Case(n, mb, given.rounds + 1, pipeline, given.profile)
        found = side_by_side(case, repeat)
        rows.append(row(n, mb, found[BARE], found[OPENFED]))
        raw.append({"n": n, "mb": mb, **found})
        print(
            *(f"{k} {report.shown(x)} " for k, x in rows[-1].items()), file=sys.stderr, flush=True
        )
    runs = f"median of {given.rounds} rounds x {repeat}"
    report.table(f"A round without training: openfed beside bare ({runs})", rows)
    parts = [kinds(point["n"], point["mb"], point[BARE], point[OPENFED]) for point in raw]
    report.table("Its CPU-seconds by kind of process", parts)
    report.save("rounds", {"pipeline": pipeline, "table": rows, "runs": raw}, given.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench rounds", description=__doc__)
    parser.add_argument("--points", type=points_of, help="NxMB, as in 2x32,8x1")
    parser.add_argument("--rounds", type=int, default=5, help="measured, after one to warm up")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each side at each point")
    parser.add_argument("--quick", action="store_true", help="small models, one run of each")
    parser.add_argument("--uplink", type=json.loads, help="a pipeline as JSON: '[\"bf16\"]'")
    parser.add_argument("--downlink", type=json.loads)
    parser.add_argument("--profile", metavar="DIR", help="where the CPU goes, by perf")
    parser.add_argument("--out", help="the JSON file")
    return parser


def points_of(text: str) -> list[tuple[int, int]]:
    pairs = (point.split("x") for point in text.split(","))
    return [(int(n), int(mb)) for n, mb in pairs]


def _pipeline(given: argparse.Namespace) -> dict[str, Any] | None:
    links = {"uplink": given.uplink, "downlink": given.downlink}
    return {name: link for name, link in links.items() if link is not None} or None


def side_by_side(case: Case, repeat: int) -> dict[str, list[Found]]:
    """Runs of both sides in turns: both see the same machine."""
    found: dict[str, list[Found]] = {BARE: [], OPENFED: []}
    for _ in range(repeat):
        for side in found:
            found[side].append(apart(side, case))
    return found


def row(n: int, mb: int, base: list[Found], ours: list[Found]) -> dict[str, Any]:
    """One line of the table, from the runs of both sides."""
    wall, cpu = middle(ours, "wall"), middle(ours, "cpu")
    bare_wall, bare_cpu = middle(base, "wall"), middle(base, "cpu")
    wire = middle(ours, "wire") / MIB if ours[0]["counted"] else None
    return {
        "N": n,
        "MB": mb,
        "bare s": bare_wall,
        "openfed s": wall,
        "x wall": wall / bare_wall,
        "bare CPU s": bare_cpu,
        "openfed CPU s": cpu,
        "x CPU": cpu / bare_cpu,
        "bare server MB": max(run["peak_mb"]["server"] for run in base),
        "aggregator MB": max(run["peak_mb"]["server"] for run in ours),
        "wire MB": wire,
        "of 2NM": wire / (2 * n * mb) if wire is not None else None,
    }


def middle(runs: list[Found], key: str) -> float:
    return median(used[key] for run in runs for used in run["rounds"])


def kinds(n: int, mb: int, base: list[Found], ours: list[Found]) -> dict[str, Any]:
    def cpu(runs: list[Found], kind: str) -> float:
        return median(run["cpu_by_kind"].get(kind, 0.0) for run in runs)

    theirs = {f"bare {kind}": cpu(base, kind) for kind in ("server", "clients")}
    mine = {kind: cpu(ours, kind) for kind in ("server", "agents", "tasks", "launcher")}
    return {"N": n, "MB": mb, **theirs, **{f"openfed {kind}": x for kind, x in mine.items()}}
