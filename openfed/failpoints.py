"""Named points at which a node can be made to die: for the tests that kill one at each of them.

    OPENFED_FAILPOINTS="spool.synced=kill@3;push.block=note" python -m openfed.launch.node ...

`kill@N` ends the process by SIGKILL at the N-th passage, `note` says each passage on standard
error. Only a process that calls `arm` looks at the variable, and what `fx` starts does not get it:
whoever can set it for a node started the node.
"""

import os
import signal
import sys
from collections.abc import Mapping
from itertools import count

from openfed.errors import OpenFedError

VARIABLE = "OPENFED_FAILPOINTS"

POINTS = frozenset(
    {
        # files.py
        *("file.written", "file.synced", "file.renamed", "file.durable"),
        # store/spool.py, node/encoding.py
        *("spool.block", "spool.flushed", "spool.written", "spool.synced", "spool.renamed"),
        *("spool.settled", "spool.swept"),
        # store/journal.py
        *("journal.facts", "journal.note", "journal.ask", "journal.elapsed", "journal.reply"),
        *("journal.close", "journal.turn", "journal.entry", "journal.commit", "journal.committed"),
        # store/local.py
        *("local.owe", "local.owed", "local.settle", "local.ruled", "local.settled"),
        # store/witness.py: what a site keeps of the ledger
        *("witness.receipt", "witness.kept"),
        # node/trainer.py, tasks/child.py: the hand-over, both ways
        *("exchange.linked", "task.asked", "task.taken", "task.ran", "task.written"),
        *("task.answered", "task.heard"),
        # transport/grpc.py: what is told of bytes that came, and what is sent
        *("pull.block", "push.offset", "push.block", "push.verdict", "call.answer"),
        # node/conduct.py
        *("run.saved", "run.ended"),
        # pki/
        *("record.written", "record.synced", "certificate.leaf", "certificate.chain"),
    }
)
"""Every point, each at one place in the code."""


class _Point:
    """What happens at an armed point."""

    def __init__(self, name: str, kill_at: int) -> None:
        self._name, self._kill_at, self._passages = name, kill_at, count(1)

    def passed(self) -> None:
        number = next(self._passages)
        if self._kill_at and number != self._kill_at:
            return
        what = "killed" if self._kill_at else "passed"
        sys.stderr.write(f"failpoint {self._name} {what} pid {os.getpid()} passage {number}\n")
        sys.stderr.flush()
        if self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


_armed: Mapping[str, _Point] | None = None


def failpoint(name: str) -> None:
    """Pass the point of this name, one of `POINTS`."""
    if _armed is not None and (point := _armed.get(name)) is not None:
        point.passed()


def arm(environment: Mapping[str, str]) -> None:
    """Do what the variable asks for from now on, and say so. Raises: OpenFedError S14."""
    global _armed
    if told := environment.get(VARIABLE):
        _armed = {point: _Point(point, kill_at) for point, kill_at in map(_parsed, told.split(";"))}
        sys.stderr.write(f"{VARIABLE} is set: this process is made to fail: {told}\n")


def _parsed(text: str) -> tuple[str, int]:
    """A point, and the passage that kills; 0: none does."""
    name, _, action = text.partition("=")
    kind, _, number = action.partition("@")
    if name not in POINTS:
        raise OpenFedError("S14", f"{VARIABLE}: there is no failpoint {name!r}")
    if action == "note":
        return name, 0
    if kind != "kill" or not number.isdecimal() or int(number) < 1:
        raise OpenFedError("S14", f"{VARIABLE}: {name}: expected note or kill@N, got {action!r}")
    return name, int(number)
