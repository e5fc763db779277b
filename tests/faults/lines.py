"""A run over bad lines, as root: `python -m tests.faults.lines --loss 28 --mbit 4 --rounds 10`.

Every site is in a network namespace and dials the aggregator itself, with the settings that nodes
have by default. Prints seconds and what was lost, as JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.faults import network
from tests.faults.check import Ran, violations
from tests.faults.federation import Federation, free_port, lay_out, prepare
from tests.faults.network import DOWN, UP, make_site
from tests.faults.schedule import SITES

ENTERED = "OPENFED_FAULTS_NAMESPACES"
LONGEST_S = 1200.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loss", type=float, default=0.0, help="percent of the packets, each way")
    parser.add_argument("--mbit", type=float, default=0.0, help="each way, for each site")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--weights", type=int, default=50_000, help="of the model, float32")
    given = parser.parse_args()
    if ENTERED not in os.environ:
        os.environ[ENTERED] = "1"
        network.into_namespaces([sys.executable, "-m", "tests.faults.lines", *sys.argv[1:]])
    told = over_bad_lines(given.loss / 100, given.mbit, given.rounds, given.weights)
    print(json.dumps(told))
    return 1 if told["violations"] or told["status"] != "completed" else 0


def over_bad_lines(loss: float, mbit: float, rounds: int, weights: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="openfed-lines-") as made, ExitStack() as stack:
        sites = {name: make_site(number) for number, name in enumerate(SITES, 1)}
        for site in sites.values():
            stack.callback(site.holder.kill)
        port, hosts = free_port(), [site.host for site in sites.values()]
        prepared = prepare(Path(made) / "made", "whole", port, rounds, hosts, weights)
        folders = {name: Path(made) / "nodes" / name for name in ("aggregator", *SITES)}
        for folder in folders.values():
            folder.mkdir(parents=True)
        lay_out(prepared, folders, {n: f"{site.host}:{port}" for n, site in sites.items()})
        for site in sites.values():
            if mbit:
                network.throttle(site, mbit)
            for direction in (UP, DOWN) if loss else ():
                network.drop(site, direction, loss)
        enter = {name: site.enter for name, site in sites.items()}
        nodes = Federation(folders, enter, f"0.0.0.0:{port}")
        began = time.monotonic()
        try:
            while not nodes.ended() and time.monotonic() < began + LONGEST_S:
                nodes.tend()
                time.sleep(0.05)
            seconds = time.monotonic() - began
            nodes.farewell(15)
        finally:
            nodes.kill_all()
        dropped = sum(
            network.pass_again(site, direction, loss)
            for site in sites.values()
            for direction in ((UP, DOWN) if loss else ())
        )
        ran = Ran(folders["aggregator"], {name: folders[name] for name in SITES}, prepared.digest)
        return {
            "status": nodes.status(),
            "rounds": ran.rounds,
            "seconds": round(seconds, 1),
            "starts": dict(nodes.started),
            "packets dropped": dropped,
            "violations": [str(each) for each in violations(ran)],
        }


if __name__ == "__main__":
    sys.exit(main())
