"""What a container's health check asks: exit code 0 where a service does its work.

    python -P -m openfed.launch.health --port N | --agent | --task

It reads the kernel's tables, so nobody is connected to and no handshake fails: the aggregator
listens on its port, the agent for its task process, a task process is connected to its agent.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path


def check(*asked: str) -> list[str]:
    """The health check of a container, as Docker and Compose write it."""
    return ["CMD", "python", "-P", "-m", "openfed.launch.health", *asked]


NET = Path("/proc/net")
LISTENING, ACCEPTS, CONNECTED = "0A", "00010000", "03"
"""State in tcp and tcp6 (net/tcp_states.h); flags, and state, in unix (net/unix/af_unix.c)."""


def rows(table: Path) -> Iterator[list[str]]:
    """The fields of every socket; nothing where the kernel has no such table."""
    if table.exists():
        yield from (line.split() for line in table.read_text().splitlines()[1:])


def listens(port: int, net: Path = NET) -> bool:
    both = [*rows(net / "tcp"), *rows(net / "tcp6")]
    return any(row[1].endswith(f":{port:04X}") and row[3] == LISTENING for row in both)


def accepts(net: Path = NET) -> bool:
    return any(row[3] == ACCEPTS for row in rows(net / "unix"))


def connected(net: Path = NET) -> bool:
    return any(row[5] == CONNECTED for row in rows(net / "unix"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="openfed.launch.health")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--port", type=int)
    which.add_argument("--agent", action="store_true")
    which.add_argument("--task", action="store_true")
    given = parser.parse_args()
    well = listens(given.port) if given.port else accepts() if given.agent else connected()
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
