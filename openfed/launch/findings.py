"""What `fx doctor` has found: pass, warning or failure, each with one thing to do."""

import operator
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import Any

from openfed.errors import CODES, OpenFedError, PlanError, Problem


class Level(StrEnum):
    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """`what` was looked at: `roster`, `certificate of mill`. A pass has neither code nor remedy."""

    level: Level
    what: str
    found: str
    code: str = ""
    remedy: str = ""
    exit_code: int = 0


def passed(what: str, found: str) -> Finding:
    return Finding(Level.PASS, what, found)


def warned(what: str, code: str, found: str, remedy: str = "") -> Finding:
    return Finding(Level.WARN, what, found, code, remedy or CODES[code].remedy)


def failed(what: str, error: OpenFedError, remedy: str = "") -> Iterator[Finding]:
    """One finding for an error; for a plan's, one for each problem."""
    faults = error.problems if isinstance(error, PlanError) else [error]
    for fault in faults:
        found = _problem(fault) if isinstance(fault, Problem) else fault.message
        advice = remedy or CODES[fault.code].remedy
        yield Finding(Level.FAIL, what, found, fault.code, advice, error.exit_code)


def _problem(problem: Problem) -> str:
    return "  ".join(filter(None, (problem.where, problem.path, problem.message)))


def exit_code(findings: Iterable[Finding]) -> int:
    """That of the first failure; 0 if there is none."""
    return next((each.exit_code for each in findings if each.level == Level.FAIL), 0)


def refusal(findings: Iterable[Finding]) -> OpenFedError | None:
    """The first failure as the error that ends a command, with what to do and the others below."""
    failures = [each for each in findings if each.level == Level.FAIL]
    if not failures:
        return None
    first, *others = failures
    below = [f"      -> {first.remedy}", *(line for each in others for line in shown(each))]
    error = OpenFedError(first.code, "\n".join((f"{first.what}: {first.found}", *below)))
    error.exit_code = first.exit_code
    return error


def shown(finding: Finding) -> Iterator[str]:
    """For people: what was found, and below it what to do."""
    code = f"{finding.code}  " if finding.code else ""
    yield f"{finding.level}  {finding.what}: {code}{finding.found}"
    if finding.remedy:
        yield f"      -> {finding.remedy}"


def as_told(findings: Iterable[Finding]) -> dict[str, Any]:
    """The object of `--json`."""
    found = list(findings)
    return {"exit_code": exit_code(found), "findings": [asdict(each) for each in found]}


# -- readings --------------------------------------------------------------------------------------

IN_MEMORY = frozenset({"tmpfs", "ramfs"})
OVER_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "lustre"})
OVER_NETWORK |= {"smbfs", "afs", "beegfs", "fuse.sshfs", "fuse.s3fs"}


def filesystem(mountinfo: str, path: str) -> str:
    """The type of the file system that a resolved path is on, from `/proc/self/mountinfo`."""
    best, found = "", ""
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        point = _unescaped(mount.split()[4]).rstrip("/")
        inside = path == point or path.startswith(f"{point}/")
        if inside and len(point) >= len(best):  # of two at one place, the later hides the other
            best, found = point, source.split()[0]
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)


_COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_BOUND = re.compile(r"(<=|>=|==|!=|<|>) *([0-9][0-9.]*)")


def needed(requirement: str) -> tuple[str, str] | None:
    """`click<9,>=8.1` -> name and bounds; None for what only an extra needs."""
    asked, _, marker = requirement.partition(";")
    name = re.match(r"[A-Za-z0-9._-]+", asked.strip())
    if name is None or "extra" in marker:
        return None
    return name[0], asked.strip()[name.end() :]


def within(version: str, bounds: str) -> bool:
    """Whether a version (its numbers; what follows them is left out) is within `>=8.1,<9`."""
    return all(
        _COMPARE[sign](_order(_numbers(version), _numbers(bound)), 0)
        for sign, bound in _BOUND.findall(bounds)
    )


def _numbers(version: str) -> list[int]:
    whole = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return [int(part) for part in whole[0].split(".")] if whole else [0]


def _order(a: list[int], b: list[int]) -> int:
    for left, right in zip_longest(a, b, fillvalue=0):
        if left != right:
            return -1 if left < right else 1
    return 0
