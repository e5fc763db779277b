"""`scripts/bench soak`: what the aggregator holds after hundreds of rounds.

A small model, trained and validated by sites that one process plays over real mTLS links. At the
end of each round the aggregator's process is looked at: memory, file descriptors, threads, and
what lies in the run's folder. Slopes are least squares over the rounds after the first tenth.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import alone, report, workspace
from bench.meter import anonymous_mb, cpu_seconds, descriptors, rss_mb, threads

MB = 0.1
KB = 1024
Row = dict[str, Any]

NONE = "none"


def main(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)
    rows, raw = [], []
    rounds = given.rounds or (30 if given.quick else 500)
    for kept in given.retention.split(","):
        with tempfile.TemporaryDirectory(prefix="openfed-bench-", dir=given.folder) as root:
            looks = one(Path(root), given.sites, rounds, kept)
        rows.append({"N": given.sites, "retention": kept, **slopes(looks, rounds)})
        raw.append({"retention": kept, "rounds": looks})
        report.table("The aggregator's process, and its folder, round after round", rows[-1:])
    report.save("soak", {"table": rows, "runs": raw}, given.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench soak", description=__doc__)
    parser.add_argument("--rounds", type=int, help="500, with --quick 30")
    parser.add_argument("--sites", type=int, default=16)
    parser.add_argument("--retention", default="none,3", help="of the updates: none, or rounds")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", help="where the workspaces go; they are removed")
    parser.add_argument("--out", help="the JSON file")
    return parser


def one(root: Path, n: int, rounds: int, kept: str) -> list[Row]:
    """What was found at the end of every round."""
    names = workspace.site_names(n)
    retention = NONE if kept == NONE else {"rounds": int(kept)}
    workspace.write(root, names, MB, rounds, content="index", scores=True, retention=retention)
    looks = []
    with alone.aggregator(root) as serving, alone.sites(serving, names) as players:
        for event in serving.events(players):
            if event["event"] == "round.ended":
                looks.append({"s": event["seconds"], **look(serving)})
    return looks


def look(served: alone.Alone) -> Row:
    pid, folder = served.pid, served.folder
    blobs = [path.stat().st_size for path in _files(folder / "blobs")]
    journal = sum(path.stat().st_size for path in folder.glob("journal.sqlite*"))
    return {
        "RSS MB": rss_mb(pid),
        "anonymous MB": anonymous_mb(pid),
        "files": descriptors(pid),
        "threads": threads(pid),
        "CPU s": cpu_seconds(pid),
        "journal KB": journal / KB,
        "blobs": len(blobs),
        "blobs KB": sum(blobs) / KB,
    }


def _files(folder: Path) -> list[Path]:
    """Those that are still there when they are looked at."""
    return [path for path in folder.iterdir() if path.exists()]


def slopes(looks: Sequence[Row], rounds: int) -> Row:
    """By how much each grows a round, and how it stands at the end."""
    settled = looks[rounds // 10 :]
    found: Row = {"rounds": rounds, "a round s": float(np.median([row["s"] for row in settled]))}
    for name in ("RSS MB", "anonymous MB", "files", "threads", "journal KB", "blobs KB"):
        values = [row[name] for row in settled]
        found[name] = values[-1]
        found[f"{name} a round"] = float(np.polyfit(range(len(values)), values, 1)[0])
    found["CPU s a round"] = (settled[-1]["CPU s"] - settled[0]["CPU s"]) / (len(settled) - 1)
    return found
