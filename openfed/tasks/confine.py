"""The inner walls of a task process: put up before it imports anything, kept by all it starts.

    python -P -m openfed.tasks.confine '{"landlock": 7, "writes": [...], ...}' --exchange DIR ...

The outer walls (namespaces, what is mounted) stand already, put up by `launch/sandbox.py`. The rest
of the arguments are those of `openfed.tasks.child`. What was promised and cannot be put up ends the
process before any of the user's code is read.
"""

import ctypes
import json
import os
import resource
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""Landlock's system calls: the same numbers on every architecture."""

VERSION_OF = 1  # LANDLOCK_CREATE_RULESET_VERSION
PATH_BENEATH = 1  # LANDLOCK_RULE_PATH_BENEATH
PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h

EXECUTE, WRITE, READ, LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3  # linux/landlock.h
TRUNCATE, DEVICE = 1 << 14, 1 << 15
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""ABI -> how many rights on files it knows; each is a bit, from the lowest on."""
OF_A_FILE = EXECUTE | WRITE | READ | TRUNCATE | DEVICE
"""The rights that a rule about a file may give; the others are about folders."""

TCP, TCP_SINCE = 0b11, 4  # to bind and to connect
OUTSIDE, OUTSIDE_SINCE = 0b11, 6  # abstract sockets and signals of processes outside


def main() -> None:
    walls, rest = json.loads(sys.argv[1]), sys.argv[2:]
    limit(walls)
    if walls["landlock"]:
        landlock(walls["landlock"], map(Path, walls["writes"]))
    sys.argv = ["openfed.tasks.child", *rest]
    from openfed.tasks import child  # noqa: PLC0415  (nothing is imported outside the walls)

    child.main()


def limit(walls: Mapping[str, Any]) -> None:
    """No core dumps; `memory` bytes of memory of its own, files of `file_size` bytes, `processes`
    of this user in the sandbox.

    Not RLIMIT_AS: a driver of a GPU reserves more addresses than any machine has memory. The
    kernel does not count the superuser's processes: for those a control group does.
    """
    most = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: walls["memory"],
        resource.RLIMIT_FSIZE: walls["file_size"],
        resource.RLIMIT_NPROC: walls["processes"],
    }
    for which, value in most.items():
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


# -- landlock ---------------------------------------------------------------------------------


def landlock_abi() -> int:
    """Of this kernel; 0 where it has none."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, int(_libc().syscall(CREATE_RULESET, None, 0, VERSION_OF)))


def landlock(abi: int, writes: Iterable[Path]) -> None:
    """From here on: reads anywhere, writes below `writes` and to devices, no TCP, no signals and
    no abstract sockets to the outside. Raises: OSError."""
    rights = (1 << RIGHTS.get(abi, RIGHTS[max(RIGHTS)])) - 1
    net, outside = TCP if abi >= TCP_SINCE else 0, OUTSIDE if abi >= OUTSIDE_SINCE else 0
    rules = _call(CREATE_RULESET, _block("=QQQ", rights, net, outside), _length(abi), 0)
    try:
        _allow(rules, Path("/"), rights & (EXECUTE | READ | LIST))
        _allow(rules, Path("/dev"), rights & (READ | LIST | WRITE | TRUNCATE | DEVICE))
        for path in writes:
            _allow(rules, path, rights)
        if _libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "no_new_privs")
        _call(RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _length(abi: int) -> int:
    """Bytes of `struct landlock_ruleset_attr`, which grew."""
    return 8 if abi < TCP_SINCE else 16 if abi < OUTSIDE_SINCE else 24


def _allow(rules: int, path: Path, rights: int) -> None:
    beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rights = rights if path.is_dir() else rights & OF_A_FILE
        _call(ADD_RULE, rules, PATH_BENEATH, _block("=Qi", rights, beneath), 0)
    finally:
        os.close(beneath)


def _block(form: str, *values: int) -> Any:
    return ctypes.create_string_buffer(struct.pack(form, *values))


def _call(number: int, *arguments: Any) -> int:
    done = int(_libc().syscall(number, *arguments))
    if done < 0:
        raise OSError(ctypes.get_errno(), f"landlock: {os.strerror(ctypes.get_errno())}")
    return done


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


if __name__ == "__main__":
    main()
