"""`scripts/faults --seed S --minutes M`: run after run under a schedule of faults, each checked.

A run's faults come in its first seconds; then it is left alone and must end. Runs take turns: in
one every site must answer, and the model must be that of the undisturbed run; in the next two of
three are enough, and the model must follow from the journal.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults import network
from tests.faults.check import Ran, Violation, violations
from tests.faults.federation import (
    COHORTS,
    Federation,
    Prepared,
    free_port,
    lay_out,
    prepare,
)
from tests.faults.nemesis import Done, Field, play
from tests.faults.network import Proxies, Site, make_site
from tests.faults.schedule import AGENTS, KINDS, SITES, TASKS, Schedule, schedule

ROUNDS = 50
FAULTS_S = 25.0
"""How long a run is disturbed."""
START_S = 60.0
"""How long its nodes may take to start."""
CALM_S = 180.0
"""How long an undisturbed rest of a run may take: pauses between attempts reach 10 s."""
FAREWELL_S = 15.0
DISK = "48m"
ENTERED = "OPENFED_FAULTS_NAMESPACES"


@dataclass(frozen=True)
class Lab:
    """What outlives a run. `sites`: each site's namespace, with root."""

    folders: dict[str, Path]
    sites: dict[str, Site]
    proxies: Proxies
    port: int
    netem: bool

    @property
    def addresses(self) -> dict[str, str]:
        return {n: f"{_dialled(way.host)}:{way.port}" for n, way in self.proxies.ways.items()}


def _dialled(host: str) -> str:
    return "localhost" if host == "127.0.0.1" else host


def main(words: Sequence[str]) -> int:
    given = _parser().parse_args(words)
    apart = network.can_namespace()
    kinds = [name for name in given.only or KINDS if apart or not KINDS[name].root]
    left_out = [name for name in given.only or KINDS if name not in kinds]
    if left_out:
        print(f"left out, for want of root: {', '.join(left_out)}")
    if given.show:
        for run in range(given.show):
            print(f"run {run}")
            _show(schedule(given.seed, run, kinds, FAULTS_S))
        return 0
    if apart and ENTERED not in os.environ:
        os.environ[ENTERED] = "1"
        sys.stdout.flush()
        network.into_namespaces([sys.executable, "-m", "tests.faults", *words])
    return _disturb(given, kinds, left_out, apart)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--only", action="append", choices=list(KINDS), help="may be repeated")
    parser.add_argument("--cohort", choices=list(COHORTS), help="not both in turns")
    parser.add_argument("--show", type=int, metavar="RUNS", help="print what would be done")
    parser.add_argument("--out", type=Path, help="write the figures, as JSON")
    parser.add_argument("--keep", type=Path, help="where the folders of violated runs are kept")
    return parser


def _show(planned: Schedule) -> None:
    for fault in sorted((fault for hand in planned for fault in hand), key=lambda f: f.at_s):
        print(f"  {fault}")


def _disturb(given: argparse.Namespace, kinds: list[str], left_out: list[str], apart: bool) -> int:
    end = time.monotonic() + given.minutes * 60
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="openfed-faults-") as made, ExitStack() as stack:
        lab = _make_lab(Path(made), apart, stack)
        hosts = [_dialled(way.host) for way in lab.proxies.ways.values()]
        cohorts = [given.cohort] if given.cohort else list(COHORTS)
        ready = [prepare(Path(made) / c, c, lab.port, ROUNDS, hosts) for c in cohorts]
        while not results or time.monotonic() < end:
            number = len(results)
            planned = schedule(given.seed, number, kinds, FAULTS_S)
            turn = number % len(cohorts)
            results.append(_one(lab, cohorts[turn], ready[turn], number, planned))
            if results[-1]["violations"] and given.keep:
                kept = given.keep / f"seed{given.seed}-run{number}"
                shutil.copytree(made, kept, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    told = summarise(given.seed, results, left_out)
    print(json.dumps(told, indent=2))
    if given.out:
        given.out.write_text(json.dumps({**told, "each": results}, indent=2) + "\n")
    return 1 if told["violations"] else 0


def _make_lab(root: Path, apart: bool, stack: ExitStack) -> Lab:
    sites: dict[str, Site] = {}
    folders = {name: root / "nodes" / name for name in ("aggregator", *SITES)}
    for folder in folders.values():
        folder.mkdir(parents=True)
        if apart:
            network.sh("mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(folder))
            stack.callback(network.sh, "umount", "-l", str(folder))
    for number, name in enumerate(SITES, 1):
        if apart:
            sites[name] = make_site(number)
            stack.callback(sites[name].holder.kill)
    port = free_port()
    hosts = {name: sites[name].host if apart else "127.0.0.1" for name in SITES}
    proxies = Proxies(hosts, port)
    stack.callback(proxies.close)
    return Lab(folders, sites, proxies, port, apart and network.has_netem())


def _one(
    lab: Lab, cohort: str, prepared: Prepared, number: int, planned: Schedule
) -> dict[str, Any]:
    """One run, disturbed and checked."""
    shutil.rmtree(lab.folders["aggregator"].parent / "said", ignore_errors=True)
    lay_out(prepared, lab.folders, lab.addresses)
    nodes = Federation(lab.folders, {name: site.enter for name, site in lab.sites.items()})
    done = Done()
    apart = bool(lab.sites)
    place = Field(nodes, lab.proxies, f"127.0.0.1:{lab.port}", lab.sites, apart, lab.netem, done)
    before, began = lab.proxies.resets, time.monotonic()
    try:
        ended = _until_it_ends(place, planned, began)
        left = nodes.farewell(FAREWELL_S)
    finally:
        nodes.kill_all()
    seconds = time.monotonic() - began
    done.seen["connections reset"] = lab.proxies.resets - before
    sites = {name: lab.folders[name] for name in SITES}
    ran = Ran(lab.folders["aggregator"], sites, prepared.digest if cohort == "whole" else "")
    if cohort == "late":
        done.seen["late replies counted"] = ran.late
    found = [*_found(ended, left, done, nodes, cohort), *violations(ran)]
    print(
        f"run {number} {cohort}: {nodes.status() or 'no journal'} after {seconds:.0f} s, "
        f"{done.faults.total()} faults, starts {dict(nodes.started)}, "
        f"{len(found)} violations",
        flush=True,
    )
    for violation in found:
        print(f"  VIOLATED  {violation}", flush=True)
    if found:
        _show(planned)
    return {
        "run": number,
        "cohort": cohort,
        "status": nodes.status(),
        "rounds": ran.rounds,
        "seconds": round(seconds, 1),
        "faults": dict(done.faults),
        "missed": dict(done.missed),
        "seen": dict(done.seen),
        "starts": dict(nodes.started),
        "violations": [str(each) for each in found],
    }


def _until_it_ends(place: Field, planned: Schedule, began: float) -> bool:
    """Play both hands while the nodes are tended; whether the run ended in time."""
    over, quiet = threading.Event(), began + START_S + FAULTS_S + CALM_S
    hands: list[threading.Thread] = []
    try:
        while not place.nodes.ended() and time.monotonic() < quiet:
            place.nodes.tend()
            if not hands and all(map(place.nodes.pid, (*AGENTS, *TASKS))):
                now = time.monotonic()
                hands = [threading.Thread(target=play, args=(place, h, now, over)) for h in planned]
                for hand in hands:
                    hand.start()
            time.sleep(0.05)
    finally:
        over.set()
        for hand in hands:
            hand.join()
    return place.nodes.ended()


def _found(
    ended: bool, left: dict[str, list[int]], done: Done, nodes: Federation, cohort: str
) -> list[Violation]:
    """What is seen of a run from outside of its files."""
    found = [Violation("counts once", text) for text in done.wrong]
    if not ended:
        text = f"no end within {CALM_S:.0f} s after the last fault"
        found.append(Violation("nobody waits for ever", text))
    for name, pids in left.items():
        found.append(Violation("every process ends", f"{name}: {pids}"))
    if ended and nodes.status() != "completed" and cohort == "whole":
        found.append(Violation("the run survives", nodes.reason()))
    for path in nodes.logs():
        for words in tracebacks(path.read_text(errors="replace")):
            found.append(Violation("no traceback", f"{path.parts[-3]}/{path.name}: {words}"))
    return found


NO_MEMORY = ("MemoryError", "failed to map segment", "Cannot allocate memory")
SAID = re.compile(r"^(?=\d\d:\d\d:\d\d )", re.MULTILINE)
"""Where a node's own words begin in its log."""


def tracebacks(log: str) -> list[str]:
    """The last line of each traceback in a log, but for those of a process without memory: Python
    cannot be asked to say that better."""
    found = [part for part in SAID.split(log) if "Traceback (most recent call last)" in part]
    told = [part for part in found if not any(words in part for words in NO_MEMORY)]
    return [part.strip().splitlines()[-1][:200] for part in told]


def summarise(
    seed: int, results: Sequence[dict[str, Any]], left_out: Sequence[str]
) -> dict[str, Any]:
    """The figures of all runs of a seed."""
    faults, missed, seen = Counter[str](), Counter[str](), Counter[str]()
    for each in results:
        faults.update(each["faults"])
        missed.update(each["missed"])
        seen.update(each["seen"])
    return {
        "seed": seed,
        "runs": len(results),
        "rounds": sum(each["rounds"] for each in results),
        "seconds": round(sum(each["seconds"] for each in results)),
        "ended": dict(Counter(f"{each['cohort']} {each['status']}" for each in results)),
        "faults": dict(sorted(faults.items())),
        "found nothing to disturb": dict(sorted(missed.items())),
        "seen": dict(sorted(seen.items())),
        "left out": list(left_out),
        "violations": sum(len(each["violations"]) for each in results),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
