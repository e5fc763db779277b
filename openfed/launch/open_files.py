"""How many files an aggregator may hold open: a connection and an update for every site."""

import resource
from contextlib import suppress

from openfed.errors import OpenFedError

OWN = 100
"""What it needs beside: journal, logs, libraries, blobs on their way, strangers at its port."""


def files_for(sites: int) -> int:
    return 2 * sites + OWN


def may_open() -> int:
    """The most that this process can allow itself."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 2**31 if hard == resource.RLIM_INFINITY else hard


def allow_files(sites: int) -> None:
    """Raise this process's limit as far as it may. Raises: OpenFedError T20: that is too low."""
    if (most := may_open()) < files_for(sites):
        raise OpenFedError("T20", shortage(sites, most))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # some systems have a lower bound that they do not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def shortage(sites: int, most: int) -> str:
    return f"expected {files_for(sites)} open files for {sites} sites, this process may have {most}"
