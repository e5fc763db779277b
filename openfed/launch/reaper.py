"""Removes what a launch in containers has left: it outlives the launcher and waits for its end.

    python -m openfed.launch.reaper ID

Reads standard input until it closes, which it does however the launcher ends; then removes every
container and network with the launch's label.
"""

import os
import signal
import sys
import time
from contextlib import suppress

from docker.errors import APIError
from requests.exceptions import RequestException

from openfed.errors import OpenFedError
from openfed.launch.containers import LABEL, RETRY_S, connected

PATIENCE_S = 300.0
"""How long an engine that is away is waited for."""


def remove(launch: str) -> None:
    """Everything of a launch. Raises: docker.errors.APIError, while something is on its way."""
    engine, filters = connected(), {"label": f"{LABEL}={launch}"}
    for container in engine.containers.list(all=True, filters=filters, ignore_removed=True):
        container.remove(force=True)
    for network in engine.networks.list(filters=filters):
        network.remove()


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    passing = (APIError, RequestException, OpenFedError)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with suppress(*passing):
            remove(sys.argv[1])
            return
        time.sleep(RETRY_S)


if __name__ == "__main__":
    main()
