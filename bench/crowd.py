"""`scripts/bench crowd`: many sites at one aggregator, each with a certificate of its own.

The aggregator is a process of its own, as always; the sites are played by a few processes over
real mTLS links, one link a site. Every ask has to count every site once, and the last model is
compared with the formula. What is measured is the aggregator's process alone.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import alone, report, task, workspace
from bench.meter import cpu_seconds, descriptors, peak_mb, rss_mb, threads
from openfed.store.journal import Journal
from openfed.store.runs import JOURNAL
from openfed.tensors.model_file import read_model

MB = 0.1
Row = dict[str, Any]


def main(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)
    rows = []
    for n in [int(n) for n in (given.sites or ("20" if given.quick else "1000")).split(",")]:
        with tempfile.TemporaryDirectory(prefix="openfed-bench-", dir=given.folder) as root:
            rows.append(one(Path(root), n, given.rounds, given.processes))
        report.table("One aggregator, its process alone", [rows[-1]])
    report.save("crowd", rows, given.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench crowd", description=__doc__)
    parser.add_argument("--sites", help="numbers of sites: 1000, with --quick 20")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=4, help="that play the sites")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", help="where the workspace goes; it is removed")
    parser.add_argument("--out", help="the JSON file")
    return parser


@dataclass
class Seen:
    """What the aggregator's events told, and when (seconds of the monotonic clock)."""

    joined: int = 0
    all_here: float = 0.0
    rounds: list[float] = field(default_factory=list)  # how long each took
    held: dict[str, float] = field(default_factory=dict)  # the most, or the last

    def hear(self, event: alone.Event, n: int, pid: int) -> None:
        if event["event"] == "node.joined":
            self.joined += 1
            if self.joined == n:
                self.all_here = time.monotonic()
        if event["event"] == "round.ended":
            self.rounds.append(event["seconds"])
        if event["event"] in ("round.ended", "run.ended"):
            self.held = {"RSS": rss_mb(pid), "files": descriptors(pid), "threads": threads(pid)}


def one(root: Path, n: int, rounds: int, processes: int) -> Row:
    names = workspace.site_names(n)
    workspace.write(root, names, MB, rounds, content="index")
    begun, seen = time.monotonic(), Seen()
    with alone.aggregator(root) as serving:
        pid, started = serving.pid, time.monotonic()
        with alone.sites(serving, names, processes) as players:
            for event in serving.events(players):
                seen.hear(event, n, pid)
            ended, cpu, peak = time.monotonic(), cpu_seconds(pid), peak_mb(pid)
    check(serving, n, rounds)
    return {
        "N": n,
        "rounds": rounds,
        "certificates s": started - begun,
        "all here s": seen.all_here - started,
        "run s": ended - started,
        "a round s": float(np.median(seen.rounds)),
        "CPU s": cpu,
        "CPU ms a site and round": 1000 * cpu / n / rounds,
        "peak RSS": peak,
        **seen.held,
    }


def check(served: alone.Alone, n: int, rounds: int) -> None:
    """Every ask has counted every site once, and the model is the formula's."""
    journal = Journal(served.folder / JOURNAL)
    for row in journal.asks():
        counted = {reply.collaborator for reply in row.replies if not reply.code}
        if not row.met or len(counted) != n or len(row.replies) != n:
            raise SystemExit(f"{row.task} of round {row.round}: {len(counted)} of {n} counted")
    journal.close()
    last = read_model(served.workspace.model("bench", "last"))
    for tensor, (name, count) in enumerate(task.shapes(MB).items()):
        moved = np.zeros(count)
        for number in range(1, n + 1):
            moved += task.change(number, tensor, 0, count)
        expected = task.first(tensor, 0, count) + rounds * moved / n
        if not np.allclose(last[name], expected, rtol=1e-6, atol=1e-5):
            raise SystemExit(f"{name} is not what it should be")
