"""`scripts/bench memory`: peak memory of the aggregator, and a model larger than its memory.

The aggregator is a process of its own, as always; the sites are played by one process over real
mTLS links, so that many of them fit on one machine. The new model is compared, bit by bit, with
the formula. `--big` needs about 60 GB of disk and 16 GiB of memory, and root for the cgroup.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import alone, report, task, workspace
from bench.meter import MIB, anonymous_mb, peak_mb
from openfed.tensors.model_file import read_model
from openfed.workspace import Workspace

ROUNDS = 2
MEAN, MEDIAN = "fedavg", "median"
CHUNK = 1 << 20
BLOCK_MB = 0.25
"""A block of the frame: 65,536 float32."""

Row = dict[str, Any]


def main(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)
    rows = big(given) if given.big else ordinary(given)
    report.save("memory", rows, given.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench memory", description=__doc__)
    parser.add_argument("--mb", type=int, help="MiB of the model: 64, with --big 6144")
    parser.add_argument("--sites", help="numbers of sites: 2,32, with --big 1")
    parser.add_argument("--strategies", default=f"{MEAN},{MEDIAN}")
    parser.add_argument("--quick", action="store_true", help="a small model, 2 and 4 sites")
    parser.add_argument("--big", action="store_true", help="the aggregator in a memory cgroup")
    parser.add_argument("--limit-mb", type=int, default=1024, help="of that cgroup")
    parser.add_argument("--folder", help="where the workspaces go; they are removed")
    parser.add_argument("--out", help="the JSON file")
    return parser


def ordinary(given: argparse.Namespace) -> list[Row]:
    """Every strategy at every number of sites; `x first`: beside the first number of sites."""
    mb = given.mb or (4 if given.quick else 64)
    counts = [int(n) for n in (given.sites or ("2,4" if given.quick else "2,32")).split(",")]
    rows: list[Row] = []
    for strategy in given.strategies.split(","):
        first = None
        for n in counts:
            found = one(n, mb, strategy, given.folder)
            first = first or found.peak
            limit = 300 + 2 * BLOCK_MB * n
            ratio = {"x first": found.peak / first, "300 MB + 2 blocks N": limit}
            rows.append({"strategy": strategy, "N": n, "MB": mb, **found.row(), **ratio})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    report.table("Peak memory of the aggregator (MiB)", rows)
    return rows


def big(given: argparse.Namespace) -> list[Row]:
    """A model that is larger than the memory that the aggregator may use, page cache included."""
    rows, mb = [], given.mb or 6144
    for n in [int(n) for n in (given.sites or "1").split(",")]:
        with memory_group(given.limit_mb) as group:
            found = one(n, mb, MEAN, given.folder, group)
            row = {"N": n, "MB": mb, "limit MB": given.limit_mb, **found.row(), **used(group)}
        rows.append(row)
    report.table("A model beyond the aggregator's memory", rows)
    return rows


# -- one run ---------------------------------------------------------------------------------------


@dataclass
class Peak:
    """What the aggregator held at most, in MiB, and how long the run took."""

    peak: float = 0.0
    anonymous: float = 0.0
    seconds: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)

    def watch(self, pid: int) -> None:
        while not self.over.wait(0.05):
            self.look(pid)

    def look(self, pid: int) -> None:
        self.peak = max(self.peak, peak_mb(pid))
        self.anonymous = max(self.anonymous, anonymous_mb(pid))

    def row(self) -> Row:
        return {"peak": self.peak, "anonymous": self.anonymous, "run s": self.seconds}


def one(n: int, mb: int, strategy: str, folder: str | None, group: Path | None = None) -> Peak:
    with tempfile.TemporaryDirectory(prefix="openfed-bench-", dir=folder) as root:
        names = workspace.site_names(n)
        workspace.write(Path(root), names, mb, ROUNDS, None, strategy, content="index")
        peak = Peak()
        with alone.aggregator(Path(root)) as serving:
            if group is not None:
                (group / "cgroup.procs").write_text(str(serving.pid))
            threading.Thread(target=peak.watch, args=(serving.pid,), daemon=True).start()
            begun = time.monotonic()
            try:
                with alone.sites(serving, names) as players:
                    for _ in serving.events(players):
                        pass
                    peak.look(serving.pid)
                    peak.seconds = time.monotonic() - begun
            finally:
                peak.over.set()
        check(serving.workspace, mb, n, strategy)
        return peak


def check(opened: Workspace, mb: int, n: int, strategy: str) -> None:
    """The new model is the formula's, bit by bit, wherever one looks."""
    last = read_model(opened.model("bench", "last"))
    for tensor, (name, count) in enumerate(task.shapes(mb).items()):
        for start in range(0, count, CHUNK):
            some = min(CHUNK, count - start)
            moved = [task.change(i, tensor, start, some) for i in range(1, n + 1)]
            middle = np.median(moved, axis=0) if strategy == MEDIAN else np.mean(moved, axis=0)
            expected = task.first(tensor, start, some) + np.float32(ROUNDS) * middle
            if not np.array_equal(last[name][start : start + some], expected.astype(np.float32)):
                raise SystemExit(f"{name} is not what it should be from element {start} on")


# -- the memory cgroup -----------------------------------------------------------------------------

ROOT = Path("/sys/fs/cgroup")


@contextmanager
def memory_group(limit_mb: int) -> Iterator[Path]:
    """A cgroup with so much memory, page cache included, and no swap; version 1, or 2."""
    second = (ROOT / "cgroup.controllers").exists()
    base = ROOT if second else ROOT / "memory"
    if not second and not base.is_dir():
        base.mkdir(parents=True)
        subprocess.run(["mount", "-t", "cgroup", "-o", "memory", "none", str(base)], check=True)
    group = base / f"openfed-bench-{time.time_ns()}"
    group.mkdir()
    try:
        limits = {"memory.max": limit_mb * MIB, "memory.swap.max": 0}
        if not second:
            limits = {"memory.limit_in_bytes": limit_mb * MIB, "memory.swappiness": 0}
        for name, value in limits.items():
            (group / name).write_text(str(value))
        yield group
    finally:
        group.rmdir()


def used(group: Path) -> Row:
    """Most memory of the group, and how often it was at its limit."""
    for peak, hits in (("memory.peak", None), ("memory.max_usage_in_bytes", "memory.failcnt")):
        if (group / peak).exists():
            row: Row = {"group MB": int((group / peak).read_text()) / MIB}
            return {**row, "times at limit": int((group / hits).read_text()) if hits else None}
    return {}
