"""What sites say by themselves, never part of the plan: `local.yaml`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue

from openfed.errors import PlanError, UsageError
from openfed.parse import NAME
from openfed.plan.check import Loc, checked, finding
from openfed.plan.choices import PARTITIONERS
from openfed.plan.load import problems, read_file, workspace_of
from openfed.plan.rules import clashes
from openfed.plan.schema import Enrolled, Plan
from openfed.plan.tree import normalised
from openfed.plan.values import NAME_RULE, Among, Choice, Text, Value, refuse, shown, suggest

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")


def _device(text: str) -> str:
    if not _DEVICE.fullmatch(text):
        raise refuse("P09", f"expected auto | cpu | cuda | cuda:N | mps, got {shown(text)}")
    return text


Device = Annotated[Text, AfterValidator(_device)]
Threads = Annotated[int, Field(strict=True, ge=1, le=1024)]
Isolation = Literal["process", "sandbox", "container"]
"""What keeps a task process in, the weakest first."""


class Partition(Value):
    """One data set, dealt out to the plan's collaborators in their order (`data/partition.py`).

    `of`: what every loader is told of it, a path as a rule. A loader is handed `{of, share: [k, n],
    by: {name: {settings}}, seed}`, which `openfed.data.partition.share` reads.
    """

    of: JsonValue = None
    by: Annotated[Choice, Among("a partitioner", PARTITIONERS)] = Field(
        examples=["{dirichlet: {alpha: 0.3}}"]
    )
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0

    def shares(self, names: Sequence[str]) -> dict[str, JsonValue]:
        by: JsonValue = {self.by.name: self.by.settings}
        common: dict[str, JsonValue] = {"of": self.of, "by": by, "seed": self.seed}
        return {name: {**common, "share": [k, len(names)]} for k, name in enumerate(names, 1)}


class Local(Value):
    """`local.yaml`: every site of a federation on this machine. A site's value is handed to its
    loader as it stands; in the place of `sites`, `partition` makes them."""

    sites: Mapping[str, JsonValue] = Field(default_factory=dict)
    partition: Partition | None = None
    device: Device = "auto"
    threads: Threads = 1
    isolation: Isolation = "process"


def check_named(plan: Plan, name: str) -> None:
    """Raises: UsageError: U16 the plan has no such collaborator."""
    if not plan.admits(name):
        known = ", ".join(plan.named)
        raise UsageError("U16", f"{name!r} is no collaborator of the plan; it has: {known}")


def read_local(path: Path, collaborators: Sequence[str] | Enrolled) -> Local:
    """With `sites` of every collaborator, also where `partition` is in their place.

    Raises: PlanError: also where the sites are not the plan's collaborators; where those are
    whoever is enrolled, the sites need only be names.
    """
    tree, found = read_file(path, workspace_of(path))
    local = None
    if tree is not None:
        tree = normalised(tree, Local)
        local, more = checked(tree, Local)
        found += more
    if local is not None and tree is not None:
        for loc, code, message in _wrong(local, collaborators):
            found.append(finding(tree, loc, code, message, key=True))
    if found or local is None:
        raise PlanError(problems(found))
    if local.partition is None or isinstance(collaborators, Enrolled):
        return local
    return local.model_copy(update={"sites": local.partition.shares(collaborators)})


_SITES = "sites: {one: data/one, two: data/two}"


def _wrong(local: Local, collaborators: Sequence[str] | Enrolled) -> Iterator[tuple[Loc, str, str]]:
    """Place, code and message."""
    if local.partition is not None:
        if local.sites:
            yield ("partition",), "P15", "is in the place of sites: keep one of the two"
        elif isinstance(collaborators, Enrolled):
            message = f"goes by the plan's collaborators, which has no names: write {_SITES}"
            yield ("partition",), "P21", message
    elif not local.sites:
        yield ("sites",), "P06", f"is missing: add {_SITES}, or a partition: of one data set"
    else:
        for name, code, message in _wrong_sites(local.sites, collaborators):
            yield ("sites", name), code, message


def _wrong_sites(
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
