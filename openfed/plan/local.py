"""What sites say by themselves, never part of the plan: `local.yaml`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue

from openfed.errors import PlanError, UsageError
from openfed.parse import NAME
from openfed.plan.check import checked, finding
from openfed.plan.load import problems, read_file, workspace_of
from openfed.plan.rules import clashes
from openfed.plan.schema import Enrolled, Plan
from openfed.plan.values import NAME_RULE, Text, Value, refuse, shown, suggest

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")


def _device(text: str) -> str:
    if not _DEVICE.fullmatch(text):
        raise refuse("P09", f"expected auto | cpu | cuda | cuda:N | mps, got {shown(text)}")
    return text


Device = Annotated[Text, AfterValidator(_device)]
Threads = Annotated[int, Field(strict=True, ge=1, le=1024)]
Isolation = Literal["process", "sandbox", "container"]
"""What keeps a task process in, the weakest first."""


class Local(Value):
    """`local.yaml`: every site of a federation on this machine. A site's value is handed to its
    loader as it stands."""

    sites: Mapping[str, JsonValue] = Field(examples=["{one: data/one, two: data/two}"])
    device: Device = "auto"
    threads: Threads = 1
    isolation: Isolation = "process"


def check_named(plan: Plan, name: str) -> None:
    """Raises: UsageError: U16 the plan has no such collaborator."""
    if not plan.admits(name):
        known = ", ".join(plan.named)
        raise UsageError("U16", f"{name!r} is no collaborator of the plan; it has: {known}")


def read_local(path: Path, collaborators: Sequence[str] | Enrolled) -> Local:
    """Raises: PlanError: also where the sites are not the plan's collaborators; where those are
    whoever is enrolled, the sites need only be names."""
    tree, found = read_file(path, workspace_of(path))
    local = None
    if tree is not None:
        local, more = checked(tree, Local)
        found += more
    if local is not None and tree is not None:
        for name, code, message in _wrong(local.sites, collaborators):
            found.append(finding(tree, ("sites", name), code, message, key=True))
    if found or local is None:
        raise PlanError(problems(found))
    return local


def _wrong(
    sites: Mapping[str, JsonValue], collaborators: Sequence[str] | Enrolled
) -> Iterator[tuple[str, str, str]]:
    """Site, code and message."""
    if not isinstance(collaborators, Enrolled):
        yield from ((name, "P21", said) for name, said in _mismatches(sites, collaborators))
        return
    names = list(sites)
    unfit = [name for name in names if not NAME.fullmatch(name)]
    yield from ((name, "P14", f"expected {NAME_RULE}, got {shown(name)}") for name in unfit)
    yield from ((names[index], "P14", said) for index, said in clashes(names))


def _mismatches(
    sites: Mapping[str, JsonValue], collaborators: Sequence[str]
) -> Iterator[tuple[str, str]]:
    missing = [name for name in collaborators if name not in sites]
    known = set(collaborators)
    for name in sites:
        if name not in known:
            hint = suggest(name, missing)
            listed = ", ".join(collaborators)
            yield name, f"is no collaborator of the plan. {hint}the plan has: {listed}"[:200]
    for name in missing:
        yield name, f"is missing: add {name}: and where its data is"
